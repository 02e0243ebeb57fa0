"""Choosing and configuring a store: the fields that every cache's config has for it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipeline_plugins.cache.store import MAX_TTL, Store
from pipeline_plugins.state import REDIS, STATE


class StoreConfig(BaseModel):
    """Where entries are kept, how many and for how long."""

    model_config = ConfigDict(extra="forbid")

    store: Literal["memory", "disk", "redis"] = Field("memory", description="Where entries are kept.")
    max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=4096,
        le=2**50,
        description="Bytes of entries in memory or on disk; Redis has a bound of its own.",
    )
    max_entry_bytes: int = Field(
        1024 * 1024, ge=1024, le=2**30, description="Larger answers are not kept, nor shared in flight."
    )
    ttl: float = Field(3600.0, gt=0, le=MAX_TTL, description="Seconds that an answer is kept.")
    path: str = Field(f"{STATE}/cache", description="Folder of `store=disk`.")
    redis: SecretStr = Field(
        SecretStr(REDIS),
        description="Of `store=redis`: redis://[USER:PASSWORD@]HOST:PORT/DB, rediss:// or unix://.",
    )
    redis_timeout: float = Field(0.2, gt=0, le=60, description="Seconds that Redis may take to answer.")


def make_store(config: StoreConfig) -> Store:
    """The store that a config describes; nothing is opened. Raises ValueError without its package."""
    if config.store == "disk":
        from pipeline_plugins.cache.disk import DiskStore

        return DiskStore(config.path, config.max_bytes)
    if config.store == "redis":
        from pipeline_plugins.cache.redis import RedisStore

        return RedisStore(config.redis.get_secret_value(), timeout=config.redis_timeout)
    from pipeline_plugins.cache.memory import MemoryStore

    return MemoryStore(config.max_bytes)

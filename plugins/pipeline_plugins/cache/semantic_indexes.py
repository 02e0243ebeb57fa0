"""Choosing and configuring the index of `cache=semantic`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline_plugins.cache.semantic_known import Hear, Index, MemoryIndex
from pipeline_plugins.cache.stores import StoreConfig
from pipeline_plugins.infer.minilm_embedder import PACKAGED


class IndexConfig(StoreConfig):
    """Where questions are kept, how many, and who shares them; with that of the store."""

    index: Literal["memory", "lancedb", "redis"] = Field(
        "memory",
        description="Where questions are kept: `memory`, `lancedb` in a folder, `redis` for many machines.",
    )
    index_path: str = Field("${vars.state}/semantic", min_length=1, description="Folder of `index=lancedb`.")
    index_poll: float = Field(
        1.0, ge=0.01, le=60, description="Seconds until what other processes asked is known here, at most."
    )
    entries: int = Field(100_000, ge=1, le=10_000_000, description="Questions remembered.")
    model: str = Field(PACKAGED, min_length=1, max_length=1024, description="The embedding model.")

    @model_validator(mode="after")
    def _shared_alike(self) -> IndexConfig:
        # Who knows a question but has not its answer takes it for lost, and removes it for all.
        fit = {"memory": ("memory", "disk", "redis"), "lancedb": ("disk", "redis"), "redis": ("redis",)}
        if self.store not in fit[self.index]:
            stores = " or ".join(f"store={store}" for store in fit[self.index])
            raise ValueError(f"answers must be shared as questions are: index={self.index} needs {stores}")
        return self


def make_index(config: IndexConfig, dimensions: int, hear: Hear) -> Index:
    """The index that a config describes; nothing is opened. Raises ImportError without its package."""
    if config.index == "lancedb":
        from pipeline_plugins.cache.semantic_lancedb import LanceIndex

        return LanceIndex(
            config.index_path,
            model=config.model,
            dimensions=dimensions,
            capacity=config.entries,
            hear=hear,
            poll=config.index_poll,
        )
    if config.index == "redis":
        from pipeline_plugins.cache.semantic_redis import RedisIndex

        return RedisIndex(
            config.redis.get_secret_value(),
            model=config.model,
            dimensions=dimensions,
            capacity=config.entries,
            hear=hear,
            poll=config.index_poll,
            timeout=config.redis_timeout,
        )
    return MemoryIndex(dimensions, config.entries)

"""Every store, empty, for the tests that all of them must pass."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.cache import redis as redis_store
from pipeline_plugins.cache.disk import DiskStore
from pipeline_plugins.cache.memory import MemoryStore
from pipeline_plugins.cache.redis import RedisStore
from pipeline_plugins.cache.store import Store

Scenario = Callable[[Store], Awaitable[Any]]
With = Callable[[Scenario], Any]


@pytest.fixture(params=["memory", "disk", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def options(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    """A cache's config for this store; Redis is shared with other tests, so names are this test's own."""
    if kind == "redis":
        monkeypatch.setattr(redis_store, "PREFIX", f"{{{uuid.uuid4().hex}}}:")
        return {"store": kind, "redis": request.getfixturevalue("redis_url"), "redis_timeout": 5}
    return {"store": kind, "path": str(tmp_path / "cache")}


@pytest.fixture
def with_store(options: dict[str, Any]) -> With:
    """Runs a scenario with an open store, which it closes."""

    def run(scenario: Scenario) -> Any:
        async def go() -> Any:
            store = new_store(options)
            await store.open()
            try:
                return await scenario(store)
            finally:
                await store.close()

        return asyncio.run(go())

    return run


def new_store(options: dict[str, Any]) -> Store:
    if options["store"] == "redis":
        return RedisStore(options["redis"], timeout=options["redis_timeout"])
    if options["store"] == "disk":
        return DiskStore(options["path"], 64 * 1024)
    return MemoryStore(64 * 1024)

"""Vectors that are known already: the embedder is not asked for them again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import compose
from tests.redis_process import RedisProcess

pytest.importorskip("lancedb")

from pipeline_plugins.cache.stores import StoreConfig
from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.embedder import Embedder
from pipeline_plugins.rag.known import KnownVectors

STORES = ["memory", "disk", "redis"]


class Counting(Embedder):
    """Echo's vectors, and which texts were asked for."""

    def __init__(self) -> None:
        super().__init__(Choice(plugin="echo"), batch=2, timeout=30)
        self.asked: list[str] = []

    async def embed(self, texts: Any, **named: Any) -> Any:
        self.asked += texts
        return await super().embed(texts, **named)


def within(
    store: StoreConfig, work: Callable[[KnownVectors, Counting], Awaitable[None]], by: Any = 1
) -> None:
    async def go() -> None:
        embedder = Counting()
        known = KnownVectors(store, embedder, by)
        await embedder.open()
        await known.open()
        try:
            await work(known, embedder)
        finally:
            await known.close()
            await embedder.close()

    asyncio.run(go())


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    if request.param == "redis":
        return StoreConfig.model_validate({"store": "redis", "redis": request.getfixturevalue("redis_url")})
    return StoreConfig(store=request.param, path=str(tmp_path / "cache"))


def test_only_texts_that_are_new_to_their_owner_are_embedded(store: StoreConfig, tmp_path: Path) -> None:
    async def work(known: KnownVectors, embedder: Counting) -> None:
        owner = str(tmp_path)
        first = await known.embed(owner, ["cats", "tax", "cats"])
        assert embedder.asked == ["cats", "tax"]
        again = await known.embed(owner, ["tax", "dogs", "cats"])
        assert embedder.asked == ["cats", "tax", "dogs"]
        assert np.array_equal(again[[2, 0]], first[[0, 1]])
        assert np.array_equal(first, await Embedder.embed(embedder, ["cats", "tax", "cats"]))
        await known.embed(owner + "'s neighbour", ["cats"])
        assert embedder.asked == ["cats", "tax", "dogs", "cats"]

    within(store, work)


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    store = StoreConfig(store="disk", path=str(tmp_path))

    async def work(known: KnownVectors, embedder: Counting) -> None:
        await known.embed("alice", ["cats"])
        assert embedder.asked == ["cats"]

    within(store, work, by={"plugin": "echo", "dimensions": 64})
    within(store, work, by={"plugin": "echo", "dimensions": 32})


def test_a_store_that_is_down_is_done_without(redis_process: RedisProcess) -> None:
    store = StoreConfig.model_validate({"store": "redis", "redis": redis_process.url, "redis_timeout": 0.1})

    async def work(known: KnownVectors, embedder: Counting) -> None:
        await known.embed("alice", ["cats"])
        redis_process.kill()
        found = await known.embed("alice", ["cats"])
        assert embedder.asked == ["cats", "cats"]
        assert found.shape == (1, 64)

    within(store, work)


@pytest.mark.parametrize(
    "override",
    ["rag.embed_cache=disk", "rag.embed_cache.store=disk", "rag.embed_cache={store: disk, ttl: 60}"],
)
def test_it_is_chosen_by_an_override(override: str) -> None:
    plan, _ = compose(["infer=echo", "infer@embed=none", "rag=hybrid", override]).plan()
    assert plan.parts["rag"].config.embed_cache.store == "disk"  # type: ignore[attr-defined]

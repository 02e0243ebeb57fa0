"""Embeddings known text by text: only what is new is asked for, and the rest is as it was."""

import asyncio
import base64
import struct
from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.cache.embeddings import EmbeddingCache, Vector, read_vectors, reply_with
from pipeline_plugins.cache.exact import Exact
from pipeline_plugins.cache.key import Keys
from pipeline_plugins.cache.memory import MemoryStore
from pipeline_plugins.infer.echo import Echo

from pipeline import Call, Edge, Record, Reply, Tenant, Usage


class Counted:
    """The echo stage, with the inputs that it was asked for."""

    def __init__(self) -> None:
        self.echo = Echo(Echo.Config(dimensions=8))
        self.asked: list[Any] = []

    async def __call__(self, call: Call) -> Reply:
        self.asked.append(call.body["input"])
        await asyncio.sleep(0.005)
        return await self.echo(call)


def embed(text: Any, owner: str = "ana", **more: Any) -> Call:
    return Call(
        id="r",
        operation="embedding",
        body={"model": "echo", "input": text, **more},
        deadline=asyncio.get_running_loop().time() + 30,
        received=0,
        tenant=Tenant(key=owner, owner=owner),
        record=Record(),
    )


def run(options: dict[str, Any], upstream: Any, scenario: Any) -> None:
    async def main() -> None:
        cache = Exact(Exact.Config(**options), Edge("cache", "next", "infer", upstream), name="cache")
        await cache.open()
        await scenario(cache)
        await cache.close()

    asyncio.run(main())


async def vectors(cache: Exact, call: Call) -> list[Any]:
    return [item["embedding"] for item in (await cache(call)).json["data"]]


def test_a_batch_asks_only_for_the_texts_that_are_new(options: dict[str, Any]) -> None:
    upstream = Counted()

    async def scenario(cache: Exact) -> None:
        texts = ["a", "b c", "a", "d", "b c"]
        plain = (await Echo(Echo.Config(dimensions=8))(embed(texts))).json
        first = await cache(embed("b c"))
        assert first.usage == Usage(2)
        call = embed(texts)
        reply = await cache(call)
        assert reply.json["data"] == plain["data"]
        assert reply.json["model"] == "echo"
        assert call.record.headers["x-pipeline-cache"] == "miss"
        again = embed(list(reversed(texts)))
        assert await vectors(cache, again) == [item["embedding"] for item in reversed(plain["data"])]
        assert again.record.headers["x-pipeline-cache"] == "hit"
        assert (await cache(embed("a"))).json["usage"] == {"prompt_tokens": 1, "total_tokens": 1}

    run(options, upstream, scenario)
    assert upstream.asked == ["b c", ["a", "d"]]


def test_base64_and_numbers_are_the_same_vectors(options: dict[str, Any]) -> None:
    upstream = Counted()

    async def scenario(cache: Exact) -> None:
        (coded,) = await vectors(cache, embed("x", encoding_format="base64"))
        (numbers,) = await vectors(cache, embed(["x"], encoding_format="float"))
        (plain,) = await vectors(cache, embed("x"))
        assert list(struct.unpack("<8f", base64.b64decode(coded))) == numbers == plain
        (again,) = await vectors(cache, embed("x", encoding_format="base64"))
        assert again == coded

    run(options, upstream, scenario)
    assert len(upstream.asked) == 1


def test_other_dimensions_tokens_and_tenants_are_other_vectors(options: dict[str, Any]) -> None:
    upstream = Counted()

    async def scenario(cache: Exact) -> None:
        for call in (
            embed("1"),
            embed("1", dimensions=4),
            embed([1]),
            embed([[1], [1, 2]]),
            embed("1", owner="bob"),
        ):
            await cache(call)

    run(options, upstream, scenario)
    assert upstream.asked == ["1", "1", [1], [[1, 2]], "1"]


def test_equal_batches_at_once_make_one_call(options: dict[str, Any]) -> None:
    upstream = Counted()

    async def scenario(cache: Exact) -> None:
        found = await asyncio.gather(*(vectors(cache, embed(["x", "y"])) for _ in range(100)))
        assert all(one == found[0] for one in found)

    run(options, upstream, scenario)
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [0.5]}] * 2,
        [{"index": 0}, {"index": 1}],
        "x",
        [{"index": 0, "embedding": "%"}],
    ],
)
def test_a_reply_that_is_no_list_of_vectors_is_passed_on_and_not_kept(data: Any) -> None:
    asked = []

    async def strange(call: Call) -> Reply:
        asked.append(call)
        return Reply.of({"object": "list", "data": data})

    async def scenario(cache: Exact) -> None:
        for _ in range(2):
            assert (await cache(embed(["a", "b"]))).json["data"] == data

    run({"store": "memory"}, strange, scenario)
    assert len(asked) == 2


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(finite, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 1000))
def test_numbers_come_back_as_they_were_and_tokens_add_up(numbers: list[list[float]], tokens: int) -> None:
    data = [{"index": at, "embedding": vector} for at, vector in enumerate(numbers)]
    reply = Reply(body=orjson.dumps({"data": data}), usage=Usage(tokens))
    found = read_vectors(reply, ["x" * at for at in range(len(numbers))])
    assert found is not None
    assert [vector.numbers() for vector in found] == numbers
    assert sum(vector.tokens for vector in found) == tokens


def test_ingestion_can_use_the_same_cache() -> None:
    async def scenario() -> None:
        store = MemoryStore(10**6)
        cache = EmbeddingCache(store)
        asked: list[int] = []

        async def ask(positions: list[int]) -> list[Vector]:
            asked.extend(positions)
            return [Vector("f4", array("f", [position]).tobytes(), 1) for position in positions]

        shared = Keys().of(embed("anything"))
        for _ in range(2):
            keys = cache.keys(shared, ["a", "b", "a"])
            found = await cache.complete(keys, await cache.known(keys), ask, ttl=60)
            assert [vector.numbers() for vector in found] == [[0], [1], [0]]
        assert asked == [0, 1]
        assert reply_with(found, embed("a")).usage == Usage(3)

    asyncio.run(scenario())

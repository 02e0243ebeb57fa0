"""`cache=exact` in front of a model that counts its calls: hits, sharing, and who gets what."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from pipeline_plugins.cache.exact import Exact

from pipeline import Call, Charge, Edge, Record, Reply, Spent, Tenant, Usage
from pipeline.errors import APIError, DeadlineExceeded, InvalidRequest, Overloaded, UpstreamFailed
from pipeline.wire import responses
from pipeline.wire.responses import Choice, Stream
from pipeline.wire.sse import assemble

ANA = Tenant(key="k1", owner="ana")
BOB = Tenant(key="k2", owner="bob")
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
USAGE = Usage(3, 4)


class Upstream:
    """Answers with the number of the call and who asked, after `seconds`; a stream in pieces."""

    def __init__(self, seconds: float = 0.0, pieces: int = 3, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.pieces = pieces
        self.error = error
        self.calls: list[Call] = []
        self.cancelled = 0

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        text = f"{len(self.calls)} for {call.tenant.owner}"
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        spent = call.record.decision(Spent) or Spent()
        spent.charges.append(Charge("infer", "m", USAGE, 0.5))
        call.record.decide(spent)
        if call.streaming:
            return Reply(chunks=self.stream(call, text), usage=USAGE)
        return Reply.of(responses.chat_completion([Choice(text, "stop")], USAGE, model="m"), usage=USAGE)

    async def stream(self, call: Call, text: str) -> AsyncIterator[bytes]:
        usage = bool((call.body.get("stream_options") or {}).get("include_usage"))
        stream = Stream("chat", model="m", include_usage=usage)
        try:
            yield stream.start()
            for _ in range(self.pieces):
                await asyncio.sleep(self.seconds)
                yield stream.text(text + ";")
            yield stream.finish("stop") + stream.end(USAGE)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


def ask(
    body: dict[str, Any], tenant: Tenant = ANA, seconds: float = 30, operation: str = "chat", **headers: str
) -> Call:
    return Call(
        id="r",
        operation=operation,
        body={**BODY, **body} if operation == "chat" else body,
        deadline=asyncio.get_running_loop().time() + seconds,
        received=0,
        tenant=tenant,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        record=Record(),
    )


async def read(reply: Reply) -> str:
    """The text of a reply, put together."""
    content = b"".join([chunk async for chunk in reply])
    if reply.streaming:
        assert content.endswith(b"data: [DONE]\n\n")
        found = assemble(content)
    else:
        found = orjson.loads(content)
    assert found is not None
    return str(found["choices"][0]["message"]["content"])


def result(call: Call) -> str:
    return call.record.headers["x-pipeline-cache"]


Scenario = Callable[[Exact], Awaitable[Any]]


@pytest.fixture
def run(options: dict[str, Any]) -> Callable[..., Any]:
    """Runs a scenario with an open cache over the store of this test, in front of an upstream."""

    def go(upstream: Any, scenario: Scenario, **config: Any) -> Any:
        async def main() -> Any:
            config_ = Exact.Config(**{**options, **config})
            cache = Exact(config_, Edge("cache", "next", "infer", upstream), name="cache")
            await cache.open()
            try:
                return await scenario(cache)
            finally:
                await cache.close()
                others = asyncio.all_tasks() - {asyncio.current_task()}
                assert not [task for task in others if "_probe" not in repr(task)]

        return asyncio.run(main())

    return go


async def text(cache: Exact, call: Call) -> str:
    return await read(await cache(call))


async def settled(cache: Exact) -> None:
    """Wait until what has been answered is kept."""
    await asyncio.gather(*cache.flights._tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "first", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
)
@pytest.mark.parametrize(
    "then", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
)
def test_an_answer_is_given_again_in_the_form_asked_for(run: Any, first: Any, then: Any) -> None:
    upstream = Upstream()

    async def scenario(cache: Exact) -> None:
        one = ask(first)
        said = await text(cache, one)
        await settled(cache)
        two = ask(then)
        reply = await cache(two)
        assert reply.streaming == bool(then)
        assert await read(reply) == said
        assert (result(one), result(two)) == ("miss", "hit")
        assert reply.usage == USAGE
        assert two.record.decision(Spent).saved == {"cache": 0.5}  # type: ignore[union-attr]
        assert two.record.decision(Spent).usd == 0  # type: ignore[union-attr]
        assert not two.record.steps

    run(upstream, scenario)
    assert len(upstream.calls) == 1


def test_another_tenants_answer_is_never_given(run: Any) -> None:
    """Kept or under way, streamed or not, whatever the order."""
    upstream = Upstream(0.01)

    async def scenario(cache: Exact) -> None:
        asked = [ask({"stream": s}, t) for _ in range(3) for s in (False, True) for t in (ANA, BOB)]
        texts = await asyncio.gather(*(text(cache, call) for call in asked))
        await settled(cache)
        again = [ask(dict(call.body), call.tenant) for call in asked]
        texts += await asyncio.gather(*(text(cache, call) for call in again))
        for call, said in zip(asked + again, texts, strict=True):
            assert f"for {call.tenant.owner}" in said
        assert {result(call) for call in again} == {"hit"}

    run(upstream, scenario)
    assert len(upstream.calls) == 2


def test_scopes_share_or_part_the_keys_of_an_owner(run: Any) -> None:
    second = replace(ANA, key="k9")

    def calls(scope: str) -> int:
        upstream = Upstream()

        async def scenario(cache: Exact) -> None:
            for tenant in (ANA, second, BOB, replace(BOB, models=frozenset({"m"}))):
                await text(cache, ask({"seed": len(scope)}, tenant))
                await settled(cache)

        run(upstream, scenario, scope=scope, version=scope)
        return len(upstream.calls)

    assert (calls("key"), calls("owner"), calls("global")) == (4, 3, 2)


def test_a_hundred_at_once_make_one_call_and_all_get_the_whole_answer(run: Any) -> None:
    upstream = Upstream(0.02)

    async def scenario(cache: Exact) -> None:
        calls = [ask({"stream": n % 2 == 0}) for n in range(100)]
        tasks = [asyncio.create_task(text(cache, call)) for call in calls]
        await until(lambda: bool(upstream.calls))
        leader = calls.index(upstream.calls[0])
        tasks.pop(leader).cancel()
        texts = await asyncio.gather(*tasks)
        assert len(set(texts)) == 1
        assert {result(call) for call in calls[:leader] + calls[leader + 1 :]} == {"hit"}

    run(upstream, scenario)
    assert len(upstream.calls) == 1


def test_followers_get_chunks_while_they_come(run: Any) -> None:
    upstream = Upstream(0.03, pieces=5)

    async def scenario(cache: Exact) -> None:
        first = await cache(ask({"stream": True}))
        got = [await anext(aiter(first))]
        second = await cache(ask({"stream": True}))
        chunks = [chunk async for chunk in second]
        assert len(chunks) >= 4
        got += [chunk async for chunk in first]
        assert b"".join(got) == b"".join(chunks)

    run(upstream, scenario)
    assert len(upstream.calls) == 1


def test_the_call_is_cancelled_when_nobody_wants_it_any_more(run: Any) -> None:
    upstream = Upstream(30)

    async def scenario(cache: Exact) -> None:
        tasks = [asyncio.create_task(cache(ask({}))) for _ in range(3)]
        await until(lambda: len(upstream.calls) == 1)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert upstream.cancelled == 0
        tasks[2].cancel()
        await until(lambda: upstream.cancelled == 1)
        assert cache.flights.get(cache.keys.of(ask({})).digest) is None

    run(upstream, scenario)


def test_a_stream_that_its_readers_left_is_cancelled_and_not_kept(run: Any) -> None:
    upstream = Upstream(0.01, pieces=1000)

    async def scenario(cache: Exact) -> None:
        replies = [await cache(ask({"stream": True})) for _ in range(2)]
        await anext(aiter(replies[0]))
        await replies[0].aclose()
        await replies[1].aclose()
        await until(lambda: upstream.cancelled == 1)
        await settled(cache)
        assert await cache.store.get(cache.keys.of(ask({}))) is None

    run(upstream, scenario)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("seed", range(4))
def test_clients_that_leave_at_random_never_spoil_anothers_answer(run: Any, seed: int) -> None:
    """300 calls of two tenants for three questions; a third of the clients leave at some moment."""
    chance = random.Random(seed)
    upstream = Upstream(0.003)

    async def client(cache: Exact, call: Call) -> None:
        await asyncio.sleep(chance.random() * 0.2)
        said = await text(cache, call)
        parts = said.rstrip(";").split(";")
        assert len(set(parts)) == 1
        assert len(parts) in (1, 3)
        number, owner = parts[0].split(" for ")
        assert owner == call.tenant.owner
        asked = upstream.calls[int(number) - 1]
        assert (asked.tenant, asked.body["seed"]) == (call.tenant, call.body["seed"])

    async def scenario(cache: Exact) -> None:
        calls = [
            ask({"seed": chance.randrange(3), "stream": chance.random() < 0.5}, chance.choice((ANA, BOB)))
            for _ in range(300)
        ]
        tasks = [asyncio.create_task(client(cache, call)) for call in calls]
        for task in chance.sample(tasks, 100):
            await asyncio.sleep(chance.random() * 0.004)
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in found if isinstance(error, Exception)]
        await until(lambda: not cache.flights._tasks)
        assert not cache.flights._flights

    # Answers are kept for a moment only, so that there are always flights to join and to leave.
    run(upstream, scenario, ttl=0.02)
    assert len(upstream.calls) >= 6


def test_a_failure_goes_to_all_who_wait_and_is_not_kept(run: Any) -> None:
    upstream = Upstream(0.01, error=UpstreamFailed("gone"))

    async def scenario(cache: Exact) -> None:
        found = await asyncio.gather(*(cache(ask({})) for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in found] == [UpstreamFailed] * 5
        assert len({id(error) for error in found}) == 5
        upstream.error = None
        assert await text(cache, ask({})) == "2 for ana"

    run(upstream, scenario)


def test_a_stream_that_breaks_breaks_for_all_and_is_not_kept(run: Any) -> None:
    async def broken(call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            yield Stream("chat", model="m").text("half")
            await asyncio.sleep(0.01)
            raise UpstreamFailed("broke")

        return Reply(chunks=chunks())

    async def scenario(cache: Exact) -> None:
        replies = [await cache(ask({"stream": True})) for _ in range(3)]
        for reply in replies:
            with pytest.raises(UpstreamFailed):
                await read(reply)
        await settled(cache)
        assert await cache.store.get(cache.keys.of(ask({}))) is None

    run(broken, scenario)


def test_each_keeps_to_its_own_deadline(run: Any) -> None:
    upstream = Upstream(0.2)

    async def scenario(cache: Exact) -> None:
        first = asyncio.create_task(text(cache, ask({}, seconds=0.1)))
        await until(lambda: bool(upstream.calls))
        patient = asyncio.create_task(text(cache, ask({}, seconds=30)))
        with pytest.raises(DeadlineExceeded):
            await text(cache, ask({}, seconds=0.02))
        with pytest.raises(DeadlineExceeded):
            await first
        assert await patient == "2 for ana"

    run(upstream, scenario)


def test_closing_ends_what_is_under_way_with_an_error(run: Any) -> None:
    upstream = Upstream(0.01, pieces=1000)

    async def scenario(cache: Exact) -> None:
        reply = await cache(ask({"stream": True}))
        await anext(aiter(reply))
        await cache.flights.close()
        with pytest.raises(Overloaded):
            await read(reply)

    run(upstream, scenario)


def test_headers_make_a_call_pass_by_or_renew(run: Any) -> None:
    upstream = Upstream()

    async def scenario(cache: Exact) -> None:
        async def said(**headers: str) -> tuple[str, str]:
            call = ask({}, **headers)
            answer = await text(cache, call)
            await settled(cache)
            return answer.split()[0], result(call)

        assert await said(cache_control="no-store") == ("1", "bypass")
        assert await said() == ("2", "miss")
        assert await said(cache_control="no-store") == ("2", "hit")
        assert await said(cache_control="no-cache") == ("3", "bypass")
        assert await said(cache_control="max-age=100") == ("3", "hit")
        await asyncio.sleep(0.01)
        assert await said(cache_control="max-age=0") == ("4", "miss")
        assert await said() == ("4", "hit")

    run(upstream, scenario)


def test_sampled_calls_pass_by(run: Any) -> None:
    upstream = Upstream()

    async def scenario(cache: Exact) -> None:
        for _ in range(2):
            call = ask({"temperature": 1})
            await text(cache, call)
            assert result(call) == "bypass"

    run(upstream, scenario)
    assert len(upstream.calls) == 2


def test_an_answer_too_large_is_given_whole_and_not_kept(run: Any) -> None:
    upstream = Upstream(pieces=2000)

    async def scenario(cache: Exact) -> None:
        replies = [await cache(ask({"stream": True})) for _ in range(3)]
        texts = await asyncio.gather(*map(read, replies))
        assert texts[0] == texts[1] == texts[2] == "1 for ana;" * 2000
        await settled(cache)
        assert await cache.store.get(cache.keys.of(ask({}))) is None
        large = await cache(ask({"stream": True}))
        plain = asyncio.create_task(text(cache, ask({})))
        await read(large)
        assert await plain == "3 for ana"

    run(upstream, scenario, max_entry_bytes=4096)


def test_refusals_are_kept_only_if_the_config_says_so(run: Any) -> None:
    upstream = Upstream(error=InvalidRequest("no"))

    async def scenario(cache: Exact) -> None:
        for _ in range(2):
            with contextlib.suppress(APIError):
                reply = await cache(ask({}))
                assert reply.status == 400
                assert reply.json["error"]["message"] == "no"
            await settled(cache)

    run(upstream, scenario)
    assert len(upstream.calls) == 2
    run(upstream, scenario, negative_ttl=60)
    assert len(upstream.calls) == 3


def test_invalidation_by_tag_owner_and_model(run: Any) -> None:
    upstream = Upstream()

    async def scenario(cache: Exact) -> None:
        async def asked(seed: int, tenant: Tenant, tags: str = "") -> str:
            call = ask({"seed": seed}, tenant, x_pipeline_cache_tags=tags)
            await text(cache, call)
            await settled(cache)
            return result(call)

        async def all_asked() -> list[str]:
            return [await asked(1, ANA, "t"), await asked(2, ANA), await asked(1, BOB)]

        assert await all_asked() == ["miss"] * 3
        assert await all_asked() == ["hit"] * 3
        await cache.invalidate("tag:t")
        assert await all_asked() == ["miss", "hit", "hit"]
        await cache.invalidate("owner:ana")
        assert await all_asked() == ["miss", "miss", "hit"]
        await cache.invalidate("model:m")
        assert await all_asked() == ["miss"] * 3
        await cache.invalidate("all")
        assert await all_asked() == ["miss"] * 3

    run(upstream, scenario)


def test_an_answer_begun_before_an_invalidation_is_not_kept(run: Any) -> None:
    upstream = Upstream(0.05)

    async def scenario(cache: Exact) -> None:
        under_way = asyncio.create_task(text(cache, ask({})))
        await until(lambda: bool(upstream.calls))
        await cache.invalidate("model:m")
        await under_way
        await settled(cache)
        again = ask({})
        await text(cache, again)
        assert result(again) == "miss"

    run(upstream, scenario)


def test_metrics_tell_what_happened(run: Any) -> None:
    async def scenario(cache: Exact) -> None:
        await text(cache, ask({}))
        await settled(cache)
        await text(cache, ask({}))
        await text(cache, ask({"temperature": 1}))
        found = {metric.name: metric.samples for metric in cache.pipeline_metrics()}
        calls = found["pipeline_cache_calls_total"]
        assert calls == {("cache", "hit"): 1, ("cache", "miss"): 1, ("cache", "bypass"): 1}
        assert found["pipeline_cache_stores_total"] == {("cache",): 1}
        if cache.config.store != "redis":
            assert found["pipeline_cache_entries"] == {("cache",): 1}
            assert found["pipeline_cache_bytes"][("cache",)] > 300

    run(Upstream(), scenario)


def test_a_store_that_is_down_is_passed_by(redis_process: Any) -> None:
    upstream = Upstream()

    async def main() -> None:
        config = Exact.Config(store="redis", redis=redis_process.url)
        cache = Exact(config, Edge("cache", "next", "infer", upstream), name="cache")
        await cache.open()
        redis_process.kill()
        for _ in range(3):
            call = ask({})
            await text(cache, call)
            assert result(call) == "bypass"
        vectors = ask({"input": "x"}, operation="embedding")
        await cache(vectors)
        assert result(vectors) == "bypass"
        await cache.close()

    asyncio.run(main())
    assert len(upstream.calls) == 4

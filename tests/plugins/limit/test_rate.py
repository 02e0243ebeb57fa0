"""`limit=token_bucket` and `limit=sliding_window`: whom they refuse, what they say, what comes back."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_plugins.limit.rate import duration
from pipeline_plugins.limit.sliding_window import SlidingWindow
from pipeline_plugins.limit.token_bucket import TokenBucket
from pipeline_plugins.redis_link import RedisLink
from pydantic import SecretStr, ValidationError

from pipeline import Call, Model, Reply, Usage
from pipeline.errors import InvalidRequest, Overloaded, RateLimited
from pipeline.kinds import Limited
from pipeline.wire.responses import Stream
from tests.plugins.limit.stages import call, limited, ok, until
from tests.redis_process import RedisProcess


@pytest.fixture(params=[TokenBucket, SlidingWindow])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


async def passes(stage: Any, made: Call) -> bool:
    try:
        await stage(made)
    except RateLimited:
        return False
    return True


async def settled(stage: Any) -> None:
    """Wait until all that is to come back has come back."""
    while stage._returns:
        await asyncio.wait(stage._returns)


async def left(stage: Any, made: Call | None = None) -> int:
    """Tokens left, as the next call is told: without what it takes itself."""
    await settled(stage)
    made = made or call()
    await stage(made)
    return int(made.record.headers["x-ratelimit-remaining-tokens"]) + 15


def test_the_first_of_the_limit_pass_and_the_next_is_refused(kind: Any, url: str | None) -> None:
    async def go() -> None:
        async with limited(kind, url, requests_per_minute=3) as stage:
            assert [await passes(stage, call()) for _ in range(5)] == [True] * 3 + [False] * 2
            assert (stage.admitted, stage.refused) == (3, 2)

    asyncio.run(go())


def test_a_refusal_says_which_limit_and_when_to_come_back(kind: Any, url: str | None) -> None:
    async def go() -> None:
        async with limited(kind, url, requests_per_minute=2) as stage:
            await stage(call())
            await stage(call())
            made = call()
            with pytest.raises(
                RateLimited, match="2 requests per minute for this key: 0 left, 1 asked"
            ) as caught:
                await stage(made)
            headers = dict(caught.value.headers)
            wait = int(headers[b"retry-after-ms"]) / 1000
            assert 0 < wait <= 61
            assert wait <= int(headers[b"retry-after"]) < wait + 1
            assert caught.value.error_code == "rate_limit_exceeded"
            assert made.record.decision(Limited) == Limited(False, "2 requests per minute for this key")
            assert made.record.headers["x-ratelimit-remaining-requests"] == "0"

    asyncio.run(go())


def test_every_answer_carries_the_tightest_limits(kind: Any, url: str | None) -> None:
    async def go() -> None:
        rules = [{"requests_per_minute": 600, "scope": "global"}]
        async with limited(kind, url, requests_per_minute=60, tokens_per_minute=6000, rules=rules) as stage:
            made = call()
            await stage(made)
            headers = made.record.headers
            assert headers["x-ratelimit-limit-requests"] == "60"
            assert headers["x-ratelimit-remaining-requests"] == "59"
            assert headers["x-ratelimit-limit-tokens"] == "6000"
            assert headers["x-ratelimit-remaining-tokens"] == "5985"
            assert re.fullmatch(r"(\d+m)?[\d.]+m?s", headers["x-ratelimit-reset-requests"])
            assert made.record.decision(Limited) == Limited(True)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (61.25, "1m1.25s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, says: str) -> None:
    assert duration(seconds) == says


@pytest.mark.parametrize(
    ("scope", "together", "apart"),
    [
        ("key", {"key": "k", "owner": "x"}, {"key": "l", "owner": "o"}),
        ("owner", {"key": "l", "owner": "o"}, {"key": "k", "owner": "x"}),
        ("model", {"key": "l", "owner": "x"}, {"model": "other"}),
        ("global", {"key": "l", "owner": "x", "model": "other"}, None),
    ],
)
def test_a_scope_says_what_counts_together(
    kind: Any, url: str | None, scope: str, together: dict[str, str], apart: dict[str, str] | None
) -> None:
    async def go() -> None:
        async with limited(kind, url, requests_per_minute=1, scope=scope) as stage:
            assert await passes(stage, call())
            assert not await passes(stage, call(**together))
            if apart is not None:
                assert await passes(stage, call(**apart))

    asyncio.run(go())


def test_all_rules_must_hold_and_a_refusal_leaves_no_trace(kind: Any, url: str | None) -> None:
    async def go() -> None:
        rules = [{"requests_per_minute": 1, "models": ["nick"]}]
        async with limited(kind, url, requests_per_minute=5, rules=rules) as stage:
            assert await passes(stage, call(model="nick"))
            assert not any([await passes(stage, call(model="other")) for _ in range(10)])
            assert [await passes(stage, call()) for _ in range(5)] == [True] * 4 + [False]

    asyncio.run(go())


def test_names_that_clients_make_up_share_one_limit(kind: Any, url: str | None) -> None:
    async def go() -> None:
        models = (Model(None, frozenset({"chat"})),)
        rules = [{"requests_per_minute": 1, "models": ["gpt"], "scope": "model"}]
        async with limited(
            kind, url, models=models, requests_per_minute=2, scope="model", rules=rules
        ) as stage:
            assert [await passes(stage, call(model=f"junk {n}")) for n in range(4)] == [
                True,
                True,
                False,
                False,
            ]
            assert [await passes(stage, call(model="gpt")) for _ in range(2)] == [True, False]

    asyncio.run(go())


def test_a_key_carries_limits_of_its_own(kind: Any, url: str | None) -> None:
    async def go() -> None:
        async with limited(kind, url, requests_per_minute=2) as stage:
            own = {"requests_per_minute": 4}
            assert sum([await passes(stage, call("rich", limit=own)) for _ in range(6)]) == 4
            assert sum([await passes(stage, call("poor")) for _ in range(6)]) == 2
            tokens = {"tokens_per_minute": 30}
            assert [await passes(stage, call("new", limit=tokens, max_tokens=20)) for _ in range(2)] == [
                True,
                False,
            ]
        async with limited(kind, url) as stage:
            assert (
                sum([await passes(stage, call("k", limit={"requests_per_minute": 3})) for _ in range(6)]) == 3
            )
            assert sum([await passes(stage, call("free")) for _ in range(6)]) == 6
        async with limited(kind, url, keys=False) as stage:
            assert (
                sum([await passes(stage, call("k", limit={"requests_per_minute": 3})) for _ in range(6)]) == 6
            )

    asyncio.run(go())


def test_a_request_that_can_never_pass_is_told_so(kind: Any, url: str | None) -> None:
    async def go() -> None:
        async with limited(kind, url, tokens_per_minute=100) as stage:
            with pytest.raises(InvalidRequest, match="may need 205 tokens, and the limit is 100") as caught:
                await stage(asking := call(max_tokens=200))
            assert caught.value.error_code == "exceeds_rate_limit"
            told = {f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")}
            assert asking.record.headers.keys() == told
            assert asking.record.headers["x-ratelimit-remaining-tokens"] == "100"
            assert asking.record.headers["x-ratelimit-reset-tokens"] == "0ms"
            assert not caught.value.headers
            # Where we guess the answer's length, the guess must not refuse it.
            assert await passes(stage, call(max_tokens=None))

    asyncio.run(go())


@pytest.mark.parametrize(
    ("body", "reserved"),
    [
        ({"max_tokens": 10}, 15),
        ({"max_completion_tokens": 20}, 25),
        ({"n": 3}, 35),
        ({"max_tokens": None}, 261),
        ({"max_tokens": 5000}, 1000),
        ({"model": "other", "max_tokens": 5000}, 5005),
    ],
)
def test_prompt_and_the_longest_answer_are_reserved_within_the_window(
    kind: Any, body: dict[str, Any], reserved: int
) -> None:
    seen: list[int] = []

    async def answer(made: Call) -> Reply:
        seen.append(int(made.record.headers["x-ratelimit-remaining-tokens"]))
        return await ok(made)

    async def go() -> None:
        async with limited(kind, answer=answer, tokens_per_minute=10_000) as stage:
            await stage(call(**body))

    asyncio.run(go())
    assert seen == [10_000 - reserved]


@pytest.mark.parametrize(
    "foreign", [{"prompt": []}, {"prompt": ["a", "b"]}, {"best_of": "abc"}, {"best_of": 10**9}]
)
def test_what_only_completions_know_changes_nothing_for_a_chat(foreign: dict[str, Any]) -> None:
    async def go() -> None:
        async with limited(TokenBucket, tokens_per_minute=100) as stage:
            made = call(**foreign)
            await stage(made)
            assert made.record.headers["x-ratelimit-remaining-tokens"] == "85"

    asyncio.run(go())


def test_a_models_own_count_is_taken(kind: Any) -> None:
    async def go() -> None:
        models = (Model("m", frozenset({"chat"}), count=lambda made: 77),)
        async with limited(kind, models=models, tokens_per_minute=1000) as stage:
            made = call()
            await stage(made)
            assert made.record.headers["x-ratelimit-remaining-tokens"] == "913"

    asyncio.run(go())


async def chunks(count: int, usage: Usage | None) -> AsyncIterator[bytes]:
    stream = Stream("chat", model="m", include_usage=usage is not None)
    for _ in range(count):
        yield stream.text("a")
    if usage is not None:
        yield stream.end(usage)


async def whole(made: Call) -> Reply:
    return Reply(body=b"{}", usage=Usage(5, 2))


async def streamed(made: Call) -> Reply:
    return Reply(chunks=chunks(3, Usage(5, 2)))


async def streamed_without_usage(made: Call) -> Reply:
    return Reply(chunks=chunks(2, None))


async def fails(made: Call) -> Reply:
    raise RuntimeError


async def refused(made: Call) -> Reply:
    return Reply.of({"error": {}}, status=500)


async def broken(made: Call) -> Reply:
    async def one() -> AsyncIterator[bytes]:
        async for chunk in chunks(2, None):
            yield chunk
        raise RuntimeError

    return Reply(chunks=one())


@pytest.mark.parametrize(
    ("answer", "used"),
    [(whole, 7), (streamed, 7), (streamed_without_usage, 7), (fails, 0), (refused, 0), (broken, 7)],
)
def test_what_was_not_used_comes_back(
    url: str | None, answer: Callable[[Call], Awaitable[Reply]], used: int
) -> None:
    async def go() -> None:
        # A sliding window gives nothing back by itself while the test runs.
        async with limited(SlidingWindow, url, answer=answer, tokens_per_minute=1000) as stage:
            try:
                async for _ in await stage(call()):
                    pass
            except RuntimeError:
                pass
            stage.next._stage = ok
            assert await left(stage) == 1000 - used

    asyncio.run(go())


def test_a_stream_that_is_left_is_charged_for_the_chunks_it_had(url: str | None) -> None:
    async def endless(made: Call) -> Reply:
        return Reply(chunks=chunks(10_000, None))

    async def go() -> None:
        async with limited(SlidingWindow, url, answer=endless, tokens_per_minute=1000) as stage:
            reply = await stage(call())
            reading = aiter(reply)
            for _ in range(4):
                await anext(reading)
            await reading.aclose()
            stage.next._stage = ok
            assert await left(stage) == 1000 - 5 - 4

    asyncio.run(go())


@pytest.mark.parametrize(("model", "used"), [(True, 5), (False, 0)])
def test_a_call_cancelled_before_its_reply_costs_its_prompt_if_a_model_had_it(
    url: str | None, model: bool, used: int
) -> None:
    async def hangs(made: Call) -> Reply:
        started.set()
        await asyncio.sleep(60)
        return await ok(made)

    async def go() -> None:
        async with limited(SlidingWindow, url, answer=hangs, tokens_per_minute=1000) as stage:
            behind = SimpleNamespace(models=()) if model else SimpleNamespace()
            stage.pipeline_opened(SimpleNamespace(stages={"infer": behind}))
            task = asyncio.create_task(stage(call()))
            await started.wait()
            task.cancel()
            await asyncio.wait([task])
            stage.next._stage = ok
            assert await left(stage) == 1000 - used

    started = asyncio.Event()
    asyncio.run(go())


def test_a_call_cancelled_while_redis_counts_it_costs_nothing(kind: Any, redis_process: RedisProcess) -> None:
    async def go() -> None:
        async with limited(kind, redis_process.url, tokens_per_minute=200, requests_per_minute=8) as stage:
            await stage._link.command("PING")
            redis_process.freeze()
            tasks = [asyncio.create_task(stage(call())) for _ in range(5)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            redis_process.thaw()
            await stage._link.command("PING")
            await settled(stage)
            made = call()
            await stage(made)
            assert made.record.headers["x-ratelimit-remaining-requests"] == "7"
            assert made.record.headers["x-ratelimit-remaining-tokens"] == "185"

    asyncio.run(go())


def test_what_another_limit_refuses_is_not_counted(kind: Any, url: str | None) -> None:
    async def overloaded(made: Call) -> Reply:
        raise Overloaded("full")

    async def go() -> None:
        async with limited(SlidingWindow, url, answer=overloaded, requests_per_minute=2) as stage:
            for _ in range(5):
                with pytest.raises(Overloaded):
                    await stage(call())
                await settled(stage)

    asyncio.run(go())


def test_returns_on_their_way_are_sent_before_closing(redis_url: str) -> None:
    async def go() -> None:
        async with limited(SlidingWindow, redis_url, name="shared-close", tokens_per_minute=1000) as stage:
            await asyncio.gather(*(stage(call()) for _ in range(20)))
            assert stage._returns
        async with limited(SlidingWindow, redis_url, name="shared-close", tokens_per_minute=1000) as stage:
            assert await left(stage) == 1000 - 20 * 7

    asyncio.run(go())


def test_two_stages_of_one_name_count_together_in_redis(kind: Any, redis_url: str) -> None:
    async def go() -> None:
        async with (
            limited(kind, redis_url, name=f"two-{kind.algorithm}", requests_per_minute=4) as one,
            limited(kind, redis_url, name=f"two-{kind.algorithm}", requests_per_minute=4) as two,
        ):
            got = await asyncio.gather(*(passes(stage, call()) for stage in (one, two) * 5))
            assert sum(got) == 4

    asyncio.run(go())


@pytest.mark.parametrize("trouble", ["freeze", "kill"])
def test_without_redis_local_limits_hold_and_it_recovers(
    kind: Any, redis_process: RedisProcess, redis_logs: list[Any], trouble: str
) -> None:
    async def go() -> None:
        async with limited(kind, redis_process.url, redis_timeout=0.3, requests_per_minute=3) as stage:
            await stage(call())
            getattr(redis_process, trouble)()
            redis_logs.clear()
            got = await asyncio.gather(*(passes(stage, call()) for _ in range(20)))
            assert sum(got) == 3
            assert [line["event"] for line in redis_logs] == ["redis is down"]
            states = {metric.name: metric.samples for metric in stage.pipeline_metrics()}
            assert states["pipeline_redis_up"] == {(stage.name,): 0.0}
            assert states["pipeline_redis_failures"] == {(stage.name,): 1.0}
            redis_process.thaw() if trouble == "freeze" else redis_process.start()
            await until(lambda: stage._link.up)
            assert await passes(stage, call("another"))

    asyncio.run(go())


def test_a_redis_that_may_not_run_scripts_counts_as_none(kind: Any, redis_process: RedisProcess) -> None:
    async def go() -> None:
        async with limited(kind, redis_process.url, requests_per_minute=3) as stage:
            await stage._link.command("ACL", "SETUSER", "default", "-@scripting")
            assert [await passes(stage, call()) for _ in range(5)] == [True] * 3 + [False] * 2

    asyncio.run(go())


def test_without_redis_all_is_refused_where_that_is_asked_for(kind: Any, redis_process: RedisProcess) -> None:
    redis_process.kill()

    async def go() -> None:
        async with limited(kind, redis_process.url, on_failure="refuse", requests_per_minute=3) as stage:
            with pytest.raises(Overloaded, match="does not answer") as caught:
                await stage(call())
            assert caught.value.headers == ((b"retry-after", b"1"),)

    asyncio.run(go())


def test_a_redis_that_refuses_us_keeps_the_graph_from_opening(redis_process: RedisProcess) -> None:
    async def go() -> None:
        link = RedisLink(redis_process.url)
        await link.command("CONFIG", "SET", "requirepass", "opensesame")
        await link.close()
        stage = TokenBucket(
            TokenBucket.Config(store="redis", redis=SecretStr(redis_process.url)),
            limited,
            "x",  # type: ignore[arg-type]
        )
        with pytest.raises(ValueError, match="the Redis refuses us"):
            await stage.open()

    asyncio.run(go())


def test_a_rule_without_a_limit_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="requests_per_minute or tokens_per_minute"):
        TokenBucket.Config(rules=[{"scope": "global"}])  # type: ignore[list-item]


def test_the_envelope_is_openais() -> None:
    async def go() -> RateLimited:
        async with limited(TokenBucket, requests_per_minute=1) as stage:
            await stage(call())
            with pytest.raises(RateLimited) as caught:
                await stage(call())
            return caught.value

    error = json.loads(asyncio.run(go()).body())["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)

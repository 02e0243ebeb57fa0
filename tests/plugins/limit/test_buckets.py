"""Both ways to count, in memory and in Redis: never above the limit, and waits that are true."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.limit import redis_buckets
from pipeline_plugins.limit.buckets import SlidingWindows, TokenBuckets, Verdict
from pipeline_plugins.limit.redis_buckets import RedisBuckets
from pipeline_plugins.limit.rules import WINDOW, Demand
from pipeline_plugins.redis_link import RedisLink

LIMIT = 10.0
STEP = 0.001


def demand(amount: float, name: str = "a", limit: float = LIMIT) -> Demand:
    return Demand(name, limit, amount, "tokens", "key")


class Memory:
    """The algorithm in this process, on a clock of the test's."""

    def __init__(self, algorithm: str) -> None:
        self.now = 1000.0
        kind = TokenBuckets if algorithm == "token_bucket" else SlidingWindows
        self.buckets = kind(lambda: self.now)

    async def take(self, demands: Sequence[Demand]) -> Verdict:
        return self.buckets.take(demands)

    async def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        self.buckets.give(demands, amounts, part)

    async def set_clock(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Shared:
    """The scripts as they are, but for a clock that the test sets."""

    def __init__(self, algorithm: str, url: str) -> None:
        self.now = 1_700_000_000.0
        self.name = uuid.uuid4().hex
        self.link = RedisLink(url, timeout=10)
        self.buckets = RedisBuckets(self.link, algorithm, self.name)
        lua = redis_buckets.LUA[algorithm]
        clock = f"redis.call('HMGET', '{self.name}', 's', 'us')"
        assert lua.count("redis.call('TIME')") == 1
        self.buckets._script = self.link.script(lua.replace("redis.call('TIME')", clock))

    async def set_clock(self) -> None:
        whole = round(self.now * 1e6)
        await self.link.command("HSET", self.name, "s", whole // 10**6, "us", whole % 10**6)

    async def take(self, demands: Sequence[Demand]) -> Verdict:
        await self.set_clock()
        return await self.buckets.take(demands)

    async def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        await self.set_clock()
        await self.buckets.give(demands, amounts, part)

    async def close(self) -> None:
        await self.link.command("DEL", self.name)
        await self.link.close()


class Case:
    """One algorithm in one store."""

    def __init__(self, algorithm: str, url: str | None) -> None:
        self.algorithm = algorithm
        self.url = url

    def run(self, work: Any) -> None:
        async def go() -> None:
            store = Memory(self.algorithm) if self.url is None else Shared(self.algorithm, self.url)
            try:
                await work(store)
            finally:
                await store.close()

        asyncio.run(go())


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


@pytest.fixture(params=["token_bucket", "sliding_window"])
def case(request: pytest.FixtureRequest, url: str | None) -> Case:
    return Case(request.param, url)


def within(algorithm: str, passed: list[tuple[float, float]]) -> None:
    """The algorithm's promise, for every span that begins and ends with a call that passed."""
    for first, (start, _) in enumerate(passed):
        for last in range(first, len(passed)):
            end = passed[last][0]
            total = sum(amount for _, amount in passed[first : last + 1])
            if algorithm == "token_bucket":
                assert total <= LIMIT * (1 + (end - start) / WINDOW) + 1e-4
            elif end - start < WINDOW:
                assert total <= LIMIT + 1e-4


steps = st.lists(
    st.tuples(st.integers(0, 20_000), st.integers(1, 10), st.booleans()), min_size=1, max_size=30
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_never_above_the_limit_and_a_wait_is_neither_too_long_nor_too_short(
    case: Case, steps: list[tuple[int, int, bool]]
) -> None:
    async def go(store: Any) -> None:
        passed: list[tuple[float, float]] = []
        for ms, amount, patient in steps:
            store.now += ms / 1000
            verdict = await store.take([demand(amount)])
            if verdict.refused >= 0 and patient:
                began = store.now
                assert verdict.wait > 0
                store.now = began + max(0.0, verdict.wait - STEP)
                assert verdict.wait <= STEP or (await store.take([demand(amount)])).refused == 0
                store.now = began + verdict.wait + STEP
                verdict = await store.take([demand(amount)])
                assert verdict.refused < 0
            if verdict.refused < 0:
                passed.append((store.now, amount))
        within(case.algorithm, passed)

    case.run(go)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_what_is_given_back_may_be_used_again_and_nothing_more(
    case: Case, steps: list[tuple[int, int, bool]]
) -> None:
    async def go(store: Any) -> None:
        passed: list[tuple[float, float]] = []
        for ms, amount, half in steps:
            store.now += ms / 1000
            verdict = await store.take([demand(amount)])
            if verdict.refused < 0:
                if half:
                    await store.give([demand(amount)], [amount / 2], verdict.part)
                passed.append((store.now, amount / 2 if half else amount))
        within(case.algorithm, passed)

    case.run(go)


def test_all_is_given_back_at_once(case: Case) -> None:
    async def go(store: Any) -> None:
        for _ in range(5):
            verdict = await store.take([demand(10)])
            assert verdict.refused < 0
            await store.give([demand(10)], [10], verdict.part)

    case.run(go)


def test_what_was_used_beyond_the_reservation_counts(case: Case) -> None:
    async def go(store: Any) -> None:
        verdict = await store.take([demand(5)])
        await store.give([demand(5)], [-10], verdict.part)
        store.now += 15
        assert (await store.take([demand(1)])).refused == 0
        store.now += 100
        assert (await store.take([demand(10)])).refused < 0

    case.run(go)


def test_a_refusal_takes_nothing_from_any_bucket(case: Case) -> None:
    async def go(store: Any) -> None:
        assert (await store.take([demand(8, "full")])).refused < 0
        for _ in range(20):
            refused = await store.take([demand(5, "free"), demand(3, "full")])
            assert refused.refused == 1
        assert (await store.take([demand(10, "free")])).refused < 0
        assert (await store.take([demand(2, "full")])).refused < 0

    case.run(go)


def test_levels_say_what_is_left_and_when_it_is_full_again(case: Case) -> None:
    async def go(store: Any) -> None:
        verdict = await store.take([demand(4), demand(1, "b", 100.0)])
        assert [level.remaining for level in verdict.levels] == pytest.approx([6, 99])
        store.now += verdict.levels[0].reset + STEP
        assert (await store.take([demand(10)])).refused < 0

    case.run(go)


@pytest.mark.parametrize("back", [1, 3600, 10**7])
def test_a_clock_that_steps_backwards_neither_locks_out_nor_lets_through(redis_url: str, back: int) -> None:
    for algorithm in ("token_bucket", "sliding_window"):

        async def go(store: Any) -> None:
            assert (await store.take([demand(10)])).refused < 0
            store.now -= back
            refused = await store.take([demand(10)])
            assert refused.refused == 0
            assert refused.wait <= WINDOW + 1
            store.now += refused.wait + STEP
            assert (await store.take([demand(10)])).refused < 0

        Case(algorithm, redis_url).run(go)


def test_every_key_in_redis_expires_and_has_the_same_hash_tag(redis_url: str) -> None:
    for algorithm in ("token_bucket", "sliding_window"):

        async def go(store: Any) -> None:
            await store.take([demand(1, name) for name in "abc"])
            keys = [key async for key in scan(store.link, f"*{{{store.name}}}*")]
            assert len(keys) == 3
            for key in keys:
                assert 0 < await store.link.command("PTTL", key) < 70_000
            assert len({key[key.index(b"{") : key.index(b"}")] for key in keys}) == 1

        Case(algorithm, redis_url).run(go)


async def scan(link: RedisLink, pattern: str) -> Any:
    cursor = b"0"
    while True:
        cursor, keys = await link.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        for key in keys:
            yield key
        if cursor == b"0":
            return


@pytest.mark.parametrize("kind", [TokenBuckets, SlidingWindows])
def test_idle_buckets_are_forgotten(kind: Any) -> None:
    now = 0.0
    buckets = kind(lambda: now)
    for index in range(20_000):
        now += 0.1
        buckets.take([demand(1, f"name {index}")])
    assert len(buckets) < 3_000

"""`limit=concurrency`: how many run at once, who waits for how long, and when slots come back."""

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.limit.concurrency import Concurrency
from pipeline_plugins.limit.line import Line, Waiter
from pipeline_plugins.limit.rules import Demand
from pipeline_plugins.redis_link import RedisLink

from pipeline import Call, Reply
from pipeline.errors import Forbidden, Overloaded
from pipeline.kinds import Limited
from tests.plugins.limit.stages import call, limited, ok, until
from tests.redis_process import RedisProcess


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


class Gate:
    """Answers one call for each `open()`; knows who is inside."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.most = 0
        self.served: list[str] = []
        self._permits = asyncio.Semaphore(0)

    async def __call__(self, made: Call) -> Reply:
        self.inside.append(made.tenant.key)
        self.most = max(self.most, len(self.inside))
        self.served.append(made.tenant.key)
        try:
            await self._permits.acquire()
        finally:
            self.inside.remove(made.tenant.key)
        return await ok(made)

    def open(self, many: int = 1) -> None:
        for _ in range(many):
            self._permits.release()


def test_while_nobody_knows_how_long_calls_take_clients_are_told_to_wait_a_second() -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, None, answer=gate, concurrent=1, queue=0) as stage:
            running = asyncio.create_task(stage(call()))
            await until(lambda: len(gate.inside) == 1)
            with pytest.raises(Overloaded) as caught:
                await stage(call())
            assert dict(caught.value.headers)[b"retry-after-ms"] == b"1000"
            gate.open()
            await running

    asyncio.run(go())


def test_so_many_run_at_once_and_the_rest_wait_their_turn(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, concurrent=3) as stage:
            tasks = [asyncio.create_task(stage(call())) for _ in range(10)]
            await until(lambda: len(gate.inside) == 3 and len(stage.line) == 7)
            gate.open(10)
            await asyncio.gather(*tasks)
            assert gate.most == 3
            assert (stage.admitted, stage.refused, len(stage.line)) == (10, 0, 0)

    asyncio.run(go())


def test_beyond_the_queue_calls_are_refused_at_once(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, concurrent=1, queue=2) as stage:
            tasks = [asyncio.create_task(stage(call())) for _ in range(3)]
            await until(lambda: len(gate.inside) == 1 and len(stage.line) == 2)
            made = call()
            with pytest.raises(Overloaded, match="1 calls in all already run, and 2 wait") as caught:
                await stage(made)
            assert b"retry-after" in dict(caught.value.headers)
            assert made.record.decision(Limited) == Limited(False, "1 calls in all")
            gate.open(3)
            await asyncio.gather(*tasks)

    asyncio.run(go())


def test_a_call_waits_no_longer_than_the_queue_allows(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, concurrent=1, queue_timeout=1) as stage:
            first = asyncio.create_task(stage(call()))
            await until(lambda: len(gate.inside) == 1)
            with pytest.raises(Overloaded):
                await stage(call())
            assert len(stage.line) == 0
            gate.open(2)
            await first
            await stage(call())

    asyncio.run(go())


def test_a_call_that_would_wait_too_long_is_refused_before_it_waits() -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, answer=gate, concurrent=1, queue_timeout=5) as stage:
            stage._held_for = 3.0
            tasks = [asyncio.create_task(stage(call())) for _ in range(2)]
            await until(lambda: len(stage.line) == 1)
            with pytest.raises(Overloaded) as caught:
                await stage(call())
            assert dict(caught.value.headers)[b"retry-after"] == b"6"
            gate.open(2)
            await asyncio.gather(*tasks)

    asyncio.run(go())


def test_who_waits_for_other_slots_does_not_make_a_wait_longer(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, queue_timeout=20) as stage:
            own = {"concurrent": 1}
            running = [asyncio.create_task(stage(call(f"k{n}", limit=own))) for n in range(6)]
            await until(lambda: len(gate.inside) == 6)
            waiting = [asyncio.create_task(stage(call(f"k{n}", limit=own))) for n in range(5)]
            await until(lambda: len(stage.line) == 5)
            stage._held_for = 5.0  # as measured: one call is ahead of the next, and not six
            waiting.append(asyncio.create_task(stage(call("k5", limit=own))))
            await until(lambda: len(stage.line) == 6 or waiting[-1].done())
            gate.open(12)
            await asyncio.gather(*running, *waiting)
            assert (
                stage.refused,
                len(stage.line),
                stage.line.wants(stage.rules.demands(call("k0", limit=own), None, None)),
            ) == (0, 0, False)

    asyncio.run(go())


@pytest.mark.parametrize("ending", ["read", "left", "broken", "unread"])
def test_a_streams_slot_is_free_when_the_stream_has_ended_however(url: str | None, ending: str) -> None:
    async def stream(made: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            if ending == "broken":
                raise RuntimeError
            yield b"data: 2\n\n"

        return Reply(chunks=chunks())

    async def go() -> None:
        async with limited(Concurrency, url, answer=stream, concurrent=1, queue_timeout=10) as stage:
            for _ in range(3):
                reply = await stage(call())
                if ending == "unread":
                    await reply.aclose()
                    continue
                reading = aiter(reply)
                with contextlib.suppress(RuntimeError):
                    await anext(reading)
                    if ending != "left":
                        async for _ in reading:
                            pass
                await reading.aclose()  # type: ignore[attr-defined]

    asyncio.run(go())


def test_failures_and_cancelled_calls_give_their_slots_back(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, concurrent=2) as stage:
            for _ in range(5):
                tasks = [asyncio.create_task(stage(call())) for _ in range(6)]
                await until(lambda: len(gate.inside) == 2 and len(stage.line) == 4)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                assert len(stage.line) == 0
            gate.open()
            await stage(call())

        async def fails(made: Call) -> Reply:
            raise RuntimeError

        async with limited(Concurrency, url, answer=fails, concurrent=1) as stage:
            for _ in range(5):
                with pytest.raises(RuntimeError):
                    await stage(call())

    asyncio.run(go())


def test_a_tenant_with_few_calls_does_not_wait_behind_all_of_anothers(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, url, answer=gate, concurrent=1, queue_timeout=60) as stage:
            tasks = [asyncio.create_task(stage(call("many"))) for _ in range(20)]
            await until(lambda: len(stage.line) == 19)
            tasks += [asyncio.create_task(stage(call("few"))) for _ in range(2)]
            await until(lambda: len(stage.line) == 21)
            for done in range(1, 23):
                gate.open()
                await until(lambda done=done: len(gate.served) > done or done == 22)
            await asyncio.gather(*tasks)
            assert "few" in gate.served[:3]
            assert gate.served[:6].count("few") == 2

    asyncio.run(go())


def test_limits_of_several_scopes_and_of_keys_hold_together(url: str | None) -> None:
    async def go() -> None:
        gate = Gate()
        rules = [{"concurrent": 2, "scope": "key"}]
        async with limited(Concurrency, url, answer=gate, concurrent=5, rules=rules) as stage:
            tasks = [asyncio.create_task(stage(call(key))) for key in "aaaa"]
            tasks += [asyncio.create_task(stage(call("b", limit={"concurrent": 1}))) for _ in range(3)]
            tasks += [asyncio.create_task(stage(call("c", limit={"concurrent": 4}))) for _ in range(4)]
            await until(lambda: len(gate.inside) == 5)
            assert Counter(gate.inside) == {"a": 2, "b": 1, "c": 2}
            with pytest.raises(Forbidden):
                await stage(call("d", limit={"concurrent": 0}))
            gate.open(20)
            await asyncio.gather(*tasks)

    asyncio.run(go())


def test_two_processes_share_slots_in_redis_and_a_killed_ones_come_back(redis_url: str) -> None:
    name = f"lease-{uuid.uuid4().hex}"

    async def go() -> None:
        gate, other = Gate(), Gate()
        options: dict[str, Any] = {"concurrent": 2, "lease": 1, "queue_timeout": 60, "name": name}
        async with (
            limited(Concurrency, redis_url, answer=other, **options) as second,
            limited(Concurrency, redis_url, answer=gate, **options) as first,
        ):
            held = [asyncio.create_task(first(call())) for _ in range(2)]
            await until(lambda: len(gate.inside) == 2)
            waiting = asyncio.create_task(second(call()))
            # Leases of calls that live are renewed: after two of their terms they are still held.
            await asyncio.sleep(2.2)
            assert not other.inside
            # As a kill would: nothing is renewed, nothing freed.
            first._running["renew"].cancel()
            await until(lambda: len(other.inside) == 1)
            other.open(1)
            await waiting
            gate.open(2)
            await asyncio.gather(*held)

    asyncio.run(go())


@pytest.mark.parametrize("policy", ["local", "refuse"])
def test_without_redis_slots_are_local_or_calls_refused(redis_process: RedisProcess, policy: str) -> None:
    redis_process.kill()

    async def go() -> None:
        gate = Gate()
        async with limited(
            Concurrency, redis_process.url, answer=gate, concurrent=1, on_failure=policy, queue_timeout=30
        ) as stage:
            if policy == "refuse":
                with pytest.raises(Overloaded, match="does not answer"):
                    await stage(call())
                return
            tasks = [asyncio.create_task(stage(call())) for _ in range(3)]
            await until(lambda: len(stage.line) == 2)
            assert len(gate.inside) == 1
            gate.open(3)
            await asyncio.gather(*tasks)
            assert len(stage.slots) == 0

    asyncio.run(go())


def test_a_redis_that_was_frozen_keeps_no_slot_of_calls_that_went_on_without_it(
    redis_process: RedisProcess,
) -> None:
    async def go() -> None:
        gate = Gate()
        options = {"redis_timeout": 0.3, "concurrent": 2, "lease": 600, "queue_timeout": 20}
        async with limited(Concurrency, redis_process.url, answer=gate, **options) as stage:
            before = asyncio.create_task(stage(call()))
            await until(lambda: len(gate.inside) == 1)
            redis_process.freeze()
            during = asyncio.create_task(stage(call()))
            await until(lambda: len(gate.inside) == 2)
            gate.open(2)
            await asyncio.gather(before, during)
            redis_process.thaw()
            await until(lambda: stage._link.up)
            after = [asyncio.create_task(stage(call())) for _ in range(2)]
            await until(lambda: len(gate.inside) == 2)
            gate.open(2)
            await asyncio.gather(*after)
            assert not stage._owed

    asyncio.run(go())


def test_closing_frees_what_is_leased(redis_url: str) -> None:
    name = f"close-{uuid.uuid4().hex}"

    async def go() -> None:
        gate = Gate()
        async with limited(Concurrency, redis_url, answer=gate, name=name, concurrent=1, lease=600) as stage:
            task = asyncio.create_task(stage(call()))
            await until(lambda: len(gate.inside) == 1)
        link = RedisLink(redis_url, timeout=5)
        keys = (await link.command("SCAN", 0, "MATCH", f"*{name}*", "COUNT", 100_000))[1]
        assert keys == []
        await link.close()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(go())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_in_line_each_tenant_is_first_come_first_served_and_none_overtaken_twice(names: list[str]) -> None:
    async def go() -> None:
        line = Line()
        for number, name in enumerate(names):
            expected = line.ahead(name, "b")
            waiter = Waiter(name, str(number), [Demand("b", 1, 1, "concurrent", "global")])
            line.add(waiter)
            assert list(line.turns()).index(waiter) <= expected
        served: list[Waiter] = []
        assert line.ahead("d", "another") == 0
        while line:
            waiter = next(line.turns())
            line.remove(waiter, served=True)
            served.append(waiter)
        for name in "abc":
            own = [int(waiter.id) for waiter in served if waiter.tenant == name]
            assert own == sorted(own)
        remaining = Counter(names)
        for waiter, following in pairwise(served):
            remaining[waiter.tenant] -= 1
            if waiter.tenant == following.tenant:
                assert all(not count for name, count in remaining.items() if name != waiter.tenant)

    asyncio.run(go())

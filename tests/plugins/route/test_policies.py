"""Policies that choose among equals: shares, turns, load, pace, price."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.route.cheapest import Cheapest
from pipeline_plugins.route.latency import Latency
from pipeline_plugins.route.least_busy import LeastBusy
from pipeline_plugins.route.pace import Pace, Peak
from pipeline_plugins.route.round_robin import RoundRobin
from pipeline_plugins.route.weighted import Weighted

from pipeline import Call, Edges, Model, Price, Reply, Spent, Usage
from pipeline.errors import InvalidRequest, UpstreamFailed
from pipeline.kinds import Routed
from pipeline.problems import ConfigError
from tests.plugins.route.calls import CHAT, a_call, an_edge, chunks_of, edges_of, read, run, some_edges, taken

NAMES = ("a", "b", "c", "d")


def picks(router: Any, count: int) -> Counter[str]:
    """How often each target is picked, of all that there are."""
    choices = router.targets.choices(a_call())
    return Counter(router.pick(choices).name for _ in range(count))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4), st.integers(0, 2**32))
def test_shares_are_as_the_weights_say(weights: list[float], seed: int) -> None:
    import random

    random.seed(seed)
    given = dict(zip(NAMES, weights, strict=False))
    router = Weighted(Weighted.Config(weights=given), edges_of(*given))
    found = picks(router, 4000)
    for name, weight in given.items():
        share = weight / sum(weights)
        deviation = (share * (1 - share) / 4000) ** 0.5
        assert abs(found[name] / 4000 - share) < 6 * deviation


def test_weight_nought_gets_only_what_no_other_can_serve() -> None:
    router = Weighted(Weighted.Config(weights={"b": 0}), edges_of("a", "b"))
    assert set(picks(router, 500)) == {"a"}
    assert run(taken(router, a_call(model="b"))) == "b"


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 50))
def test_turns_differ_by_one_at_most(targets: int, calls: int) -> None:
    router = RoundRobin(RoundRobin.Config(), edges_of(*NAMES[:targets]))

    async def go() -> Counter[str]:
        sent = [a_call() for _ in range(calls)]
        await asyncio.gather(*(router(call) for call in sent))
        return Counter(call.record.steps[-1].stage for call in sent)

    found = run(go())
    counts = [found[name] for name in NAMES[:targets]]
    assert sum(counts) == calls
    assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([*NAMES, "auto"]), max_size=60))
def test_named_calls_in_between_do_not_upset_the_turns(asked: list[str]) -> None:
    router = RoundRobin(RoundRobin.Config(), edges_of(*NAMES))

    async def go() -> None:
        recent: list[str] = []
        for name in asked:
            found = await taken(router, a_call(model=name))
            if name == "auto":
                # Nobody has waited longer than the one whose turn it is.
                assert found not in recent[-3:] or len(set(recent[-3:])) < 3
            recent.append(found)

    run(go())


class Slow:
    """Targets whose calls end when told to."""

    def __init__(self, names: Iterable[str], *, streaming: bool = False) -> None:
        self.waiting: dict[str, list[asyncio.Future[None]]] = {name: [] for name in names}
        self.streaming = streaming

    def edges(self) -> Edges:
        return some_edges(*(self._edge(name) for name in self.waiting))

    def _edge(self, name: str) -> Any:
        async def answer(call: Call) -> Reply:
            if self.streaming:
                return Reply(chunks=chunks_of([b"1", b"2"]))
            future = asyncio.get_running_loop().create_future()
            self.waiting[name].append(future)
            await future
            return Reply.of({})

        return an_edge(name, answer=answer)


@settings(deadline=None)
@given(st.lists(st.one_of(st.just(None), st.tuples(st.sampled_from(NAMES), st.booleans())), max_size=40))
def test_the_least_busy_is_never_busier_than_another(steps: list[tuple[str, bool] | None]) -> None:
    """None starts a call; a name ends one there, well or with an error."""
    slow = Slow(NAMES)
    router = LeastBusy(LeastBusy.Config(), slow.edges())

    async def go() -> None:
        tasks = []
        for step in steps:
            if step is None:
                before = {name: len(waiting) for name, waiting in slow.waiting.items()}
                call = a_call()
                tasks.append(asyncio.create_task(router(call)))
                await asyncio.sleep(0)
                assert before[call.record.steps[-1].stage] == min(before.values())
            elif slow.waiting[step[0]]:
                future = slow.waiting[step[0]].pop(0)
                if step[1]:
                    future.set_result(None)
                else:
                    future.set_exception(UpstreamFailed("gone"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert {n: load.in_flight for n, load in router.loads.items()} == {
                n: len(waiting) for n, waiting in slow.waiting.items()
            }
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(load.in_flight == 0 for load in router.loads.values())

    run(go())


@pytest.mark.parametrize("leaves", ["never", "before the first chunk", "in between"])
def test_a_stream_counts_until_it_ends_or_nobody_reads_it(leaves: str) -> None:
    router = LeastBusy(LeastBusy.Config(), Slow("a", streaming=True).edges())

    async def go() -> None:
        reply = await router(a_call())
        assert router.loads["a"].in_flight == 1
        if leaves == "never":
            assert await read(reply) == b"12"
        else:
            if leaves == "in between":
                await anext(aiter(reply))
            await reply.aclose()
        assert router.loads["a"].in_flight == 0

    run(go())


def paced(**seconds: float | None) -> tuple[Latency, list[Any]]:
    """A router that has seen each target take so long for its first token, and no time after it."""
    router = Latency(Latency.Config(explore=0), edges_of(*seconds))
    for name, first in seconds.items():
        if first is not None:
            router.paces[name].learn_stream(0, first, first, 2)
    return router, list(router.targets.choices(a_call()))


def chosen(router: Latency, choices: list[Any], count: int = 200, **body: Any) -> Counter[str]:
    call = a_call(**body)
    return Counter(router.pick(choices, call).name for _ in range(count))


def test_the_faster_is_preferred() -> None:
    assert set(chosen(*paced(a=0.5, b=0.1))) == {"b"}


def test_of_three_the_slowest_is_never_taken_and_the_fastest_most_often() -> None:
    found = chosen(*paced(a=0.3, b=0.1, c=0.2), count=2000)
    assert found["a"] == 0
    assert found["b"] > found["c"] > 0


def test_one_that_is_fast_but_busy_gives_way() -> None:
    router, choices = paced(a=0.1, b=0.25)
    router.paces["a"].in_flight = 2
    assert set(chosen(router, choices)) == {"b"}


def test_how_long_the_answer_will_be_decides_between_a_quick_start_and_a_quick_pace() -> None:
    router, choices = paced(starts=None, runs=None)
    router.paces["starts"].learn_stream(0, 0.1, 10.1, 101)
    router.paces["runs"].learn_stream(0, 1.0, 2.0, 101)
    assert set(chosen(router, choices, max_tokens=5)) == {"starts"}
    assert set(chosen(router, choices, max_tokens=100)) == {"runs"}


def test_one_that_nobody_has_tried_is_tried_by_one_call_at_a_time() -> None:
    router, choices = paced(a=0.1, b=None)
    assert set(chosen(router, choices)) == {"b"}
    router.paces["b"].in_flight = 1
    assert set(chosen(router, choices)) == {"a"}


def test_the_slower_is_still_probed_and_taken_again_when_it_got_faster() -> None:
    router, choices = paced(a=0.1, b=5.0)
    router.config.explore = 0.1
    found = chosen(router, choices, count=2000)
    assert 0 < found["b"] < 300
    router.paces["b"].learn_stream(100, 100.01, 100.01, 2)  # ten decays later
    assert chosen(router, choices)["b"] > 150


def test_failing_fast_is_not_fast() -> None:
    async def fails(call: Call) -> Reply:
        raise UpstreamFailed("refused")

    async def works(call: Call) -> Reply:
        return Reply.of({}, usage=Usage(1, 200))

    edges = some_edges(an_edge("broken", answer=fails), an_edge("works", answer=works))
    router = Latency(Latency.Config(explore=0), edges)

    async def go() -> Counter[str]:
        found: Counter[str] = Counter()
        for _ in range(50):
            call = a_call()
            with contextlib.suppress(UpstreamFailed):
                await router(call)
            found[call.record.steps[-1].stage] += 1
        return found

    assert run(go())["broken"] <= 1


def test_a_clients_mistake_says_nothing_of_the_pace() -> None:
    async def refuses(call: Call) -> Reply:
        raise InvalidRequest("no")

    router = Latency(Latency.Config(), some_edges(an_edge("a", answer=refuses)))
    with pytest.raises(InvalidRequest):
        run(router(a_call()))
    assert router.paces["a"].first.value is None
    assert router.paces["a"].in_flight == 0


def test_a_stream_teaches_the_time_to_the_first_token_and_of_each() -> None:
    pace = Pace(10)
    pace.learn_stream(sent=100, first=101, ended=103, tokens=5)
    assert (pace.first.value, pace.token.value) == (1, 0.5)
    assert pace.expected(10) == 6


def test_a_whole_reply_spreads_its_time_until_a_stream_tells_more() -> None:
    pace = Pace(10)
    pace.learn(sent=0, ended=10, tokens=9)
    assert (pace.first.value, pace.token.value) == (1, 1)
    pace.learn_stream(sent=1000, first=1000.5, ended=1000.5, tokens=1)
    pace.learn(sent=2000, ended=2010, tokens=10)
    assert pace.first.value == pytest.approx(0.5)
    assert pace.token.value == pytest.approx(0.95, abs=0.01)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), min_size=1))
def test_an_estimate_stays_between_what_was_seen_and_never_below_the_last(
    seen: list[tuple[float, float]],
) -> None:
    peak, now = Peak(10), 0.0
    for gap, value in seen:
        now += gap
        peak.add(value, now)
        assert peak.value is not None
        assert value - 1e-9 <= peak.value <= max(v for _, v in seen) + 1e-9


def priced(**prices: Price | None) -> Edges:
    return some_edges(*(an_edge(name, Model(name, CHAT, price=price)) for name, price in prices.items()))


def test_the_cheapest_depends_on_prompt_and_answer() -> None:
    edges = priced(reads=Price(0.1, 10.0), writes=Price(1.0, 1.0))
    router = Cheapest(Cheapest.Config(), edges)

    async def go() -> tuple[str, str]:
        await router.open()
        long = [{"role": "user", "content": "word " * 4000}]
        return await taken(router, a_call(messages=long, max_tokens=5)), await taken(router, a_call())

    assert run(go()) == ("reads", "writes")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_dearest_would_have_charged_more_is_noted_as_saved(streaming: bool) -> None:
    usage = b'{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":500}}'

    async def answer(call: Call) -> Reply:
        if streaming:
            return Reply(chunks=chunks_of([b"data: {}\n\n", b"data: " + usage + b"\n\n"]))
        return Reply(body=usage)

    edges = some_edges(
        an_edge("cheap", Model("cheap", CHAT, price=Price(1, 2)), answer=answer),
        an_edge("middle", Model("middle", CHAT, price=Price(5, 5)), answer=answer),
        an_edge("dear", Model("dear", CHAT, price=Price(10, 20)), answer=answer),
    )
    router = Cheapest(Cheapest.Config(), edges)

    async def go() -> Spent | None:
        await router.open()
        call = a_call(stream=streaming)
        await read(await router(call))
        assert call.record.decision(Routed) == Routed("cheap", "cheapest")
        return call.record.decision(Spent)

    spent = run(go())
    assert spent is not None
    assert spent.saved == {"route": pytest.approx(0.02 - 0.002)}


def test_nothing_is_saved_where_there_was_no_choice_or_the_dearest_was_named() -> None:
    router = Cheapest(Cheapest.Config(), priced(cheap=Price(1, 2), dear=Price(10, 20)))

    async def go() -> Spent | None:
        await router.open()
        call = a_call(model="dear")
        assert await taken(router, call) == "dear"
        return call.record.decision(Spent)

    assert run(go()) is None


def test_targets_without_a_price_come_last_and_the_config_may_give_one() -> None:
    async def go(**prices: Any) -> str:
        router = Cheapest(Cheapest.Config(prices=prices), priced(a=None, b=Price(1, 1)))
        await router.open()
        return await taken(router, a_call())

    assert run(go()) == "b"
    assert run(go(a={"prompt": 0.5, "completion": 0.5})) == "a"


def test_without_any_price_the_config_is_refused() -> None:
    router = Cheapest(Cheapest.Config(), edges_of("a", "b"))
    with pytest.raises(ConfigError, match="no target's price is known"):
        run(router.open())

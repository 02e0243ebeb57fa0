"""What is counted of calls and attempts, and under how many names."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator
from itertools import accumulate, pairwise
from math import inf
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.metrics import families
from pipeline_plugins.metrics.labels import ERRORS, OTHER_ERROR, Names
from pipeline_plugins.metrics.watch import Watch

from pipeline import Call, Edge, End, Model, Reply, Usage
from pipeline.errors import RateLimited, UpstreamFailed
from pipeline.kinds import Validated
from pipeline.price import Charge, Spent, charge
from pipeline.wire.responses import Stream

Numbers = dict[str, dict[tuple[str, ...], list[float]]]


async def whole(call: Call) -> Reply:
    return Reply(body=b"{}", usage=Usage(3, 4, 2), model="m")


async def streamed(call: Call) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        stream = Stream("chat", model="m", include_usage=True)
        yield stream.text("a")
        yield stream.text("b")
        yield stream.end(Usage(5, 6))

    return Reply(chunks=chunks())


class Counted:
    """Calls sent through an entry, a router and a model, and what was counted of them."""

    def __init__(self, answer: Any, models: tuple[Model, ...] = ()) -> None:
        names = Names(["big"])
        names.learn({"infer": models}, models)
        self.watch = Watch(names)
        self.watch.router("route")
        model = Edge("route", "next.infer", "infer", self.watch.attempt("infer", "openai")(answer))
        self.way = Edge("", "entry", "route", self.watch.entry(model))

    async def send(self, model: str = "default", read: int = 1000) -> None:
        body = {"model": model, "messages": []}
        reply = await self.way(
            Call(id="req_1", operation="chat", body=body, deadline=1e9, received=perf_counter())
        )
        chunks = aiter(reply)
        for _ in range(read):
            if await anext(chunks, None) is None:
                break
        await chunks.aclose()  # type: ignore[attr-defined]

    @property
    def numbers(self) -> Numbers:
        return {one.family.name: one.samples for one in self.watch.cells.read()}


def send(answer: Any, *models: str, read: int = 1000, known: tuple[Model, ...] = ()) -> Numbers:
    counted = Counted(answer, known)

    async def go() -> None:
        for model in models or ("default",):
            with contextlib.suppress(Exception):
                await counted.send(model, read)

    asyncio.run(go())
    return counted.numbers


def test_a_call_is_counted_with_its_duration_and_tokens() -> None:
    found = send(whole)
    assert found["pipeline_calls_total"] == {("chat", "default", "completed"): [1]}
    (duration,) = found["gen_ai_server_request_duration_seconds"].items()
    assert duration[0] == ("chat", "default", "")
    assert sum(duration[1][1:]) == 1
    attempt = ("chat", "openai", "default", "infer")
    usage = found["gen_ai_client_token_usage"]
    assert [usage[*attempt, type][0] for type in ("input", "output")] == [3, 4]
    assert found["pipeline_target_cached_tokens_total"][attempt] == [2]
    assert found["pipeline_calls_in_flight"] == {("chat",): [0]}
    assert found["pipeline_route_calls_total"] == {("route", "infer"): [1]}


def test_the_first_token_and_those_after_it_are_timed_in_streams_alone() -> None:
    for answer, times in ((whole, 0), (streamed, 1)):
        found = send(answer)
        for name in ("time_to_first_token", "time_per_output_token"):
            counts = found[f"gen_ai_server_{name}_seconds"]["chat", "default"][1:]
            assert sum(counts) == times, name
        chunks = found["gen_ai_client_operation_time_to_first_chunk_seconds"]
        assert sum(chunks["chat", "openai", "default", "infer"][1:]) == times


def test_the_times_between_chunks_of_a_stream_are_counted_one_by_one() -> None:
    found = send(streamed)["gen_ai_client_operation_time_per_output_chunk_seconds"]
    (counted,) = found.values()
    assert sum(counted[1:]) == 2  # three chunks


@given(st.lists(st.sampled_from([0.0, 0.01, 0.011, 0.5, 0.64, 81.92, 90.0]), max_size=40))
def test_each_time_between_chunks_is_in_its_bucket(gaps: list[float]) -> None:
    watch = Watch(Names())
    at = watch.cells.series(families.TIME_PER_CHUNK, ("chat", "openai", "m", "infer"))
    times = array("d", accumulate(gaps, initial=0.0))
    watch._spaced(at, End("completed", len(times), times[0], times[-1], None, times=times))
    numbers = list(watch.cells.values[at : at + families.TIME_PER_CHUNK.cells])
    spans = [after - before for before, after in pairwise(times)]
    bounds = [-1.0, *families.DURATION, inf]
    assert numbers[1:] == [sum(low < span <= high for span in spans) for low, high in pairwise(bounds)]
    assert numbers[0] == pytest.approx(sum(spans))


def test_a_stream_that_is_left_is_cancelled_and_no_longer_under_way() -> None:
    found = send(streamed, read=1)
    assert found["pipeline_calls_total"] == {("chat", "default", "cancelled"): [1]}
    assert found["pipeline_calls_in_flight"] == {("chat",): [0]}


@pytest.mark.parametrize(
    ("error", "type", "outcome"),
    [
        (RateLimited("no"), "rate_limit_exceeded", "refused"),
        (UpstreamFailed("no"), "upstream_failed", "failed"),
        (TimeoutError(), "timeout", "failed"),
        (ZeroDivisionError(), "ZeroDivisionError", "failed"),
    ],
)
def test_a_failure_is_counted_by_its_type(error: Exception, type: str, outcome: str) -> None:
    async def fail(call: Call) -> Reply:
        raise error

    found = send(fail)
    assert found["pipeline_calls_total"] == {("chat", "default", outcome): [1]}
    assert set(found["gen_ai_server_request_duration_seconds"]) == {("chat", "default", type)}
    assert set(found["gen_ai_client_operation_duration_seconds"]) == {
        ("chat", "openai", "default", "infer", type)
    }


def test_a_refusal_that_an_upstream_wrote_is_counted_by_its_status() -> None:
    async def refuse(call: Call) -> Reply:
        return Reply(body=b"{}", status=404)

    found = send(refuse)
    assert found["pipeline_calls_total"] == {("chat", "default", "refused"): [1]}
    assert set(found["gen_ai_server_request_duration_seconds"]) == {("chat", "default", "404")}


def test_models_that_the_graph_does_not_know_are_one() -> None:
    found = send(whole, *[f"junk-{n}" for n in range(50)], "big", "other")
    assert found["pipeline_calls_total"] == {
        ("chat", "other", "completed"): [51],
        ("chat", "big", "completed"): [1],
    }
    assert {labels[2] for labels in found["gen_ai_client_operation_duration_seconds"]} == {"other", "big"}


def test_junk_leaves_nothing_behind() -> None:
    counted = Counted(whole)

    async def go() -> None:
        for n in range(200):
            await counted.send(f"junk-{n}")

    asyncio.run(go())
    assert len(counted.watch._calls) == len(counted.watch._attempts) == 1


def test_an_attempt_at_a_stage_of_one_model_has_its_name() -> None:
    model = Model("llama", frozenset({"chat"}), aliases=("small",))
    found = send(whole, "default", "small", "junk", known=(model,))
    assert set(found["gen_ai_client_operation_duration_seconds"]) == {
        ("chat", "openai", "llama", "infer", "")
    }
    assert {labels[1] for labels in found["pipeline_calls_total"]} == {"default", "small", "other"}


def test_error_types_are_bounded() -> None:
    count = iter(range(1000))

    async def fail(call: Call) -> Reply:
        raise UpstreamFailed("no", code=f"code-{next(count)}")

    found = send(fail, *["default"] * (ERRORS + 50))
    types = {labels[-1] for labels in found["gen_ai_server_request_duration_seconds"]}
    assert len(types) == ERRORS + 1
    assert OTHER_ERROR in types


def test_a_stage_is_timed_without_what_it_passed_the_call_to() -> None:
    async def slow(call: Call) -> Reply:
        await asyncio.sleep(0.02)
        return await whole(call)

    stages = send(slow)["pipeline_stage_duration_seconds"]
    assert stages["infer",][0] >= 0.02 > stages["route",][0]


def test_checks_and_costs_are_counted_at_the_end() -> None:
    async def answer(call: Call) -> Reply:
        call.record.decide(Validated(False, ("json",), 2))
        call.record.decide(Spent([Charge("infer", "big", Usage(), 0.25)] * 2, {"cache": 0.125}))
        return await whole(call)

    found = send(answer)
    assert found["pipeline_validate_calls_total"] == {("failed",): [1]}
    assert found["pipeline_validate_retries_total"] == {(): [2]}
    assert found["pipeline_target_cost_usd_total"] == {("big", "infer"): [0.5]}
    assert found["pipeline_saved_usd_total"] == {("cache",): [0.125]}


def test_an_attempt_that_ends_after_its_call_has_its_cost_counted_once() -> None:
    left: list[asyncio.Task[Reply]] = []

    async def loses(call: Call) -> Reply:
        await asyncio.sleep(0.01)
        charge(call.record, Charge("infer", "big", Usage(), 0.25))
        return await whole(call)

    async def go() -> Numbers:
        counted = Counted(whole)
        attempt = counted.watch.attempt("infer", "openai")

        async def races(call: Call) -> Reply:
            left.append(asyncio.create_task(attempt(loses)(call)))  # type: ignore[arg-type]
            charge(call.record, Charge("infer", "big", Usage(), 0.5))
            return await whole(call)

        counted.way = Edge("", "entry", "route", counted.watch.entry(races))
        await counted.send()
        await left[0]
        return counted.numbers

    assert asyncio.run(go())["pipeline_target_cost_usd_total"] == {("big", "infer"): [0.75]}

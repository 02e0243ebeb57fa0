"""Calls that a stage makes on the way of its client's: attempts of the same trace."""

import asyncio
from collections import deque
from time import perf_counter

from opentelemetry.sdk.resources import Resource
from pipeline_plugins.aside import aside
from pipeline_plugins.trace.context import Ended
from pipeline_plugins.trace.spans import Spans
from pipeline_plugins.trace.watch import Watch

from pipeline import Call, Edge, Reply, Usage


async def answer(call: Call) -> Reply:
    return Reply(body=b"{}", usage=Usage(1, 1), model=f"{call.model}-1")


def test_they_have_spans_of_their_own_below_the_stage_that_they_were_sent_to() -> None:
    ended: deque[Ended] = deque()
    watch = Watch(ended.append, ratio=1.0)
    jury = Edge("judged", "judge", "judge", watch.attempt("judge", "openai")(answer))
    model = Edge("judged", "next", "infer", watch.attempt("infer", "echo")(answer))

    async def judged(call: Call) -> Reply:
        reply = await model(call)
        await jury(aside(call, "chat", {"model": "jury", "messages": [], "temperature": 0}))
        return reply

    async def go() -> None:
        entry = Edge("", "entry", "judged", watch.entry(judged))
        body = {"model": "client", "messages": [], "temperature": 1}
        await entry(Call(id="req_1", operation="chat", body=body, deadline=1e9, received=perf_counter()))

    asyncio.run(go())
    spans = {span.name: span for span in Spans(Resource({}), {}).of(ended[0])}
    parents = {name: span.parent.span_id if span.parent else 0 for name, span in spans.items()}
    assert parents["chat jury-1"] == spans["judge"].context.span_id  # type: ignore[union-attr]
    assert parents["chat client-1"] == spans["infer"].context.span_id  # type: ignore[union-attr]
    asked = {name: spans[name].attributes or {} for name in ("chat jury-1", "chat client-1")}
    assert [one["gen_ai.request.model"] for one in asked.values()] == ["jury", "client"]
    assert [one["gen_ai.request.temperature"] for one in asked.values()] == [0, 1]


def test_two_tracers_each_follow_an_attempt_once() -> None:
    taken: tuple[deque[Ended], deque[Ended]] = (deque(), deque())
    outer, inner = (Watch(ended.append, ratio=1.0) for ended in taken)

    async def go() -> None:
        attempt = outer.attempt("infer", "echo")(inner.attempt("infer", "echo")(answer))
        call = Call(
            id="req_1", operation="chat", body={"messages": []}, deadline=1e9, received=perf_counter()
        )
        await outer.entry(inner.entry(attempt))(call)

    asyncio.run(go())
    assert [len(ended[0].trace.attempts) for ended in taken] == [1, 1]

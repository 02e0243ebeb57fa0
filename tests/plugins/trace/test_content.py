"""Texts in spans: as the conventions have them, of whole answers and of streams."""

import asyncio
import json
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from pipeline_plugins.trace.context import Ended
from pipeline_plugins.trace.spans import Spans
from pipeline_plugins.trace.watch import Watch

from pipeline import Call, Reply, Usage
from pipeline.wire.responses import Stream

ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]},
    ],
}


async def whole(call: Call) -> Reply:
    message = {"role": "assistant", "content": "hello"}
    return Reply.of({"id": "c", "choices": [{"message": message, "finish_reason": "stop"}]})


async def streamed(call: Call) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        stream = Stream("chat", model="m", include_usage=True)
        yield stream.text("hel")
        yield stream.text("lo") + stream.finish("stop")
        yield stream.end(Usage(5, 6))

    return Reply(chunks=chunks())


def attributes(answer: Any, *, content: bool) -> dict[str, Any]:
    ended: list[Ended] = []
    watch = Watch(ended.append, ratio=1.0, collect=1000 if content else 0)

    async def go() -> None:
        call = Call(id="req_1", operation="chat", body=ASKED, deadline=1e9, received=perf_counter())
        async for _ in await watch.entry(answer)(call):
            pass

    asyncio.run(go())
    (span,) = Spans(Resource({}), {}, content=content).of(ended[0])
    assert span.attributes is not None
    return dict(span.attributes)


@pytest.mark.parametrize("answer", [whole, streamed])
def test_messages_are_there_if_asked_for(answer: Any) -> None:
    found = attributes(answer, content=True)
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "hello"}], "finish_reason": "stop"}
    ]


@pytest.mark.parametrize("answer", [whole, streamed])
def test_no_text_is_there_by_default(answer: Any) -> None:
    said = str(attributes(answer, content=False))
    assert "hello" not in said
    assert "brief" not in said

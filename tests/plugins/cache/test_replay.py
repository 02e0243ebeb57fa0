"""Answers kept in one form and given in the other; what is not whole is not kept."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.cache.replay import entry_of, reply_of
from pipeline_plugins.cache.store import Entry

from pipeline import Call, Usage
from pipeline.wire import responses, sse
from pipeline.wire.responses import Choice, Stream

USAGE = Usage(3, 4)
TOOLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}], "refusal": None}


def call(operation: str, stream: bool = False, usage: bool = False) -> Call:
    body: dict[str, Any] = {"model": "m", "stream": stream}
    if usage:
        body["stream_options"] = {"include_usage": True}
    return Call(id="r", operation=operation, body=body, deadline=1e9, received=0)


def given_as(entry: Entry, asked: Call) -> bytes:
    reply = reply_of(entry, asked)
    assert reply is not None
    assert reply.streaming == asked.streaming

    async def read() -> bytes:
        return b"".join([chunk async for chunk in reply])

    return asyncio.run(read())


def kept(form: Any, content: bytes) -> Entry:
    entry = entry_of(form, content, ttl=60, usage=USAGE)
    assert entry is not None
    return entry


@pytest.mark.parametrize("operation", ["chat", "completion"])
def test_a_body_is_streamed_and_assembles_to_the_same_body(operation: str) -> None:
    build = responses.chat_completion if operation == "chat" else responses.completion
    choices = [Choice("Hello", "stop"), Choice("Bye", "length", LOGPROBS if operation == "chat" else None)]
    body = build(choices, USAGE, model="m", fingerprint="fp")
    for usage in (False, True):
        stream = given_as(kept("json", orjson.dumps(body)), call(operation, True, usage))
        assert stream.endswith(sse.DONE)
        again = given_as(Entry("sse+usage" if usage else "sse", stream, 0, 0, usage=USAGE), call(operation))
        assert orjson.loads(again) == body
        assert (b'"usage":{' in stream) == usage


def test_tool_calls_survive_both_ways() -> None:
    body = responses.chat_completion([Choice(None, "tool_calls", None, TOOLS)], USAGE, model="m")
    stream = given_as(kept("json", orjson.dumps(body)), call("chat", True))
    again = orjson.loads(given_as(kept("sse", stream), call("chat")))
    assert again["choices"][0]["message"]["tool_calls"] == TOOLS
    assert again == body


def streamed(usage: bool) -> bytes:
    stream = Stream("chat", model="m", include_usage=usage)
    parts = [stream.start(), stream.text("Hel"), stream.text("lo"), stream.finish("stop"), stream.end(USAGE)]
    return b"".join(parts)


def test_a_stream_is_given_byte_for_byte() -> None:
    for usage in (False, True):
        content = streamed(usage)
        entry = kept("sse+usage" if usage else "sse", content)
        assert given_as(entry, call("chat", True, usage)) == content


def test_usage_is_put_into_a_stream_or_left_out_as_asked() -> None:
    added = given_as(kept("sse", streamed(False)), call("chat", True, True))
    events = [orjson.loads(block[6:]) for block in added.split(b"\n\n")[:-2]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == USAGE.as_dict()
    assert all(event["usage"] is None for event in events[:-1])
    removed = given_as(kept("sse+usage", streamed(True)), call("chat", True))
    assert b"usage" not in removed
    assert sse.assemble(removed)["choices"][0]["message"]["content"] == "Hello"  # type: ignore[index]


def test_usage_that_was_never_known_cannot_be_given() -> None:
    entry = entry_of("sse", streamed(False), ttl=60)
    assert entry is not None
    assert reply_of(entry, call("chat", True, True)) is None


@given(st.integers(0, len(streamed(True)) - 3))
def test_a_stream_cut_anywhere_is_not_kept(length: int) -> None:
    assert entry_of("sse+usage", streamed(True)[:length], ttl=60) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"error":{"message":"x"}}',
        b'{"choices":[]}',
        b'{"choices":[{"index":0,"finish_reason":null,"message":{}}]}',
    ],
)
def test_a_body_that_is_no_finished_answer_is_not_kept(content: bytes) -> None:
    assert entry_of("json", content, ttl=60) is None


def test_a_stream_with_an_error_or_without_a_reason_is_not_kept() -> None:
    failed = streamed(False).replace(sse.DONE, b'data: {"error":{"message":"x"}}\n\n' + sse.DONE)
    assert entry_of("sse", failed, ttl=60) is None
    assert entry_of("sse", streamed(False).replace(b'"stop"', b"null"), ttl=60) is None

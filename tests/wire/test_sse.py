"""Server-sent events, however the bytes are cut."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wire import sse
from pipeline.wire.usage import Usage, find_usage

STREAM = b'data: {"a": 1}\n\n: a comment\n\nevent: x\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\n'
BLOCKS = [b'data: {"a": 1}', b": a comment", b'event: x\ndata: {"b":\ndata: 2}', b"data: [DONE]"]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    splitter = sse.Splitter()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    assert splitter.rest == b""
    return blocks


@given(cuts=st.lists(st.integers(0, 1000), max_size=12), end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_blocks_are_the_same_wherever_the_bytes_are_cut(cuts: list[int], end: bytes) -> None:
    # A lone CR at the very end might be half of CRLF: it is held until something follows.
    data = STREAM.replace(b"\n", end) + (b"\n" if end == b"\r" else b"")
    assert split(data, cuts) == BLOCKS


def test_an_event_cut_short_stays_in_the_rest() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: 1\n\ndata: 2") == [b"data: 1"]
    assert splitter.rest == b"data: 2"


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    splitter = sse.Splitter(limit=100)
    splitter.feed(b"data: " + b"x" * 94)
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("block", "data"),
    [
        (b"data: x", b"x"),
        (b"data:x", b"x"),
        (b"data:  x", b" x"),
        (b"id: 1\ndata: x\ndata: y", b"x\ny"),
        (b": comment", None),
        (b"event: ping", None),
    ],
)
def test_the_data_of_a_block_are_its_data_lines(block: bytes, data: bytes | None) -> None:
    assert sse.data_of(block) == data


def test_events_are_parsed_and_the_end_mark_left_out() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield STREAM[:20]
        yield STREAM[20:]

    async def collect() -> list[dict[str, Any]]:
        return [event async for event in sse.events(chunks())]

    assert asyncio.run(collect()) == [{"a": 1}, {"b": 2}]


def chunk(**choice: Any) -> bytes:
    return sse.encode({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


def test_a_stream_is_put_together_by_choice() -> None:
    content = (
        chunk(index=1, delta={"role": "assistant", "content": ""})
        + chunk(index=0, delta={"role": "assistant", "content": "a"}, finish_reason=None)
        + chunk(index=1, delta={"content": "x"})
        + chunk(index=0, delta={"content": "b"})
        + chunk(index=0, delta={}, finish_reason="stop")
        + sse.encode({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
        + sse.DONE
    )
    whole = sse.assemble(content)
    assert whole is not None
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["ab", "x"]
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == 2


def test_tool_calls_are_put_together_from_their_fragments() -> None:
    def fragment(index: int, **rest: Any) -> bytes:
        return chunk(index=0, delta={"tool_calls": [{"index": index, **rest}]})

    whole = sse.assemble(
        fragment(0, id="call_a", type="function", function={"name": "f", "arguments": ""})
        + fragment(0, function={"arguments": '{"x"'})
        + fragment(1, id="call_b", type="function", function={"name": "g", "arguments": "{}"})
        + fragment(0, function={"arguments": ": 1}"})
        + sse.DONE
    )
    assert whole is not None
    calls = whole["choices"][0]["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "f", "arguments": '{"x": 1}'},
        {"name": "g", "arguments": "{}"},
    ]


def test_logprobs_of_a_stream_are_joined() -> None:
    whole = sse.assemble(
        chunk(index=0, delta={"content": "a"}, logprobs={"content": [1]})
        + chunk(index=0, delta={"content": "b"}, logprobs={"content": [2, 3]})
    )
    assert whole is not None
    assert whole["choices"][0]["logprobs"] == {"content": [1, 2, 3]}


def test_what_is_no_stream_of_completions_is_not_put_together() -> None:
    assert sse.assemble(b'data: {"x": 1}\n\ndata: [DONE]\n\n') is None
    assert sse.assemble(b"") is None


def test_usage_is_found_in_the_end_of_a_stream_but_not_in_text() -> None:
    quoted = chunk(index=0, delta={"content": '"usage":{"prompt_tokens":9,"completion_tokens":9}'})
    assert find_usage(quoted) is None
    end = sse.encode({"choices": [], "usage": Usage(1, 2, 1).as_dict()}) + sse.DONE
    assert find_usage(quoted + end) == Usage(1, 2, 1)
    assert find_usage(b'{"usage": {"prompt_tokens": "many"}}') is None
    for count in (b"true", b"-1", b"1e3", b"9223372036854775807"):
        assert find_usage(b'{"usage":{"prompt_tokens":1,"completion_tokens":%b}}' % count) is None
    assert find_usage(b'{"usage":{"prompt_tokens":1') is None

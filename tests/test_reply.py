"""Replies: passed on byte for byte, and seen whole at their end by who asked for it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from pipeline import End, Reply, Usage
from pipeline.wire import responses

USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}'
BODY = b'{ "id":"x", "text":"say \\"usage\\": {}", ' + USAGE + b"}"


def stream(*texts: str, usage: Usage | None = None) -> list[bytes]:
    """A chat completion's chunks, as the server would send them."""
    made = responses.Stream("chat", model="m", include_usage=usage is not None)
    chunks = [made.start(0), *(made.text(text, 0) for text in texts), made.finish("stop", 0)]
    return [chunk for chunk in [*chunks, made.end(usage or Usage())] if chunk]


class Source:
    """Chunks that tell whether they were closed."""

    def __init__(self, chunks: list[bytes], error: BaseException | None = None) -> None:
        self.chunks, self.error, self.closed = chunks, error, False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self.chunks:
                await asyncio.sleep(0)
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def read(reply: Reply, stop_after: int | None = None) -> list[bytes]:
    async def go() -> list[bytes]:
        got: list[bytes] = []
        chunks: Any = aiter(reply)
        try:
            async for chunk in chunks:
                got.append(chunk)
                if len(got) == stop_after:
                    break
        finally:
            await chunks.aclose()
        return got

    return asyncio.run(go())


def test_a_body_is_kept_byte_for_byte_and_parsed_once() -> None:
    reply = Reply(body=BODY)
    assert reply.json["id"] == "x"
    assert reply.json is reply.json
    assert reply.body is BODY
    assert read(reply) == [BODY]


def test_a_reply_has_a_body_or_chunks() -> None:
    with pytest.raises(ValueError, match="either"):
        Reply()
    with pytest.raises(ValueError, match="either"):
        Reply(body=b"", chunks=Source([])())


def test_the_content_type_says_what_it_is() -> None:
    assert Reply(body=b"{}").headers == [(b"content-type", b"application/json")]
    assert Reply(chunks=Source([])()).headers[0][1].startswith(b"text/event-stream")
    assert Reply(body=b"x", headers=[]).headers == []


def test_replies_do_not_share_headers() -> None:
    Reply(body=b"").headers.append((b"a", b"b"))
    assert len(Reply(body=b"").headers) == 1


def test_a_stream_has_no_json() -> None:
    with pytest.raises(ValueError, match="no body"):
        _ = Reply(chunks=Source([])()).json


@pytest.mark.parametrize("body", [b"[]", b"no json", b""])
def test_a_body_that_is_no_object_has_no_json(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _ = Reply(body=body).json


def test_usage_is_found_in_a_body_without_being_told() -> None:
    assert Reply(body=BODY).usage == Usage(3, 2, 1)
    assert Reply(body=b'{"usage":null}').usage is None
    assert Reply(body=b'{"usage":{"prompt_tokens":"3"}}').usage is None
    assert Reply(body=b"").usage is None
    assert Reply(body=BODY, usage=Usage(9)).usage == Usage(9)


def test_the_end_of_a_body_is_known_at_once() -> None:
    ends: list[End] = []
    Reply(body=BODY).on_end(ends.append)
    (end,) = ends
    assert (end.outcome, end.chunks, end.first_chunk, end.error) == ("completed", 0, None, None)
    assert end.usage == Usage(3, 2, 1)
    assert end.content() == BODY
    assert (end.assembled() or {})["id"] == "x"


def test_a_stream_that_nobody_observes_is_its_own_iterator() -> None:
    chunks = Source([b"a"])()
    assert aiter(Reply(chunks=chunks)) is chunks


def test_an_observed_stream_passes_every_chunk_as_it_is() -> None:
    ends: list[End] = []
    given = [b"data: {", b"}\n", b"\ndata: \xff\xfe\n\n", b""]
    reply = Reply(chunks=Source(given)())
    reply.on_end(ends.append)
    assert [got is sent for got, sent in zip(read(reply), given, strict=True)] == [True] * 4
    assert (ends[0].outcome, ends[0].chunks) == ("completed", 4)


def test_the_end_of_a_stream_has_times_usage_and_the_assembled_reply() -> None:
    ends: list[End] = []
    given = stream("Hel", "lo", usage=Usage(3, 2))
    reply = Reply(chunks=Source(given)())
    reply.on_end(ends.append, collect=100_000)
    read(reply)
    (end,) = ends
    assert end.usage == Usage(3, 2)
    assert end.first_chunk is not None
    assert end.first_chunk <= end.ended
    assembled = end.assembled() or {}
    assert assembled["object"] == "chat.completion"
    assert assembled["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert assembled["choices"][0]["finish_reason"] == "stop"
    assert end.content() == b"".join(given)


def test_usage_is_found_where_it_is_cut_between_two_chunks() -> None:
    ends: list[End] = []
    whole = b"".join(stream("a", usage=Usage(3, 2)))
    cut = whole.index(b'"usage":{') + 12
    reply = Reply(chunks=Source([whole[:cut], whole[cut:]])())
    reply.on_end(ends.append)
    read(reply)
    assert ends[0].usage == Usage(3, 2)


def test_usage_that_the_maker_knows_need_not_be_in_the_stream() -> None:
    ends: list[End] = []
    reply = Reply(chunks=Source(stream("a"))(), usage=Usage(7, 1))
    reply.on_end(ends.append)
    read(reply)
    assert ends[0].usage == Usage(7, 1)


def test_nothing_is_collected_unless_asked_for_or_beyond_the_bound() -> None:
    ends: list[End] = []
    for collect in (0, 10):
        reply = Reply(chunks=Source([b"12345678"] * 3)())
        reply.on_end(ends.append, collect=collect)
        assert len(read(reply)) == 3
    assert [(end.content(), end.assembled()) for end in ends] == [(None, None)] * 2


def test_the_widest_bound_of_several_observers_holds() -> None:
    ends: list[End] = []
    reply = Reply(chunks=Source([b"12345678"] * 3)())
    reply.on_end(ends.append, collect=100)
    reply.on_end(ends.append, collect=1)
    read(reply)
    assert [end.content() for end in ends] == [b"12345678" * 3] * 2


def test_a_stream_that_breaks_is_failed_with_its_error() -> None:
    ends: list[End] = []
    source = Source([b"a", b"b"], RuntimeError("upstream gone"))
    reply = Reply(chunks=source())
    reply.on_end(ends.append, collect=10)
    with pytest.raises(RuntimeError, match="upstream gone"):
        read(reply)
    (end,) = ends
    assert (end.outcome, end.chunks, str(end.error)) == ("failed", 2, "upstream gone")
    assert end.content() == b"ab"
    assert source.closed


def test_a_stream_that_is_not_read_to_its_end_is_cancelled_and_closed() -> None:
    ends: list[End] = []
    source = Source([b"a", b"b", b"c"])
    reply = Reply(chunks=source())
    reply.on_end(ends.append)
    assert read(reply, stop_after=2) == [b"a", b"b"]
    (end,) = ends
    assert (end.outcome, end.chunks, end.error) == ("cancelled", 2, None)
    assert source.closed


def test_a_reader_that_is_cancelled_cancels_the_stream() -> None:
    ends: list[End] = []
    closed: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def go() -> None:
        reply = Reply(chunks=endless())
        reply.on_end(ends.append)
        started = asyncio.Event()

        async def consume() -> None:
            async for _ in reply:
                started.set()

        task = asyncio.ensure_future(consume())
        await started.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert [(end.outcome, end.chunks) for end in ends] == [("cancelled", 1)]
    assert closed == [True]


def test_a_stream_that_is_never_read_is_closed_and_observed_once() -> None:
    ends: list[End] = []

    async def go() -> None:
        reply = Reply(chunks=Source([b"a"])())
        reply.on_end(ends.append)
        await reply.aclose()
        await reply.aclose()

    asyncio.run(go())
    assert [(end.outcome, end.chunks) for end in ends] == [("cancelled", 0)]


def test_closing_a_stream_that_was_begun_tells_what_had_passed() -> None:
    ends: list[End] = []
    source = Source([b"a", b"b", b"c"])

    async def go() -> None:
        reply = Reply(chunks=source())
        reply.on_end(ends.append)
        chunks = aiter(reply)
        assert await anext(chunks) == b"a"
        await reply.aclose()

    asyncio.run(go())
    assert [(end.outcome, end.chunks) for end in ends] == [("cancelled", 1)]
    assert source.closed


def test_a_stage_may_wrap_the_chunks_of_a_reply() -> None:
    inner: list[End] = []
    outer: list[End] = []
    source = Source([b"a", b"b"])
    reply = Reply(chunks=source())
    reply.on_end(inner.append)

    async def shouted() -> AsyncIterator[bytes]:
        async for chunk in reply:
            yield chunk.upper()

    wrapped = Reply(chunks=shouted())
    wrapped.on_end(outer.append)
    assert read(wrapped) == [b"A", b"B"]
    assert [end.outcome for end in inner + outer] == ["completed", "completed"]


def test_what_a_cut_off_stream_wraps_ends_before_it() -> None:
    ended: list[str] = []
    reply = Reply(chunks=Source([b"a", b"b"])())
    reply.on_end(lambda end: ended.append("inner"))
    wrapped = Reply(chunks=aiter(reply))
    wrapped.on_end(lambda end: ended.append("outer"))
    assert read(wrapped, stop_after=1) == [b"a"]
    assert ended == ["inner", "outer"]

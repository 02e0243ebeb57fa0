"""Responses written past ASGI's messages: framing is the server's, headers can't break out."""

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from pipeline.server.cycle import Cycle


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.ended = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def writelines(self, parts: Any) -> None:
        self.sent += b"".join(parts)

    def close(self) -> None:
        self.ended = True


def cycle(wire: Wire, *, keep_alive: bool = True, version: str = "1.1") -> Cycle:
    log = logging.getLogger("test")
    event = asyncio.Event()
    scope: Any = {"type": "http", "method": "POST", "http_version": version}
    return Cycle(scope, wire, FlowControl(wire), log, log, False, [], event, False, keep_alive, lambda: None)


def whole(headers: list[tuple[bytes, bytes]], body: bytes = b"{}", **options: bool) -> Wire:
    wire = Wire()
    asyncio.run(cycle(wire, **options).whole(200, headers, body))
    return wire


def test_a_whole_response_has_the_length_of_its_body_whatever_a_stage_claims() -> None:
    wire = whole([(b"Content-Length", b"9"), (b"transfer-encoding", b"chunked"), (b"x-a", b"1")])
    assert wire.sent == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n{}"
    assert not wire.ended


@pytest.mark.parametrize(
    "header", [(b"x", b"1\r\nset-cookie: a=b"), (b"x: y\r\nz", b"1"), (b"x", b"\x00"), (b"", b"1")]
)
def test_a_header_that_would_break_out_is_refused_and_nothing_is_sent(header: tuple[bytes, bytes]) -> None:
    wire = Wire()
    with pytest.raises(ValueError, match="header"):
        asyncio.run(cycle(wire).whole(200, [header], b"{}"))
    assert wire.sent == b""


def test_headers_of_stages_are_written_but_for_those_of_the_connection() -> None:
    wire = Wire()
    texts = {"x-a": "1", "Content-Length": "9", "connection": "close", "x-b": "caf\u00e9 \u2713"}
    asyncio.run(cycle(wire).whole(200, [], b"{}", texts))
    assert wire.sent == b"HTTP/1.1 200 OK\r\nx-a: 1\r\nx-b: caf\xe9 ?\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize("text", ["1\r\nset-cookie: a=b", "1\r\n", "\n", "\x00"])
def test_a_stages_header_that_would_break_out_is_refused(text: str) -> None:
    wire = Wire()
    with pytest.raises(ValueError, match="header"):
        asyncio.run(cycle(wire).whole(200, [(b"x-a", b"1")], b"{}", {"x-b": text}))
    assert wire.sent == b""


def test_a_response_that_closes_says_so_once_and_hangs_up() -> None:
    for wire in (whole([(b"connection", b"close")]), whole([], keep_alive=False)):
        assert wire.sent.count(b"connection: close\r\n") == 1
        assert wire.ended


def test_a_stream_is_framed_in_chunks_and_an_empty_piece_does_not_end_it() -> None:
    async def go() -> bytes:
        wire = Wire()
        one = cycle(wire)
        await one.start(200, [], b"a")
        one.write(b"")
        one.write(b"bc")
        one.end()
        return wire.sent.partition(b"\r\n\r\n")[2]

    assert asyncio.run(go()) == b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"


def test_a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_connection() -> None:
    async def go() -> Wire:
        wire = Wire()
        one = cycle(wire, keep_alive=False, version="1.0")
        await one.start(200, [], b"a")
        one.write(b"bc")
        one.end()
        return wire

    wire = asyncio.run(go())
    assert (wire.sent, wire.ended) == (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc", True)


def test_nothing_is_written_to_a_client_that_left() -> None:
    async def go() -> bytes:
        wire = Wire()
        one = cycle(wire)
        one.disconnected = True
        await one.start(200, [], b"a")
        one.write(b"b")
        one.end()
        return wire.sent

    assert asyncio.run(go()) == b""

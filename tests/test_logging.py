"""Log lines: whole lines in few writes, none lost, what is bad at once."""

import asyncio
import os
import select
from collections.abc import Iterator

import pytest

from pipeline.logging import GATHER, Lines


class Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def read(self) -> bytes:
        try:
            return os.read(self.reading, 1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    os.close(made.writing)


def test_outside_of_an_event_loop_every_line_is_written_at_once(pipe: Pipe) -> None:
    lines = Lines(pipe.writing)
    lines.info(b"a\n")
    assert pipe.read() == b"a\n"
    lines.info(b"b\n")
    assert pipe.read() == b"b\n"


def test_a_crowd_is_gathered_and_written_soon(pipe: Pipe) -> None:
    async def go() -> tuple[bytes, bytes]:
        lines = Lines(pipe.writing)
        for number in range(4):
            lines.info(b"%d\n" % number)
        first = pipe.read()
        await asyncio.sleep(2 * GATHER)
        return first, pipe.read()

    assert asyncio.run(go()) == (b"0\n", b"1\n2\n3\n")


def test_an_error_is_written_at_once_after_what_waits(pipe: Pipe) -> None:
    async def go() -> bytes:
        lines = Lines(pipe.writing)
        lines.info(b"a\n")
        lines.info(b"b\n")
        lines.error(b"c\n")
        return pipe.read()

    assert asyncio.run(go()) == b"a\nb\nc\n"


def test_what_waits_is_never_more_than_a_pipe_takes_in_one_piece(pipe: Pipe) -> None:
    line = b"x" * 1000 + b"\n"

    async def go() -> tuple[bytes, bytes]:
        lines = Lines(pipe.writing)
        for _ in range(50):
            lines.info(line)
        before = pipe.read()
        lines.flush()
        return before, pipe.read()

    before, rest = asyncio.run(go())
    assert before + rest == line * 50
    assert len(rest) <= select.PIPE_BUF


def test_a_descriptor_that_is_closed_fails_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    Lines(writing).error(b"lost\n")

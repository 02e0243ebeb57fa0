"""Log lines: whole lines in few writes, none lost, what is bad at once."""

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import orjson
import pytest

from pipeline import logging
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


@pytest.fixture(params=["pipe", "another user's pipe", "socket"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Where lines are read and written."""
    if request.param == "socket":
        reading, writing = (end.detach() for end in socket.socketpair())
    else:
        reading, writing = os.pipe()
    if request.param == "another user's pipe":

        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr("pipeline.logging.os.open", refuse)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("size", [100, 3 * select.PIPE_BUF])
def test_a_reader_that_is_frozen_holds_nobody_up_and_is_told_what_it_missed(
    ends: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "KEPT", 500_000)
    reading, writing = ends
    line = b'"%s"\n' % (b"x" * size)
    sent = 1_000_000 // size

    async def go() -> list[bytes]:
        lines = Lines(writing)
        for number in range(sent):
            (lines.error if number % 2 else lines.info)(line)
        os.set_blocking(reading, False)
        found = b""
        async with asyncio.timeout(30):
            while b"lost" not in found:
                await asyncio.sleep(0.01)
                with contextlib.suppress(BlockingIOError):
                    found += os.read(reading, 1 << 20)
        return found.splitlines(keepends=True)

    *kept, last = asyncio.run(go())
    assert set(kept) == {line}
    assert orjson.loads(last)["lines"] == sent - len(kept) > 0


def test_files_opened_later_take_no_standard_descriptors_number() -> None:
    code = "import os, sys; from pipeline.cli import main; sys.argv = ['pipeline', '--version']\n"
    code += "try: main()\nexcept SystemExit: os._exit(os.open(os.devnull, os.O_RDONLY) > 2 and 7)"
    ran = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], timeout=60)
    assert ran.returncode == 7


def test_a_descriptor_that_is_closed_fails_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    Lines(writing).error(b"lost\n")

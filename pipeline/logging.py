"""Where log lines go: pretty on a terminal, JSON elsewhere; always stderr.

Every line of a request has its `request_id`, and what else was bound with
`structlog.contextvars`; what is secret or personal in a line is masked, see `redaction`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic, sleep
from typing import Any

import orjson
import structlog
from structlog.typing import Processor

from pipeline.redaction import redactor

STDERR = 2

GATHER = 0.05
"""Seconds for which lines that follow another are gathered, to be written together."""

KEPT = 1024 * 1024
"""Bytes of lines that wait for whoever reads them."""

PATIENCE = 1.0
"""Seconds that the end of the process waits for it."""


def configure(*, beside_an_answer: bool = False) -> None:
    """Set structlog up, and send the standard library's warnings through it.

    `beside_an_answer` on a terminal: nothing but warnings, so that the answer stays whole.
    """
    level = logging.INFO
    factory: Any
    if os.isatty(STDERR):
        level = logging.WARNING if beside_an_answer else level
        chain: list[Processor] = [
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            _mask,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(),
        ]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    else:
        chain = [render]
        lines = Lines(STDERR)
        atexit.register(lines.end)
        factory = lambda *_: lines  # noqa: E731
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)


def render(logger: Any, level: str, event: Any) -> bytes:
    """A line of JSON: one processor instead of structlog's own, which take ten times as long."""
    structlog.contextvars.merge_contextvars(logger, level, event)
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    redactor.mask(event)
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def _mask(logger: Any, level: str, event: Any) -> Any:
    redactor.mask(event)
    return event


class Lines:
    """Writes lines to a descriptor: a line after a pause at once, a crowd of them together.

    In an event loop, `info` and `debug` may wait for `GATHER` seconds; whatever is worse
    is written at once, with all that waits. A write has whole lines, as many as a pipe
    takes in one piece, so that processes can share it. Nobody waits for whoever reads a pipe
    or a socket: what it does not take yet is kept, up to `KEPT` bytes; lines beyond are lost,
    and a line says how many. One that can't be written at all is lost: logging fails no call.
    """

    def __init__(self, descriptor: int) -> None:
        self._send = _sender(descriptor)
        self._lock = threading.RLock()
        self._held: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._written = 0.0
        self._waits_in: asyncio.AbstractEventLoop | None = None

    def info(self, line: bytes) -> None:
        """Write a line soon."""
        with self._lock:
            if self._size + len(line) > select.PIPE_BUF:
                self._write()
            self._hold(line)
        loop = _running()
        if loop is not None and loop is self._waits_in:
            return
        if loop is None or self._written + GATHER <= monotonic():
            self.flush()
        self._later(loop)

    debug = info

    def error(self, line: bytes) -> None:
        """Write a line now."""
        with self._lock:
            self._hold(line)
            self._write()
        self._later(_running())

    warning = critical = exception = fatal = error

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()

    def end(self) -> None:
        """Write what waits, and give whoever reads it a moment for that."""
        until = monotonic() + PATIENCE
        self.flush()
        while self._held and monotonic() < until:
            sleep(0.01)
            self.flush()

    def _later(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Come back for what waits."""
        if loop is not None and self._held and loop is not self._waits_in:
            self._waits_in = loop
            loop.call_later(max(self._written + GATHER - monotonic(), 0.0), self._waited)

    def _waited(self) -> None:
        loop, self._waits_in = self._waits_in, None
        self.flush()
        self._later(loop)

    def _hold(self, line: bytes) -> None:
        if self._size > KEPT:
            self._lost += 1
            return
        self._held.append(line)
        self._size += len(line)

    def _write(self) -> None:
        self._written = monotonic()
        while self._held:
            piece = self._piece()
            try:
                sent = self._send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(piece)
            self._size -= sent
            if sent < len(piece):
                self._held.appendleft(piece[sent:])
            if not sent:
                return
            if not self._held and self._lost:
                lost, self._lost = self._lost, 0
                self._hold(render(None, "warning", {"event": "log lines were lost", "lines": lost}))

    def _piece(self) -> bytes:
        """The next lines, as many as a pipe takes in one piece."""
        parts = [self._held.popleft()]
        size = len(parts[0])
        while self._held and size + len(self._held[0]) <= select.PIPE_BUF:
            parts.append(self._held.popleft())
            size += len(parts[-1])
        return b"".join(parts)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _sender(descriptor: int) -> Callable[[bytes], int]:
    """What writes to a descriptor, without waiting for whoever reads a pipe or a socket.

    Other processes may share both: a pipe is opened anew, so as not to change theirs.
    """
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            own = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return partial(os.write, own)
    except PermissionError:  # a pipe of another user's, as in containers
        return _polled(descriptor)
    except OSError:
        return partial(os.write, descriptor)
    return _polled(descriptor) if stat.S_ISSOCK(mode) else partial(os.write, descriptor)


def _polled(descriptor: int) -> Callable[[bytes], int]:
    """What asks first whether there is room; another process may still take it."""
    room = select.poll()
    room.register(descriptor, select.POLLOUT)

    def send(data: bytes) -> int:
        if not room.poll(0):
            raise BlockingIOError
        return os.write(descriptor, data[: select.PIPE_BUF])

    return send


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)

"""Where log lines go: pretty on a terminal, JSON elsewhere; always stderr.

Every line of a request has its `request_id`, and what else was bound with
`structlog.contextvars`; what is secret or personal in a line is masked, see `redaction`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import select
import sys
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import orjson
import structlog
from structlog.typing import Processor

from pipeline.redaction import redactor

STDERR = 2

GATHER = 0.05
"""Seconds for which lines that follow another are gathered, to be written together."""


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
        atexit.register(lines.flush)
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
    takes in one piece, so that processes can share it. A line that can't be written is
    lost: logging fails no call.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._held: list[bytes] = []
        self._size = 0
        self._written = 0.0
        self._waits_in: asyncio.AbstractEventLoop | None = None

    def info(self, line: bytes) -> None:
        """Write a line soon."""
        with self._lock:
            if self._size + len(line) > select.PIPE_BUF:
                self._write()
            self._held.append(line)
            self._size += len(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if loop is self._waits_in:
            return
        left = self._written + GATHER - monotonic()
        if left <= 0:
            self.flush()
        else:
            self._waits_in = loop
            loop.call_later(left, self._waited)

    debug = info

    def error(self, line: bytes) -> None:
        """Write a line now."""
        with self._lock:
            self._held.append(line)
            self._write()

    warning = critical = exception = fatal = error

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()

    def _waited(self) -> None:
        self._waits_in = None
        self.flush()

    def _write(self) -> None:
        self._written = monotonic()
        data, self._held, self._size = b"".join(self._held), [], 0
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)

"""Where log lines go: pretty on a terminal, JSON elsewhere; always stderr."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import Processor

STDERR = 2


def configure() -> None:
    """Set structlog up, and send the standard library's warnings through it."""
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    factory: Any
    if os.isatty(STDERR):
        chain: list[Processor] = [*shared, structlog.dev.ConsoleRenderer()]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    else:
        chain = [*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
        # The descriptor itself: one write for a line, whatever becomes of `sys.stderr`.
        factory = structlog.BytesLoggerFactory(open(STDERR, "wb", buffering=0, closefd=False))  # noqa: SIM115
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)


def _dumps(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)

"""Sending spans in batches, by a thread: calls never wait for whoever collects them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

BATCH = 256
"""Calls that are sent together, and of which so many begin a batch at once."""

log = structlog.get_logger("pipeline.trace")


class Batches(Generic[T]):
    """Hands items on in batches, every `seconds` or when enough wait.

    At most `bound` wait; more are dropped and counted. `send` says whether a batch was taken;
    one that was not is lost, for whoever collects may be away for long.
    """

    def __init__(self, send: Callable[[Sequence[T]], bool], *, seconds: float, bound: int) -> None:
        self._send = send
        self._seconds = seconds
        self._bound = bound
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.sent = self.dropped = self.failed = 0
        self.failing = False

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Take an item, if there is room."""
        if len(self._waiting) >= self._bound:
            self.dropped += 1
            return
        self._waiting.append(item)
        if len(self._waiting) == BATCH:
            self._wake.set()

    def close(self, timeout: float) -> None:
        """Send what waits, for at most so many seconds."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                well = self._send(batch)
            except Exception as error:
                log.error("spans could not be made", error=type(error).__name__)
                well = False
            if well:
                self.sent += len(batch)
            else:
                self.failed += len(batch)
            if well == self.failing:
                self.failing = not well
                log.log(20 if well else 30, "traces are taken again" if well else "traces are not taken")

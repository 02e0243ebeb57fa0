"""The thread that writes rows in batches, and the bounded queue before it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque

import structlog

from pipeline_plugins.ledger import rows
from pipeline_plugins.ledger.store import PIECE, Filter, Store
from pipeline_plugins.ledger.watch import Ended, Item

BATCH = 1000
"""Calls written in one transaction."""

TIDY = 600.0
"""Seconds between two looks for calls that are too old."""

PIECES = 10
"""Transactions of removals at one look: new rows must not wait for long."""

DAY = 86_400

log = structlog.get_logger("pipeline.ledger")


class Writer:
    """Takes what ended without waiting; drops and counts it while the queue is full.

    flush  seconds for which rows are gathered: what `kill -9` may lose
    bound  items that may wait
    days   after which calls are removed, None to keep them
    """

    def __init__(self, *, flush: float, bound: int, days: float | None) -> None:
        self.config = ""
        self.written = 0
        self.dropped = 0
        self.failing = False
        self._flush = flush
        self._bound = bound
        self._days = days
        self._queue: deque[Item] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: Store | None = None
        self._tidied = float("-inf")

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    def put(self, item: Item) -> None:
        """Take an item, or count it as dropped."""
        if len(self._queue) >= self._bound:
            self.dropped += 1
            return
        self._queue.append(item)

    def open(self, store: Store) -> None:
        """Start to write into a store, which is the thread's from now on."""
        self._store = store
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, once more if it must be, and close the store. Blocks."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        store = self._store
        if store is None:
            return
        while not self._stop.wait(self._flush):
            self._write_all(store)
            if self._days is not None and time.monotonic() > self._tidied + TIDY:
                self._tidy(store, self._days)
        self._write_all(store)
        if self._queue:
            log.error("calls are missing in the ledger", calls=len(self._queue))
        store.close()

    def _write_all(self, store: Store) -> None:
        """Write until the queue is empty. What can't be written waits in it for the next time."""
        while self._queue:
            # Only this thread takes items out, so that those looked at are those removed.
            batch = [self._queue[n] for n in range(min(BATCH, len(self._queue)))]
            try:
                self._write(store, batch)
            except sqlite3.Error as error:
                if not self.failing:
                    log.error("the ledger can't be written, calls wait", error=str(error)[:200])
                self.failing = True
                return
            for _ in batch:
                self._queue.popleft()
            if self.failing:
                log.warning("the ledger is written again", dropped=self.dropped)
            self.failing = False

    def _write(self, store: Store, batch: list[Item]) -> None:
        calls, attempts = [], []
        for item in batch:
            try:
                if isinstance(item, Ended):
                    calls.append(rows.of_call(item, self.config))
                    attempts += rows.of_attempts(item.attempts)
                else:
                    attempts += rows.of_attempts(item)
            except Exception:
                # One row that can't be made must not keep the others out.
                log.exception("a call can't be written down")
                self.dropped += 1
        store.add(calls, attempts)
        self.written += len(calls)

    def _tidy(self, store: Store, days: float) -> None:
        try:
            removed = store.remove(Filter(until=time.time() - days * DAY), PIECES)
        except sqlite3.Error as error:
            log.warning("old calls could not be removed from the ledger", error=str(error)[:200])
            removed = 0
        if removed < PIECES * PIECE:
            self._tidied = time.monotonic()

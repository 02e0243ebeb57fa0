"""The thread that writes rows in batches, and the bounded queue before it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import structlog

from pipeline_plugins.ledger import rows
from pipeline_plugins.ledger.bodies import Bodies
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable
from pipeline_plugins.ledger.store import PIECE, Batch, Entry, Filter, Store
from pipeline_plugins.ledger.watch import Ended, Item

BATCH = 1000
"""Calls written in one transaction."""

BODY_BYTES = 64 * 1024 * 1024
"""Bytes of bodies that may wait; calls beyond are written without theirs."""

FOLD = 20.0
"""Seconds between two foldings of the rollup."""

TIDY = 600.0
"""Seconds between two looks for calls that are too old."""

PIECES = 10
"""Transactions of removals at one look: new rows must not wait for long."""

SLOWEST = 10.0
"""Seconds between two tries, at most, while the database does not answer."""

STALLED = 5.0
"""Seconds that rows may wait for the database's answer before it counts as being down."""

PATIENCE = 10.0
"""Seconds that closing waits for what is not written yet."""

DAY = 86_400

log = structlog.get_logger("pipeline.ledger")


class Writer:
    """Takes what ended without waiting; drops and counts it while the queue is full.

    connect  opens the tables: raises `Unavailable` or `Unusable`
    flush    seconds for which rows are gathered: what `kill -9` may lose
    bound    items that may wait
    days     after which calls are removed, None to keep them
    """

    def __init__(
        self, connect: Callable[[], Store], *, flush: float, bound: int, days: float | None = None
    ) -> None:
        self.config = ""
        self.bodies = Bodies("none")
        self.written = 0
        self.dropped = 0
        self.bodies_dropped = 0
        self._connect = connect
        self._flush = flush
        self._bound = bound
        self._days = days
        self._queue: deque[Item] = deque()
        self._bytes_in = 0
        self._bytes_out = 0
        self._batches: deque[Batch] = deque()
        self._store: Store | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tries = 0
        self._busy_since: float | None = None
        self._broken = False
        self._folded = self._tidied = float("-inf")

    @property
    def waiting(self) -> int:
        """Calls and late attempts that are not written yet."""
        return len(self._queue) + sum(len(batch.entries) + len(batch.late) for batch in list(self._batches))

    @property
    def down(self) -> bool:
        """Whether rows can't be written now."""
        since = self._busy_since
        return self._broken or self._tries > 0 or (since is not None and time.monotonic() - since > STALLED)

    def put(self, item: Item) -> None:
        """Take an item, or count it as dropped."""
        if len(self._queue) >= self._bound or self._broken:
            self.dropped += 1
            return
        if isinstance(item, Ended) and (weight := item.weight):
            if self._bytes_in - self._bytes_out + weight > BODY_BYTES:
                item.request = item.reply = None
                self.bodies_dropped += 1
            else:
                self._bytes_in += weight
        self._queue.append(item)

    def open(self) -> None:
        """Connect and start to write. Raises `Unusable`; a database that is away is waited for."""
        try:
            self._store = self._connect()
        except Unavailable as error:
            self._failed(error)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, for `PATIENCE` seconds at most, and close the connection. Blocks."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive() and (store := self._store) is not None:
            store.database.abort()
            self._thread.join(1.0)
        self._thread = None
        if missing := self.waiting:
            log.error("calls are missing in the ledger", calls=missing)

    def _run(self) -> None:
        while not self._stop.wait(self._pause()):
            self._write_all()
            self._tidy()
        self._write_all()
        self._disconnect()

    def _pause(self) -> float:
        return min(self._flush * float(1 << min(self._tries, 20)), max(self._flush, SLOWEST))

    def _write_all(self) -> None:
        """Write until nothing waits. A batch that can't be written now is the first one next time."""
        while self._batches or self._queue:
            if not self._batches:
                self._batches.append(self._gather())
            batch = self._batches[0]
            try:
                self._write(batch)
            except (Unavailable, OSError) as error:
                self._failed(error)
                return
            except Refused as error:
                self._split(batch, error)
                continue
            except Unusable as error:
                self._give_up(error)
                return
            except Exception:
                # A fault of ours must not end the thread: all later calls would be lost.
                log.exception("calls can't be written down")
                self.dropped += len(batch.entries)
                batch = Batch()
            self._batches.popleft()
            self.written += len(batch.entries)
            if self._tries:
                log.warning("the ledger is written again", dropped=self.dropped)
            self._tries = 0

    def _write(self, batch: Batch) -> None:
        with self._busy():
            if self._store is None:
                self._store = self._connect()
            # A connection that broke while it committed has told nobody whether it did.
            if not (self._tries and self._store.has(batch)):
                self._store.add(batch)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """Rows wait while the database is asked for something; if it does not answer, that shows."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _gather(self) -> Batch:
        """Make the next rows; one that can't be made must not keep the others out."""
        batch = Batch()
        for _ in range(min(BATCH, len(self._queue))):
            item = self._queue.popleft()
            try:
                if isinstance(item, Ended):
                    self._bytes_out += item.weight
                    row = rows.of_call(item, self.config)
                    batch.entries.append(Entry(row, rows.of_attempts(item.attempts), self.bodies.of(item)))
                else:
                    batch.late += rows.of_attempts(item)
            except Exception:
                log.exception("a call can't be written down")
                self.dropped += 1
        return batch

    def _split(self, batch: Batch, error: Refused) -> None:
        """Try the calls of a batch one by one, so that only what is refused is lost."""
        self._batches.popleft()
        if len(batch.entries) + len(batch.late) <= 1:
            self.dropped += 1
            log.error("a call can't be written down", error=str(error)[:200])
            return
        self._batches.extend(Batch(entries=[entry]) for entry in batch.entries)
        self._batches.extend(Batch(late=[attempt]) for attempt in batch.late)

    def _failed(self, error: Exception) -> None:
        if not self._tries:
            log.error("the ledger can't be written, calls wait", error=str(error)[:200])
        self._tries += 1
        self._disconnect()

    def _give_up(self, error: Unusable) -> None:
        """Stop writing: what waits is lost, and so is what comes, until the configuration is loaded anew."""
        lost = self.waiting
        self._broken = True
        self._queue.clear()
        self._batches.clear()
        self.dropped += lost
        self._disconnect()
        log.error(
            "the ledger can't be written any more: mend it and reload", error=str(error)[:200], lost=lost
        )

    def _disconnect(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _tidy(self) -> None:
        """Fold the rollup and remove what is too old, now and then."""
        store, now = self._store, time.monotonic()
        if store is None or self._tries or self._broken:
            return
        try:
            with self._busy():
                if now > self._folded + FOLD and not store.fold(time.time()):
                    self._folded = now
                if now > self._tidied + TIDY:
                    store.prune(time.time())
                    if self._days is None or self._removed(store, self._days) < PIECES * PIECE:
                        self._tidied = now
        except Exception as error:
            # Whatever it is, say a damaged histogram: rows must go on to be written.
            log.warning("the ledger could not be tidied", error=str(error)[:200] or type(error).__name__)
            self._folded = self._tidied = now

    def _removed(self, store: Store, days: float) -> int:
        return store.remove(Filter(until=time.time() - days * DAY), PIECES)

"""Entries in a SQLite file: they outlive the process, and several processes share them.

SQLite's write-ahead log makes a kill at any moment harmless, and each entry's own checksum
catches what disks do to bytes. A file that SQLite finds damaged is set aside for a new one: a
cache can be empty, it can't be wrong. All file work happens in one thread of the store's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

import structlog

from pipeline_plugins.cache.store import MAX_TTL, Entry, Key, Stats, StoreDown, pack, unpack

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  digest BLOB PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL,
  expires REAL NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_used ON entries (used, size);
CREATE TABLE IF NOT EXISTS stamps (label TEXT PRIMARY KEY, stamp TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER, entries INTEGER);
INSERT OR IGNORE INTO total VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entries BEGIN
  UPDATE total SET bytes = bytes + NEW.size, entries = entries + 1;
END;
CREATE TRIGGER IF NOT EXISTS entry_gone AFTER DELETE ON entries BEGIN
  UPDATE total SET bytes = bytes - OLD.size, entries = entries - 1;
END;
"""

OVERHEAD = 160
"""Bytes of a row and its index entries besides the value."""

BUSY = 0.25
"""Seconds to wait for another process's write."""

PATIENCE = 5.0
"""Seconds after which a disk that does not answer counts as down."""

REST = 1.0
"""Seconds without the file after waiting for it in vain: calls would queue behind each other's waits."""

QUIET = 60.0
"""Seconds without a failure after which the next one is logged again: what fails while it is full
are writes, and reads go well in between."""

TOUCHED = 256
"""Entries whose use is noted in memory before the file learns of it."""

PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""What may go well later with the same file. All else that SQLite finds means that it is damaged."""

WAITED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""What comes only after a wait."""

log = structlog.get_logger("pipeline.cache")


class DiskStore:
    """A store in the folder `path`, of `max_bytes` for entries and their rows."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.stats = Stats()
        self._folder = Path(path).expanduser()
        self._file = self._folder / "entries.db"
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-disk")
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._failed = -QUIET
        self._rests_until = 0.0
        self._touched: dict[bytes, float] = {}

    async def open(self) -> None:
        """Open the file or make it. Raises OSError if the folder can't be used."""
        self._make_folder()
        try:
            await self._do(lambda database: None)
        except StoreDown:
            # A damaged file has made room for a new one.
            try:
                await self._do(lambda database: None)
            except StoreDown:
                raise OSError(f"the cache in {self._folder} can't be used; the log says why") from None

    async def close(self) -> None:
        """Write down which entries were used, and close the file."""
        if self._database is not None:
            with contextlib.suppress(StoreDown):
                await self._do(self._note_use)
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=True)

    async def get(self, key: Key) -> Entry | None:
        """The entry of a key: whole, this key's, fresh and not invalidated."""
        return await self._do(lambda database: self._read(database, key))

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """`get` for each of the keys."""
        return await self._do(lambda database: [self._read(database, key) for key in keys])

    async def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry; the least recently used go to make room."""
        await self.put_many({key: entry})

    async def put_many(self, entries: Mapping[Key, Entry]) -> None:
        """`put` for each of the entries, all or none of them."""
        await self._do(lambda database: self._write(database, entries))

    async def delete(self, key: Key) -> None:
        """Forget one entry."""
        await self._do(lambda database: self._delete(database, key))

    async def stamps(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels' stamps now."""
        return await self._do(lambda database: _stamps(database, labels))

    async def invalidate(self, label: str) -> None:
        """Make every entry with this label a miss, for all processes that share the file."""
        row = (label, token_hex(8), time.time() + MAX_TTL + 86_400)

        def write(database: sqlite3.Connection) -> None:
            with _transaction(database):
                database.execute("DELETE FROM stamps WHERE until < ?", (time.time(),))
                database.execute("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?)", row)

        await self._do(write)

    def _read(self, database: sqlite3.Connection, key: Key) -> Entry | None:
        row = database.execute("SELECT value FROM entries WHERE digest = ?", (key.digest,)).fetchone()
        if row is None:
            return None
        entry = unpack(key, row[0]) if isinstance(row[0], bytes) else None
        if entry is None:
            self.stats.errors += 1
            self._delete(database, key)
            return None
        if not entry.fresh() or _stamps(database, entry.labels) != entry.stamps:
            return None
        self._touched[key.digest] = time.time()
        if len(self._touched) >= TOUCHED:
            self._note_use(database)
        return entry

    def _write(self, database: sqlite3.Connection, entries: Mapping[Key, Entry]) -> None:
        now = time.time()
        rows = []
        for key, entry in entries.items():
            value = pack(key, entry)
            if (size := len(value) + OVERHEAD) <= self._max_bytes and entry.expires > now:
                rows.append((key.digest, value, size, entry.expires, now))
        self._note_use(database)
        with _transaction(database):
            database.executemany("DELETE FROM entries WHERE digest = ?", [row[:1] for row in rows])
            database.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            self._make_room(database)
            self._count(database)
        self.stats.stores += len(rows)

    def _make_room(self, database: sqlite3.Connection) -> None:
        (size,) = database.execute("SELECT bytes FROM total").fetchone()
        if size <= self._max_bytes:
            return
        evicted = []
        for digest, bytes_ in database.execute("SELECT digest, size FROM entries ORDER BY used"):
            evicted.append((digest,))
            size -= bytes_
            if size <= self._max_bytes:
                break
        database.executemany("DELETE FROM entries WHERE digest = ?", evicted)
        self.stats.evictions += len(evicted)

    def _delete(self, database: sqlite3.Connection, key: Key) -> None:
        with _transaction(database):
            database.execute("DELETE FROM entries WHERE digest = ?", (key.digest,))
            self._count(database)

    def _note_use(self, database: sqlite3.Connection) -> None:
        if not self._touched:
            return
        rows = [(used, digest) for digest, used in self._touched.items()]
        self._touched.clear()
        with _transaction(database):
            database.executemany("UPDATE entries SET used = ? WHERE digest = ?", rows)

    def _count(self, database: sqlite3.Connection) -> None:
        self.stats.bytes, self.stats.entries = database.execute("SELECT bytes, entries FROM total").fetchone()

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_rest()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)
        try:
            async with asyncio.timeout(PATIENCE):
                return await running
        except TimeoutError:
            self._note_failure("TimeoutError", "the disk does not answer", rest=True)
            raise StoreDown from None

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work on the file. Raises `StoreDown` if that fails, after making a damaged file new."""
        self._check_rest()
        try:
            return work(self._connected())
        except (sqlite3.Error, OSError, UnicodeDecodeError, TypeError) as error:
            # A damaged page can also come back as text that is none, or as a row that is not there.
            passing = self._passes(error)
            busy = (getattr(error, "sqlite_errorcode", 0) & 0xFF) in WAITED
            self._note_failure(type(error).__name__, str(error), new=not passing, rest=busy)
            if not passing:
                self._replace()
            raise StoreDown from None

    def _check_rest(self) -> None:
        if time.monotonic() < self._rests_until:
            raise StoreDown

    def _note_failure(self, kind: str, reason: str, *, new: bool = False, rest: bool = False) -> None:
        now, last = time.monotonic(), self._failed
        self.stats.errors += 1
        self._failed = -QUIET if new else now
        if rest:
            self._rests_until = now + REST
        if now - last >= QUIET:
            log.warning("cache file fails", error=kind, reason=reason, new=new)

    def _passes(self, error: Exception) -> bool:
        """Whether the same file may do again; else it is damaged."""
        if isinstance(error, OSError):
            return True
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY:
            # A damaged header may say that only a newer SQLite can write the file.
            return not os.access(self._file, os.W_OK)
        return (code & 0xFF) in PASSING

    def _connected(self) -> sqlite3.Connection:
        """The connection to the file that is there now: another process may have replaced it."""
        try:
            inode = self._file.stat().st_ino
        except FileNotFoundError:
            inode = 0
            self._make_folder()  # whoever empties a cache by hand removes it, too
        if self._database is not None and inode == self._inode:
            return self._database
        self._disconnect()
        with self._locked():
            database = sqlite3.connect(
                self._file, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("PRAGMA trusted_schema = OFF")
                database.executescript(SCHEMA)
            except BaseException:
                database.close()
                raise
            self._file.chmod(0o600)
            self._database = database
            self._inode = self._file.stat().st_ino
            self._count(database)
        return database

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _disconnect(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _replace(self) -> None:
        """Remove a damaged file, unless another process did so already."""
        opened = self._inode if self._database is not None else None
        self._disconnect()
        self._touched.clear()
        with contextlib.suppress(OSError), self._locked():
            if opened is None or self._file.stat().st_ino == opened:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._file}{suffix}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes that share the folder."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _stamps(database: sqlite3.Connection, labels: Sequence[str]) -> tuple[str, ...]:
    marks = ",".join("?" * len(labels))
    found = dict(database.execute(f"SELECT label, stamp FROM stamps WHERE label IN ({marks})", labels))  # noqa: S608
    return tuple(found.get(label, "") for label in labels)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")

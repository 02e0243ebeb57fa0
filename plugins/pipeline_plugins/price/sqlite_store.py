"""Accounts in an SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

from pipeline_plugins.price.journal import COLUMNS, Account, Batch, Totals
from pipeline_plugins.sqlite_file import write_ahead

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS spend (
  day TEXT NOT NULL, key TEXT NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL, tags TEXT NOT NULL,
  {", ".join(f"{column} INTEGER NOT NULL" for column in COLUMNS)},
  PRIMARY KEY (day, key, owner, model, tags)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (file TEXT PRIMARY KEY, applied INTEGER NOT NULL) WITHOUT ROWID;
"""

ADD = f"""
INSERT INTO spend VALUES (?, ?, ?, ?, ?, {", ".join("?" for _ in COLUMNS)})
ON CONFLICT DO UPDATE SET {", ".join(f"{column} = {column} + excluded.{column}" for column in COLUMNS)}
"""  # noqa: S608

BUSY = 10.0
"""Seconds to wait for another process's transaction."""


class SqliteStore:
    """Adds batches, each exactly once: a batch and how far its file is read go in together."""

    settles_reservations = False

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self._durable = durable
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file, and create it where it is missing. Raises OSError where it can't be."""
        try:
            await asyncio.to_thread(self._open)
        except sqlite3.Error as error:
            raise OSError(f"the accounts `{self.path}` can't be opened: {error}") from None

    async def applied(self, file: str) -> int:
        """How many bytes of a journal file are in the accounts."""
        return await asyncio.to_thread(self._applied, file)

    async def apply(self, batch: Batch) -> bool:
        """Add a batch, unless its file has been read from there on already."""
        return await asyncio.to_thread(self._apply, batch)

    async def totals(self, since: str, until: str) -> Totals:
        """The accounts of the days from `since` to `until`, both included."""
        return await asyncio.to_thread(self._totals, since, until)

    async def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            if not self.path.exists():
                self.path.touch(mode=0o600)
            db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            self._connection = db
            write_ahead(db, BUSY)
            db.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            db.executescript(SCHEMA)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the accounts are not open")
        return self._connection

    def _applied(self, file: str) -> int:
        with self._lock:
            row = self._db.execute("SELECT applied FROM journal WHERE file = ?", (file,)).fetchone()
        return row[0] if row is not None else 0

    def _apply(self, batch: Batch) -> bool:
        rows = [
            (account.day, account.key, account.owner, account.model, account.tags, *counts)
            for account, counts in batch.totals.items()
        ]
        with self._lock:
            db = self._db
            db.execute("BEGIN IMMEDIATE")
            try:
                row = db.execute("SELECT applied FROM journal WHERE file = ?", (batch.file,)).fetchone()
                if (row[0] if row is not None else 0) != batch.start:
                    db.execute("ROLLBACK")
                    return False
                db.executemany(ADD, rows)
                db.execute("INSERT OR REPLACE INTO journal VALUES (?, ?)", (batch.file, batch.end))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return True

    def _totals(self, since: str, until: str) -> Totals:
        with self._lock:
            found = self._db.execute("SELECT * FROM spend WHERE day BETWEEN ? AND ?", (since, until))
            return {
                Account(day, key, owner, model, tags): counts
                for day, key, owner, model, tags, *counts in found
            }

"""The ledger's tables in an SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_plugins.ledger.rows import ATTEMPTS, CALLS

VERSION = 1

BUSY = 10.0
"""Seconds to wait for another process's transaction."""

PIECE = 1000
"""Calls removed in one transaction."""

PAGES = 4000
"""Pages (of 4 KiB) of the write-ahead log, after which they go into the file."""

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS calls (
  row INTEGER PRIMARY KEY, {", ".join(f"{name} {type}" for name, type in CALLS.items())}
);
CREATE INDEX IF NOT EXISTS calls_time ON calls (time);
CREATE INDEX IF NOT EXISTS calls_owner ON calls (owner, time);
CREATE INDEX IF NOT EXISTS calls_answer ON calls (answer_id) WHERE answer_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS attempts (
  {", ".join(f"{name} {type}" for name, type in ATTEMPTS.items())}, PRIMARY KEY (call, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
  call TEXT PRIMARY KEY, time REAL NOT NULL, rating TEXT NOT NULL, comment TEXT, label TEXT
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""

COLUMNS = ", ".join(CALLS)

ADD_CALL = f"INSERT INTO calls ({COLUMNS}) VALUES ({', '.join('?' for _ in CALLS)})"  # noqa: S608

ADD_ATTEMPT = (
    "INSERT OR REPLACE INTO attempts SELECT row, "  # noqa: S608
    f"{', '.join(f'?{n}' for n in range(2, len(ATTEMPTS) + 1))} FROM calls WHERE id = ?1"
)
"""None is added where its call was dropped."""


@dataclass(slots=True, frozen=True)
class Filter:
    """Which calls are wanted; times in seconds since 1970, `until` excluded."""

    since: float | None = None
    until: float | None = None
    owner: str | None = None
    model: str | None = None

    def where(self) -> tuple[str, list[Any]]:
        """The condition and its values."""
        terms, values = ["1"], []
        for term, value in (
            ("time >= ?", self.since),
            ("time < ?", self.until),
            ("owner = ?", self.owner),
            ("coalesce(used, model) = ?", self.model),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        return " AND ".join(terms), values


class Store:
    """One connection, for one thread at a time. Raises OSError where the file can't be used at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = _connect(path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, calls: Iterable[tuple[Any, ...]], attempts: Iterable[tuple[Any, ...]]) -> None:
        """Write rows in one transaction; attempts that are there already are replaced."""
        with self._transaction():
            self._db.executemany(ADD_CALL, calls)
            self._db.executemany(ADD_ATTEMPT, attempts)

    def find(self, id: str, owner: str | None) -> str | None:
        """The request's id of a call by its own or its answer's, the newest; of an owner unless None."""
        row = self._db.execute(
            "SELECT id FROM calls WHERE (id = ?1 OR answer_id = ?1) AND (?2 IS NULL OR owner = ?2) "
            "ORDER BY time DESC LIMIT 1",
            (id, owner),
        ).fetchone()
        return row[0] if row is not None else None

    def rate(self, call: str, rating: str, comment: str | None, label: str | None) -> None:
        """Keep what was said of a call; it takes the place of what was said before."""
        values = (call, time.time(), rating, comment, label)
        self._db.execute("INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?, ?)", values)

    def ratings(self, wanted: Filter) -> Iterator[tuple[str, str, str, str]]:
        """Rating, model, tags and variants (JSON) of each call that was rated."""
        where, values = wanted.where()
        return self._db.execute(
            "SELECT rating, coalesce(used, model), tags, variants FROM feedback JOIN "  # noqa: S608
            f"(SELECT * FROM calls WHERE {where}) ON call = id",
            values,
        )

    def calls(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """Rows by time, each with its `attempts` and its `feedback`."""
        where, values = wanted.where()
        rows = self._db.execute(f"SELECT row, {COLUMNS} FROM calls WHERE {where} ORDER BY time", values)  # noqa: S608
        said = ("time", "rating", "comment", "label")
        names = list(ATTEMPTS)[1:]
        for number, *row in rows:
            call = dict(zip(CALLS, row, strict=True))
            attempts = self._db.execute("SELECT * FROM attempts WHERE call = ?", (number,))
            call["attempts"] = [dict(zip(names, values, strict=True)) for _, *values in attempts]
            feedback = self._db.execute(
                "SELECT time, rating, comment, label FROM feedback WHERE call = ?", (call["id"],)
            ).fetchone()
            call["feedback"] = dict(zip(said, feedback, strict=True)) if feedback is not None else None
            yield call

    def remove(self, wanted: Filter, pieces: int | None = None) -> int:
        """Remove calls with their attempts and feedback, in transactions of `PIECE`; returns how many."""
        where, values = wanted.where()
        removed = 0
        while pieces is None or pieces > 0:
            with self._transaction():
                found = self._db.execute(
                    f"SELECT row, id FROM calls WHERE {where} LIMIT {PIECE}",  # noqa: S608
                    values,
                ).fetchall()
                rows, ids = [(row,) for row, _ in found], [(id,) for _, id in found]
                self._db.executemany("DELETE FROM feedback WHERE call = ?", ids)
                self._db.executemany("DELETE FROM attempts WHERE call = ?", rows)
                self._db.executemany("DELETE FROM calls WHERE row = ?", rows)
            removed += len(found)
            if len(found) < PIECE:
                break
            pieces = pieces - 1 if pieces is not None else None
        return removed

    def forget(self, owner: str) -> int:
        """Remove all of an owner's calls, and what is left of them in the write-ahead log."""
        removed = self.remove(Filter(owner=owner))
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return removed

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its own files beside it the mode of the file itself.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db)
    except sqlite3.Error as error:
        db.close()
        raise OSError(f"the ledger `{path}` can't be opened: {error}") from None
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    until = time.monotonic() + BUSY
    while True:
        # SQLite does not wait its turn where several processes make one file's first connection.
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
    db.execute("PRAGMA secure_delete = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise OSError("the ledger was written by a newer release")
    if version < VERSION:
        db.executescript(SCHEMA)

"""The ledger in an SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline_plugins.ledger import schema
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable, Values
from pipeline_plugins.sqlite_file import write_ahead

BUSY = 10.0
"""Seconds to wait for another process's transaction."""

PAGES = 4000
"""Pages (of 4 KiB) of the write-ahead log, after which they go into the file."""

LATER = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_NOMEM,
)
"""Errors that may go away: another's lock, a full or failing disk."""


class SQLite:
    """A connection to a file, made where missing.

    Raises OSError where there can be no such file, `Unavailable` or `Unusable` where it can't be used.
    """

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)

    def execute(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Run a statement; its rows."""
        with _told():
            return self._db.execute(statement, values).fetchall()

    def many(self, statement: str, values: Iterable[Values]) -> None:
        """Run a statement for each of some values."""
        with _told():
            self._db.executemany(statement, values)

    def stream(self, statement: str, values: Values = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, a few at a time."""
        with _told():
            yield from self._db.execute(statement, values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it."""
        with _told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def alone(self) -> None:
        """Nothing to do: `BEGIN IMMEDIATE` has waited already."""

    def patient(self) -> None:
        """Nothing to do: statements have no bound."""

    def wipe(self) -> None:
        """Remove what is left in the write-ahead log; the file's own pages were overwritten.

        Raises `Unavailable` where others who read keep it from that.
        """
        ((busy, *_),) = self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise Unavailable(
                "others read it, so that what was removed is in its write-ahead log still; try again"
            )

    def abort(self) -> None:
        """Interrupt what runs."""
        self._db.interrupt()

    def close(self) -> None:
        """Close the file."""
        self._db.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what an error of SQLite means for who writes."""
    try:
        yield
    except (
        sqlite3.IntegrityError,
        sqlite3.DataError,
        sqlite3.InterfaceError,
        sqlite3.ProgrammingError,
    ) as error:
        raise Refused(str(error)) from error
    except sqlite3.Error as error:
        raise _kind(error)(str(error)) from error
    except OverflowError as error:  # an integer of more than 64 bits
        raise Refused(str(error)) from error


def _kind(error: sqlite3.Error) -> type[Unavailable | Unusable]:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return Unavailable if code in LATER else Unusable


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its own files beside it the mode of the file itself.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise _kind(error)(f"`{path}` can't be opened: {error}") from None
    return db


def _prepare(db: sqlite3.Connection) -> None:
    write_ahead(db, BUSY)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
    db.execute("PRAGMA secure_delete = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > schema.VERSION:
        raise Unusable("it was written by a newer release")
    if version < schema.VERSION:
        _make(db)


def _make(db: sqlite3.Connection) -> None:
    """Make tables, and columns that an older release did not have, unless another process just has."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in schema.tables("INTEGER PRIMARY KEY AUTOINCREMENT", " WITHOUT ROWID"):
            db.execute(statement)
        for table, columns in schema.TABLES.items():
            known = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
            for name in columns.keys() - known:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
        for statement in (*schema.indexes(), schema.started(int(time.time()))):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {schema.VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise

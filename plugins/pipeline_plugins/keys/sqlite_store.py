"""Keys in a SQLite file that several processes may share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from pipeline_plugins.keys.key import Key
from pipeline_plugins.keys.store import Conflict, StoreDown
from pipeline_plugins.sqlite_file import write_ahead

T = TypeVar("T")

BUSY = 5.0
"""Seconds to wait for another process's write."""

READ, WRITE = 1.0, 10.0
"""Seconds after which a disk that does not answer counts as down."""

VERSION = 1
"""Of the table's form, kept in the file's `user_version`."""

SCHEMA = f"""
create table if not exists keys (id text primary key, revision integer not null, record text not null)
  without rowid;
create unique index if not exists keys_revision on keys (revision);
pragma user_version = {VERSION};
"""

log = structlog.get_logger("pipeline.keys")


class SQLiteStore:
    """One file, in WAL mode, read by one thread of this process and written by another.

    File and folder are made for their owner alone (0600 in 0700). Each change is one
    transaction that is on disk before it is answered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = _Line(path, READ)
        self._writing = _Line(path, WRITE)

    async def open(self) -> None:
        """Make file and table where they are missing. Raises `StoreDown` if that can't be."""
        await self._writing.run(lambda connection: None)

    async def close(self) -> None:
        """Close the file."""
        await self._reading.close()
        await self._writing.close()

    async def find(self, id: str) -> Key | None:
        """One key."""

        def read(connection: sqlite3.Connection) -> Key | None:
            row = connection.execute("select revision, record from keys where id = ?", (id,)).fetchone()
            return None if row is None else _key(id, *row)

        return await self._reading.run(read)

    async def all(self) -> list[Key]:
        """Every key, the oldest first."""

        def read(connection: sqlite3.Connection) -> list[Key]:
            rows = connection.execute("select id, revision, record from keys").fetchall()
            return sorted((_key(*row) for row in rows), key=lambda key: (key.created_at, key.id))

        return await self._reading.run(read)

    async def save(self, key: Key) -> Key:
        """Write a key if it is still as it was read."""

        def write(connection: sqlite3.Connection) -> Key:
            connection.execute("begin immediate")
            with connection:
                row = connection.execute("select revision from keys where id = ?", (key.id,)).fetchone()
                if (row[0] if row is not None else 0) != key.revision:
                    raise Conflict(key.id)
                (last,) = connection.execute("select coalesce(max(revision), 0) from keys").fetchone()
                record = key.model_dump_json(exclude={"id", "revision"})
                values = (key.id, last + 1, record)
                connection.execute("insert or replace into keys values (?, ?, ?)", values)
            return key.model_copy(update={"revision": last + 1})

        return await self._writing.run(write)

    async def changes(self, since: int) -> tuple[int, list[str]]:
        """The newest revision, and what changed after `since`."""

        def read(connection: sqlite3.Connection) -> tuple[int, list[str]]:
            (newest,) = connection.execute("select coalesce(max(revision), 0) from keys").fetchone()
            if newest == since:
                return newest, []
            rows = connection.execute(
                "select id from keys where revision > ? and revision <= ?", (since, newest)
            )
            return newest, [id for (id,) in rows]

        return await self._reading.run(read)


class _Line:
    """A thread with a connection of its own."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work in the thread. Raises `StoreDown`, also if it takes too long."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        try:
            async with asyncio.timeout(self._seconds):
                return await running
        except TimeoutError:
            raise StoreDown(f"The keys in {self._path} can't be used: the disk does not answer.") from None

    async def close(self) -> None:
        """Close the connection and end the thread."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        await asyncio.get_running_loop().run_in_executor(thread, self._disconnect)
        thread.shutdown(wait=False)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
                self._inode = self._path.stat().st_ino
            elif self._path.stat().st_ino != self._inode:
                # Said once, so that who remembers keys of it asks anew.
                raise OSError("the file was replaced")
            return work(self._connection)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            raise StoreDown(f"The keys in {self._path} can't be used: {error}.") from None

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _connect(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True)
    # SQLite gives its journals the mode of the file itself. One that exists is not opened here:
    # closing it would end the locks that this process's connections have on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            log.warning("others may read the keys' digests; `chmod 600` it", path=str(path), mode=oct(mode))
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    write_ahead(connection, BUSY)
    connection.execute("pragma synchronous = full")
    (version,) = connection.execute("pragma user_version").fetchone()
    if version > VERSION:
        raise OSError("the file was written by a newer release")
    if version < VERSION:
        connection.executescript(SCHEMA)


def _key(id: str, revision: int, record: str) -> Key:
    try:
        return Key.model_validate({**json.loads(record), "id": id, "revision": revision})
    except ValueError:
        raise OSError(f"the record of `{id}` can't be read") from None

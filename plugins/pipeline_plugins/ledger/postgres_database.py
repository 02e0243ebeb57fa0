"""The ledger in PostgreSQL, shared by the processes of several machines."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline_plugins.ledger import schema
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable, Values

if TYPE_CHECKING:
    import psycopg

CONNECTION = {
    "connect_timeout": "5",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "application_name": "pipeline ledger",
}
"""What the URL may say otherwise: a server that vanished is noticed."""

SESSION = (
    "SET statement_timeout = '60s'",
    "SET lock_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '30s'",
    "SET client_encoding = 'UTF8'",
)
"""A process that was frozen must not hold the others' locks for ever."""

LOCK = 0x6C6564676572
"""The advisory lock of the rollup and of making tables: `ledger` in ASCII."""

WRONG = re.compile(
    r"FATAL: .*(authentication|database \".*\" does not exist|role \".*\" does not exist|permission)"
    r"|invalid port number"
)
"""Connections that will be refused again: libpq gives no code for them, only its words."""


class Postgres:
    """A connection by URL; tables are made, in a schema of their own, where they are missing.

    Raises ImportError without psycopg, `Unavailable` or `Unusable` where it can't connect.
    """

    def __init__(self, url: str, namespace: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ImportError("PostgreSQL needs psycopg: pip install 'llm-pipeline[postgres]'") from None
        from psycopg.conninfo import conninfo_to_dict
        from psycopg.types.numeric import Int8Dumper

        self._psycopg = psycopg
        try:
            with self._told():
                given = {**CONNECTION, **conninfo_to_dict(url)}
                self._db: psycopg.Connection[Any] = psycopg.connect(**given, autocommit=True)  # type: ignore[arg-type]
        except Unavailable as error:
            # Messages may have the URL's host and user, never its password.
            raise (Unusable(str(error)) if WRONG.search(str(error)) else error) from None
        # One type for all integers: statements are prepared once, whatever the values.
        self._db.adapters.register_dumper(int, Int8Dumper)
        try:
            self._prepare(namespace)
        except BaseException:
            self._db.close()
            raise

    def execute(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Run a statement; its rows."""
        with self._told():
            cursor = self._db.execute(_own(statement), values)
            return cursor.fetchall() if cursor.description is not None else []

    def many(self, statement: str, values: Iterable[Values]) -> None:
        """Run a statement for each of some values."""
        with self._told(), self._db.cursor() as cursor:
            cursor.executemany(_own(statement), values)

    def stream(self, statement: str, values: Values = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, a few at a time."""
        with self._told(), self._db.transaction(), self._db.cursor("ledger") as cursor:
            cursor.itersize = 1000
            yield from cursor.execute(_own(statement), values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it."""
        with self._told(), self._db.transaction():
            yield

    def alone(self) -> None:
        """Wait until no other connection holds the lock; it is free again at the transaction's end."""
        self.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))

    def patient(self) -> None:
        """Lift the bound on a statement's time."""
        self.execute("SET statement_timeout = 0")

    def wipe(self) -> None:
        """Free what was removed; its place on the disk is written over when it is used again."""
        for table in schema.TABLES:
            self.execute(f"VACUUM {table}")

    def abort(self) -> None:
        """Shut the connection's socket: whoever waits on it is told at once."""
        with (
            contextlib.suppress(OSError, self._psycopg.Error),
            socket.socket(fileno=os.dup(self._db.pgconn.socket)) as own,
        ):
            own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _prepare(self, namespace: str) -> None:
        for statement in SESSION:
            self.execute(statement)
        self.execute(f"SET search_path = {namespace}")
        if self._version() < schema.VERSION:
            with self.transaction():
                self.alone()
                self._make(namespace)

    def _version(self) -> int:
        if self.execute("SELECT to_regclass('meta')") == [(None,)]:
            return 0
        found = self.execute("SELECT value FROM meta WHERE name = 'version'")
        version = int(found[0][0]) if found else 0
        if version > schema.VERSION:
            raise Unusable("it was written by a newer release")
        return version

    def _make(self, namespace: str) -> None:
        """Make tables, and columns that an older release did not have, unless another process just has."""
        if self._version() >= schema.VERSION:
            return
        if self.execute("SELECT to_regnamespace(?)", (namespace,)) == [(None,)]:
            self.execute(f"CREATE SCHEMA {namespace}")
        for statement in schema.tables("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"):
            self.execute(statement)
        for table, columns in schema.TABLES.items():
            for name, type in columns.items():
                self.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {type}")
        for statement in (*schema.indexes(), schema.started(int(time.time()))):
            self.execute(statement)
        self.execute(
            "INSERT INTO meta (name, value) VALUES ('version', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (schema.VERSION,),
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what an error of PostgreSQL means for who writes, by its class."""
        errors = self._psycopg
        try:
            yield
        except (errors.DataError, errors.IntegrityError) as error:
            raise Refused(_line(error)) from error
        except errors.ProgrammingError as error:
            raise Unusable(_line(error)) from error
        except errors.Error as error:
            raise Unavailable(_line(error)) from error


def _own(statement: str) -> Any:
    return statement.replace("?", "%s")


def _line(error: Exception) -> str:
    """The first line of a message: those that follow may quote values."""
    return str(error).strip().partition("\n")[0]

"""What the ledger asks of a database, and what is the same in both.

Statements are written once, with `?` for values; no text of theirs has a `?` or a `%` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

Values = tuple[Any, ...] | list[Any]


class Unavailable(Exception):
    """The database does not answer, is busy or full: to be tried again later."""


class Refused(Exception):
    """The database refuses a value of a row: the row can never be written."""


class Unusable(Exception):
    """The database can't be used until somebody mends it: no such table, no permission, a damaged file."""


class Database(Protocol):
    """One connection, for one thread at a time. Its methods raise the errors above."""

    def execute(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Run a statement; its rows."""
        ...

    def many(self, statement: str, values: Iterable[Values]) -> None:
        """Run a statement for each of some values."""
        ...

    def stream(self, statement: str, values: Values = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, a few at a time."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Commit what is done within, or nothing of it."""
        ...

    def alone(self) -> None:
        """Within a transaction: wait until no other connection is within its own such part."""
        ...

    def patient(self) -> None:
        """From now on wait for a statement however long it takes: nobody but one person does."""
        ...

    def wipe(self) -> None:
        """Make what was removed unreadable, as far as the database can."""
        ...

    def abort(self) -> None:
        """From another thread: break the connection, so that what waits for it fails."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...

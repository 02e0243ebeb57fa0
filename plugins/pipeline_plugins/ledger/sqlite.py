"""`ledger=sqlite`: a row for each call and each attempt, in a file of one machine."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline_plugins.ledger.extension import Ledger, LedgerConfig
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Store
from pipeline_plugins.state import STATE


class SQLiteLedger(Ledger):
    """A ledger in a file that all workers of a machine share.

    A power failure loses what the kernel had not written.
    """

    class Config(LedgerConfig):
        """Where rows are kept, for how long, and how many may wait."""

        path: Path = Field(Path(f"{STATE}/ledger.sqlite"), description="The file; made where missing.")

        def store(self) -> Store:
            """Open the file. Raises OSError where it can't be used."""
            return Store(SQLite(self.path.expanduser()))

        def missing(self) -> str | None:
            """Reading does not make the file."""
            path = self.path.expanduser()
            return None if path.exists() else f"There is no ledger at {path} yet; a server makes it."

    def __init__(self, config: Config) -> None:
        super().__init__(config)

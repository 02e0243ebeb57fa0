"""`keys=sqlite`: keys in a file, for one machine."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline_plugins.keys.extension import Keys, KeysConfig
from pipeline_plugins.keys.sqlite_store import SQLiteStore
from pipeline_plugins.state import STATE


class SQLiteKeys(Keys):
    """Asks clients for a key; keys are kept in a SQLite file that workers and `pipeline keys` share."""

    class Config(KeysConfig):
        """Where the keys are, and the administrator's own."""

        path: Path = Field(Path(f"{STATE}/keys.sqlite"), description="The file; made where missing.")

    def __init__(self, config: Config) -> None:
        super().__init__(config, SQLiteStore(config.path.expanduser()))

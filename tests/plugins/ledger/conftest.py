"""Either database, for tests that hold for both."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens a ledger of this test's own."""
    if request.param == "sqlite":
        return lambda: Store(SQLite(tmp_path / "ledger.sqlite"))
    url, namespace = request.getfixturevalue("postgres_url"), f"t{os.urandom(6).hex()}"
    return lambda: Store(Postgres(url, namespace))

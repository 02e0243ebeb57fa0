"""The stores that every test of accounts is run on."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Overrides that keep accounts in an empty store."""
    if request.param == "sqlite":
        return ["price.store=sqlite"]
    process: Any = request.getfixturevalue("redis_process")
    return ["price.store=redis", f"price.url={process.url}", "limit.redis_timeout=20"]

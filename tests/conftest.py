"""What tests of several parts share."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.postgres_process import MISSING, PostgresProcess, available
from tests.redis_process import BINARY, RedisProcess

# How long an example takes says more of the machine than of the code. CI draws the same examples
# each time, so that a change is judged by what it changes; every other run draws new ones.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("new", **UNTIMED)
settings.register_profile("ci", derandomize=True, database=None, **UNTIMED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "new"))


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisProcess]:
    if BINARY is None:
        pytest.skip("needs `redis-server` (Debian's package `redis-server`) on the PATH")
    process = RedisProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def redis_url(_shared_redis: RedisProcess) -> str:
    """A Redis of this run, or of this xdist worker: tests use names of their own within it."""
    return _shared_redis.url


@pytest.fixture
def redis_process() -> Iterator[RedisProcess]:
    """A Redis of this test alone, to kill and freeze."""
    if BINARY is None:
        pytest.skip("needs `redis-server` (Debian's package `redis-server`) on the PATH")
    process = RedisProcess()
    yield process
    process.thaw()
    process.close()


@pytest.fixture(scope="session")
def _shared_postgres() -> Iterator[PostgresProcess]:
    if not available():
        pytest.skip(MISSING)
    process = PostgresProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def postgres_url(_shared_postgres: PostgresProcess) -> str:
    """A PostgreSQL of this run, or of this xdist worker: tests use schemas of their own within it."""
    return _shared_postgres.url


@pytest.fixture
def postgres_process() -> Iterator[PostgresProcess]:
    """A PostgreSQL of this test alone, to stop and freeze."""
    if not available():
        pytest.skip(MISSING)
    process = PostgresProcess()
    yield process
    process.thaw()
    process.close()


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers of the tests keep is kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Verbs that run in this process set logging up for all that follows: the next test has its own."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def redis_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The log lines of links to Redis. A logger that was used before would not be seen."""
    monkeypatch.setattr("pipeline_plugins.redis_link.log", structlog.get_logger())
    with structlog.testing.capture_logs() as lines:
        yield lines

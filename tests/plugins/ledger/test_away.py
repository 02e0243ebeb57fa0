"""A PostgreSQL that stops, freezes and comes back, under real writers and servers."""

import os
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog
from pipeline_plugins.ledger import writer as writing
from pipeline_plugins.ledger.database import Unavailable, Unusable
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.store import Batch, Store
from pipeline_plugins.ledger.writer import Writer

from benchmarks.processes import Process
from pipeline.cli.app import run
from tests.plugins.ledger.test_rollup import entry
from tests.plugins.ledger.test_server import chat, serving
from tests.plugins.ledger.test_writer import ended, ids, wait
from tests.postgres_process import PostgresProcess


@pytest.fixture
def connect(postgres_process: PostgresProcess) -> Callable[[], Store]:
    return lambda: Store(Postgres(postgres_process.url, "pipeline"))


def test_calls_wait_while_the_database_is_stopped_and_are_written_once(
    postgres_process: PostgresProcess, connect: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SLOWEST", 0.1)
    monkeypatch.setattr(writing, "log", structlog.get_logger())
    writer = Writer(connect, flush=0.02, bound=100)
    writer.open()
    with structlog.testing.capture_logs() as lines:
        for n in range(30):
            writer.put(ended(f"req_{n:02}"))
            if n == 10:
                postgres_process.stop()
            if n == 20:
                wait(lambda: writer.down)
                postgres_process.start()
        wait(lambda: not writer.down and not writer.waiting)
    writer.close()
    assert ids(connect) == [f"req_{n:02}" for n in range(30)]
    assert (writer.written, writer.dropped) == (30, 0)
    told = [line["log_level"] for line in lines if "tidied" not in line["event"]]
    assert told == ["error", "warning"]  # away, and back: once each


def test_a_frozen_database_fills_the_queue_and_what_is_beyond_is_counted(
    postgres_process: PostgresProcess, connect: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "STALLED", 0.1)
    writer = Writer(connect, flush=0.02, bound=5)
    writer.open()
    postgres_process.freeze()
    writer.put(ended("req_00"))
    wait(lambda: writer.down)
    for n in range(1, 10):
        writer.put(ended(f"req_{n:02}"))
    waiting = writer.waiting
    assert waiting in (5, 6)  # of the bound, and one that may be in the thread's hands
    assert writer.dropped == 10 - waiting
    postgres_process.thaw()
    wait(lambda: not writer.waiting and not writer.down)
    writer.close()
    assert ids(connect) == [f"req_{n:02}" for n in range(waiting)]


def test_closing_gives_a_frozen_database_up(
    postgres_process: PostgresProcess, connect: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.2)
    writer = Writer(connect, flush=0.02, bound=5)
    writer.open()
    postgres_process.freeze()
    writer.put(ended())
    writer.close()
    assert writer.waiting == 1


def _down(server: Process) -> bool:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        return b"\npipeline_ledger_down 1" in answer.read()


def test_a_gateway_answers_while_its_ledger_is_frozen(
    postgres_process: PostgresProcess, tmp_path: Path
) -> None:
    with serving(tmp_path, "ledger.flush=0.05", postgres=postgres_process.url) as gateway:
        told = [gateway.send(chat("before"))[1]]
        gateway.row(told[0])
        postgres_process.freeze()
        for n in range(5):
            status, id, _ = gateway.send(chat(f"during {n}"))
            assert status == 200
            told.append(id)
        assert gateway.send({"id": told[0], "rating": "up"}, "/v1/feedback")[0] == 503
        wait(lambda: _down(gateway.server))
        postgres_process.thaw()
        for id in told:
            gateway.row(id)
        assert gateway.send({"id": told[0], "rating": "up"}, "/v1/feedback")[0] == 200


def test_forgetting_an_owner_waits_its_turn_for_the_sums(postgres_process: PostgresProcess) -> None:
    """Otherwise it and who writes would wait for each other's rows."""
    writing, forgetting, watching = (Store(Postgres(postgres_process.url, "pipeline")) for _ in range(3))
    writing.add(Batch([entry(1, 60)]))
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'"
    with ThreadPoolExecutor(1) as threads:
        with writing.database.transaction():
            writing.database.alone()
            writing.database.execute("UPDATE rollup SET calls = calls")
            forgotten = threads.submit(forgetting.forget, "anonymous")
            wait(lambda: watching.database.execute(waits))
        assert forgotten.result(30) == 1
    for store in (writing, forgetting, watching):
        store.close()


def test_feedback_is_taken_at_once_after_the_database_was_restarted(
    postgres_process: PostgresProcess, tmp_path: Path
) -> None:
    with serving(tmp_path, "ledger.flush=0.05", postgres=postgres_process.url) as gateway:
        id = gateway.send(chat())[1]
        gateway.row(id)
        assert gateway.send({"id": id, "rating": "up"}, "/v1/feedback")[0] == 200
        postgres_process.stop()
        postgres_process.start()
        assert gateway.send({"id": id, "rating": "down"}, "/v1/feedback")[0] == 200


def test_a_gateway_starts_and_answers_while_its_ledger_is_away(tmp_path: Path) -> None:
    with serving(tmp_path, postgres="postgresql://127.0.0.1:1/x") as gateway:
        assert gateway.send(chat())[0] == 200
        assert _down(gateway.server)


def test_a_database_that_does_not_exist_is_told_and_not_waited_for(postgres_url: str) -> None:
    wrong = postgres_url.replace("/postgres", f"/{os.urandom(4).hex()}")
    with pytest.raises(Unusable, match="does not exist"):
        Postgres(wrong, "pipeline")


def test_a_port_that_can_not_be_is_told_and_not_waited_for() -> None:
    with pytest.raises(Unusable, match="port"):
        Postgres("postgresql://127.0.0.1:99999/x", "pipeline")


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(Unavailable) as told:
        Postgres("postgresql://user:very-secret@127.0.0.1:1/x", "pipeline")
    assert "very-secret" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["very-secret", "mysql://user:very-secret@h/x", "postgresql://user:very-secret@more@127.0.0.1:1/x"]
)
def test_an_address_that_can_not_be_is_told_without_what_may_be_a_password(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "infer=echo", "ledger=postgres", f'ledger.url="{url}"']) == 2
    said = capsys.readouterr().err
    assert "ledger.url" in said
    assert "very-secret" not in said
    assert "more" not in said.replace("more than one", "")

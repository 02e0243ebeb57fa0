"""Verbs that read a ledger whose database dies meanwhile: plain words, and no half file."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.ledger import postgres_database
from pipeline_plugins.ledger.database import Unavailable
from pipeline_plugins.ledger.options import reading
from pipeline_plugins.ledger.postgres import PostgresLedger
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.store import Batch, Entry, Filter, Store
from pydantic import SecretStr

from pipeline.cli.app import run
from tests.plugins.ledger.test_rollup import entry
from tests.postgres_process import PostgresProcess

REQUEST = '{"model": "echo", "messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture
def ledger(postgres_process: PostgresProcess, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names a ledger in PostgreSQL whose database dies once the first of its calls was read."""
    with contextlib.closing(Store(Postgres(postgres_process.url, "pipeline"))) as store:
        made = [entry(n, 60.0 + n) for n in range(30)]
        store.add(Batch([Entry(one.row, one.attempts, ("full", REQUEST, None)) for one in made]))
    calls: Callable[[Store, Filter], Iterator[Any]] = Store.calls

    def dying(self: Store, wanted: Filter) -> Iterator[Any]:
        for number, call in enumerate(calls(self, wanted)):
            yield call
            if number == 0:
                postgres_process.stop()

    monkeypatch.setattr(Store, "calls", dying)
    return ["ledger=postgres", f"ledger.url={postgres_process.url}"]


def test_verbs_wait_for_statements_that_take_longer_than_a_servers_may(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_database, "SESSION", ("SET statement_timeout = '20ms'",))
    kept = PostgresLedger.Config(url=SecretStr(postgres_url), namespace="patient", host="127.0.0.1")
    wait = "SELECT 1 FROM pg_sleep(0.1)"
    with contextlib.closing(kept.store()) as store, pytest.raises(Unavailable, match="timeout"):
        store.database.execute(wait)
    with reading(kept) as store:
        assert store.database.execute(wait) == [(1,)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_leaves_the_file_that_was_there(
    form: str, ledger: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / "calls"
    target.write_text("of yesterday")
    assert run(["ledger", "export", *ledger, "--format", form, "--output", str(target)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: The ledger failed while it was in use: ")
    assert len(said.splitlines()) == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"calls": "of yesterday"}


def test_an_export_into_a_folder_that_is_not_there_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none"
    assert run(["ledger", "export", "ledger=sqlite", "--output", str(missing / "calls")]) == 2
    assert f"There is no folder {missing}." in capsys.readouterr().err
    assert run(["ledger", "export", "ledger=sqlite", "--output", str(tmp_path)]) == 2


def test_a_replay_says_so_in_a_line(
    ledger: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = ["infer=echo", "infer@embed=none", "monitor=none", "score=[]", f"vars.state={tmp_path}"]
    assert run(["replay", *ledger, *graph, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "Error: The ledger failed while it was in use: " in said
    assert "Traceback" not in said


def test_an_export_without_standard_output_asks_for_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert run(["ledger", "export", "ledger=sqlite"]) == 2
    assert "--output" in capsys.readouterr().err

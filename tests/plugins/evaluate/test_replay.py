"""`pipeline replay` and `data=ledger`: what a served gateway recorded, sent through another configuration."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.evaluate.example import Example
from pipeline_plugins.evaluate.pace import closed_loop, open_loop
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Filter, Store

from benchmarks.processes import PIPELINE, pipeline_server
from pipeline.cli.app import run
from tests.plugins.evaluate.runs import command, examples, questions, read

Capture = pytest.CaptureFixture[str]

PRICE = "+price.models.echo={prompt: 1000, completion: 1000}"
GRAPH = ["infer=echo", "infer@embed=none", "monitor=none", PRICE]
OWNERS = ("alice", "bob")
QUESTIONS, TIMES = 5, 4
CHATS = len(OWNERS) * QUESTIONS * TIMES
CALLS = CHATS + 1
"""One of them a completion."""


@dataclass
class Recorded:
    """A ledger that a server has filled: what names it, and where its state is."""

    ledger: list[str]
    folder: Path

    def open(self) -> Store:
        given = dict(one.split("=", 1) for one in self.ledger)
        if given["ledger"] == "sqlite":
            return Store(SQLite(Path(given["ledger.path"])))
        return Store(Postgres(given["ledger.url"], given["ledger.namespace"]))

    def content(self) -> list[Any]:
        """All that the ledger has of calls, and its sums."""
        with contextlib.closing(self.open()) as store:
            return [*store.calls(Filter()), *store.database.execute("SELECT kind, calls FROM rollup")]

    def replay(self, out: Path, *arguments: str) -> int:
        given = [*self.ledger, f"vars.state={out}-state", *GRAPH, "score=[]", *arguments]
        return run(["replay", *given, "--out", str(out)])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("kept")
    return record(folder, ["ledger=sqlite", f"ledger.path={folder}/ledger.sqlite"], "ledger.bodies=full")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if request.param == "sqlite":
        found: Recorded = request.getfixturevalue("kept")
        return found
    url, namespace = request.getfixturevalue("postgres_url"), f"t{os.urandom(6).hex()}"
    ledger = ["ledger=postgres", f"ledger.url={url}", f"ledger.namespace={namespace}"]
    return record(tmp_path_factory.mktemp("recorded"), ledger, "ledger.bodies=full")


def record(folder: Path, ledger: list[str], *overrides: str) -> Recorded:
    """Serve without a cache, have each owner ask the same questions several times, and stop."""
    state = [f"vars.state={folder}/state", "keys=sqlite"]
    keys = [
        subprocess.run(
            [PIPELINE, "keys", "create", "--name", owner, "--owner", owner, *state],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for owner in OWNERS
    ]
    with pipeline_server(*GRAPH, "cache=none", *ledger, *state, *overrides) as server:

        def send(path: str, key: str, body: dict[str, Any]) -> None:
            head = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            data = json.dumps({"model": "echo", "temperature": 0, **body}).encode()
            request = urllib.request.Request(server.url + path, data, head)
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()

        for turn in range(TIMES):
            for number in range(QUESTIONS):
                for key in keys:
                    asked = [{"role": "user", "content": f"question {number}"}]
                    send("/v1/chat/completions", key, {"messages": asked, "stream": turn == 0})
        send("/v1/completions", keys[0], {"prompt": "once upon a time"})
    return Recorded(ledger, folder)


def told_by(capsys: Capture) -> dict[str, Any]:
    """What `--json` printed; progress is a line before it here."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_what_a_cache_would_have_saved_is_told_to_the_cent(
    recorded: Recorded, tmp_path: Path, capsys: Capture
) -> None:
    assert recorded.replay(tmp_path / "run", "cache=exact", "--json") == 0
    told = told_by(capsys)
    assert told["calls"] == CALLS
    # Each owner's question is asked of the model once, whatever the other owner asked.
    chat, completion = 2 * 2 * 1000 / 1e6, (4 + 4) * 1000 / 1e6
    cost = told["cost"]
    assert cost["recorded"] == pytest.approx(CHATS * chat + completion)
    assert cost["replayed"] == pytest.approx(len(OWNERS) * QUESTIONS * chat + completion)
    assert cost["change"] == pytest.approx(cost["replayed"] / cost["recorded"] - 1)
    assert cost["low"] < cost["change"] < cost["high"] < 0
    assert told["now"]["cache_hit_rate"]["mean"] == pytest.approx((CHATS - 10) / CALLS)
    assert told["now"]["equal"]["mean"] == 1
    saved = cost["recorded"] - cost["replayed"]
    assert told["differences"]["cost_usd"]["mean"] * CALLS == pytest.approx(-saved)
    assert told["notes"] == []


def test_a_replay_does_not_write_into_the_ledger_that_it_reads(recorded: Recorded, tmp_path: Path) -> None:
    before = recorded.content()
    assert recorded.replay(tmp_path / "run") == 0
    assert recorded.content() == before


@pytest.fixture
def copied(kept: Recorded, tmp_path: Path) -> Recorded:
    """A ledger of the test's own, to be spoilt."""
    shutil.copy(kept.folder / "ledger.sqlite", tmp_path / "ledger.sqlite")
    return Recorded(["ledger=sqlite", f"ledger.path={tmp_path}/ledger.sqlite"], tmp_path)


def spoil(ledger: Recorded, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(ledger.folder / "ledger.sqlite")) as db, db:
        db.execute(statement)


def test_what_was_recorded_is_a_run_that_others_are_compared_with(
    kept: Recorded, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    assert kept.replay(out, "cache=exact") == 0
    said = capsys.readouterr().out
    assert "They cost $0.168 as recorded, and $0.048 with this configuration: -71.4%" in said
    assert f"{CALLS} calls of 2 owners" in said
    assert {row["owner"] for row in map(json.loads, (one["fields"] for one in examples(out)))} == set(OWNERS)
    before = examples(out / "recorded")
    assert [row["id"] for row in before] == [row["id"] for row in examples(out)]
    assert [row["answer"] for row in before] == [row["answer"] for row in examples(out)]
    assert run(["compare", str(out / "recorded"), str(out), "--metric", "cost_usd"]) == 0
    said = capsys.readouterr().out
    assert "$0.0041" in said
    assert "config key" not in said


def test_calls_that_failed_then_and_now_make_no_answer_unlike(
    copied: Recorded, tmp_path: Path, capsys: Capture
) -> None:
    spoil(copied, "UPDATE calls SET outcome = 'failed', status = 500, error = 'x' WHERE row % 2")
    spoil(copied, """UPDATE bodies SET request = replace(request, '"echo"', '"none"') WHERE call % 2""")
    assert copied.replay(tmp_path / "run", "eval.confidence=0.999") == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["error_rate"]["mean"] == pytest.approx((CALLS + 1) // 2 / CALLS)
    assert (metrics["equal"]["mean"], metrics["equal"]["n"]) == (1, CALLS // 2)
    assert "with 99.9% intervals" in capsys.readouterr().out


def test_streams_and_completions_are_sent_as_they_were_recorded(kept: Recorded, tmp_path: Path) -> None:
    assert kept.replay(tmp_path / "run", "cache=none") == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["ttft_s"]["n"] == CHATS / TIMES
    assert (metrics["error_rate"]["mean"], metrics["equal"]["mean"]) == (0, 1)
    assert "once upon a time" in [row["answer"] for row in examples(tmp_path / "run")]


def test_calls_are_chosen_by_owner_number_and_time(kept: Recorded, tmp_path: Path, capsys: Capture) -> None:
    def ids(name: str, *arguments: str) -> list[str]:
        assert kept.replay(tmp_path / name, *arguments) == 0
        return [row["id"] for row in examples(tmp_path / name)]

    of_alice, first = ids("alice", "--owner", "alice"), ids("first", "--limit", "7")
    assert (len(of_alice), len(first)) == (CHATS / 2 + 1, 7)
    with contextlib.closing(kept.open()) as store:
        at = sorted(row["time"] for row in store.calls(Filter()))
    assert ids("early", f"data.until={(at[9] + at[10]) / 2!r}") == ids("ten", "--limit", "10")
    assert kept.replay(tmp_path / "none", "--since", "2100-01-01") == 2
    assert "no call that can be sent again" in capsys.readouterr().err


def test_fields_of_recorded_requests_are_replaced_or_removed(kept: Recorded, tmp_path: Path) -> None:
    changed = "data.request={temperature: null, model: default, seed: 7}"
    assert kept.replay(tmp_path / "run", changed, "--limit", "3") == 0
    for row in examples(tmp_path / "run"):
        body = json.loads(row["request"])
        assert (body["model"], body["seed"], "temperature" in body) == ("default", 7, False)


def test_calls_that_cannot_be_sent_again_are_counted_with_why(copied: Recorded, capsys: Capture) -> None:
    spoil(copied, "DELETE FROM bodies WHERE call <= 3")
    spoil(copied, "UPDATE calls SET outcome = 'cancelled' WHERE row = 5")
    spoil(copied, "UPDATE calls SET operation = 'rag' WHERE row IN (6, 7)")
    spoil(copied, "UPDATE bodies SET policy = 'redacted' WHERE call = 9")
    assert copied.replay(copied.folder / "run", "--json") == 0
    told = told_by(capsys)
    assert told["calls"] == CALLS - 6
    said = " ".join(told["notes"])
    for count, why in ((3, "without the request"), (1, "given up by the client"), (2, "of another")):
        assert f"{count} call" in said
        assert why in said
    assert "What was left out had cost $0.024" in said
    assert "Redacted: 1 request" in said


def test_a_ledger_without_bodies_is_told_how_to_have_them(copied: Recorded, capsys: Capture) -> None:
    spoil(copied, "DELETE FROM bodies")
    assert copied.replay(copied.folder / "run") == 2
    assert "ledger.bodies=full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["ledger=none"], 2, "Name the one to read, say `ledger=sqlite`"),
        (["ledger=sqlite", "ledger.path=/nowhere/ledger.sqlite"], 1, "There is no ledger at /nowhere"),
        (["ledger=sqlite", "data=questions.jsonl"], 2, "pipeline eval"),
        (["ledger=sqlite", "--speed", "0"], 2, "--speed"),
        (["ledger=sqlite", "data.since=yesterday"], 2, "data.since"),
        (["ledger=sqlite", "--owner", "it's"], 1, "There is no ledger"),
    ],
)
def test_a_mistake_is_said_in_words(
    tmp_path: Path, capsys: Capture, arguments: list[str], status: int, said: str
) -> None:
    assert command("replay", f"vars.state={tmp_path}/state", f"eval.dir={tmp_path}", *arguments) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_folder_with_something_in_it_is_not_replayed_into(kept: Recorded, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert kept.replay(tmp_path / "run") == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_replay_without_any_answer_failed(kept: Recorded, tmp_path: Path, capsys: Capture) -> None:
    assert kept.replay(tmp_path / "run", "infer.failure_rate=1", "--limit", "5") == 1
    said = capsys.readouterr()
    assert "No call was answered" in said.err
    assert "5 calls that had an answer failed now" in said.out


def test_at_a_pace_every_call_is_sent_and_has_its_time(kept: Recorded, tmp_path: Path) -> None:
    assert kept.replay(tmp_path / "run", "--speed", "100") == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert (metrics["error_rate"]["mean"], metrics["latency_s"]["n"]) == (0, CALLS)
    assert read(tmp_path / "run" / "manifest.json")["late_s"] >= 0
    assert "eval.speed=100.0" in (tmp_path / "run" / "overrides.yaml").read_text()


def test_data_without_times_has_no_pace(tmp_path: Path, capsys: Capture) -> None:
    assert command("eval", f"data={questions(tmp_path)}", "eval.speed=1", "--out", tmp_path / "run") == 2
    assert "Nobody knows when these examples were sent" in capsys.readouterr().err


def test_recorded_traffic_is_evaluated_and_rerun_as_any_data(
    kept: Recorded, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    given = [*kept.ledger, *GRAPH, f"vars.state={tmp_path}/state", "data=ledger", "score=[f1]", "cache=none"]
    assert run(["eval", *given, "eval.concurrency=1", "--out", str(out)]) == 0
    assert read(out / "metrics.json")["f1"] == read(out / "metrics.json")["f1"] | {"n": CALLS, "mean": 1.0}
    assert run(["rerun", str(out)]) == 0
    assert "The figures agree" in capsys.readouterr().out


def sent(*at: float) -> list[Example]:
    return [Example(str(number), {}, at=when) for number, when in enumerate(at)]


def test_an_open_loop_sends_when_due_however_long_answers_take() -> None:
    due: list[float] = []
    all_sent = asyncio.Event()

    async def work(example: Example, when: float) -> None:
        due.append(when)
        if len(due) == 4:
            all_sent.set()
        await asyncio.wait_for(all_sent.wait(), 30)

    examples = sent(100.0, 100.5, 101.0, 103.0)
    asyncio.run(open_loop(examples, work, 50, "test"))
    assert [when - due[0] for when in due] == pytest.approx([0, 0.01, 0.02, 0.06])


def test_a_closed_loop_has_so_many_under_way_and_no_more() -> None:
    under_way, most = 0, 0

    async def work(example: Example, when: float) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    asyncio.run(closed_loop(sent(*range(20)), work, 3, "test"))
    assert most == 3


def test_a_replay_that_was_stopped_begins_anew_in_its_folder(kept: Recorded, tmp_path: Path) -> None:
    assert kept.replay(tmp_path / "run") == 0
    manifest = tmp_path / "run" / "manifest.json"
    assert kept.replay(tmp_path / "run") == 2
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    assert kept.replay(tmp_path / "run") == 0
    assert read(manifest)["state"] == "complete"

"""Ledgers from end to end: a real server, its file, and the verbs that read it."""

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.processes import PIPELINE, Process, pipeline_server

ECHO = [
    "infer=echo",
    "infer@embed=none",
    "monitor=none",
    "ledger=sqlite",
    "+price.models.echo={prompt: 1500}",
]

SECRET = "the-words-of-a-client"


@dataclass
class Gateway:
    """A running server and the folder of its state."""

    server: Process
    folder: Path

    def send(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", key: str | None = None
    ) -> tuple[int, str, dict[str, Any]]:
        """A request: status, its id, and the JSON or `{}` of a stream."""
        data = json.dumps(body).encode()
        head = {"content-type": "application/json"}
        if key is not None:
            head["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.server.url + path, data, head)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                found = {} if body.get("stream") else json.loads(text)
                return answer.status, answer.headers.get("x-request-id", ""), found
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("x-request-id", ""), json.loads(error.read())

    def verb(self, *arguments: str) -> str:
        """What a verb prints."""
        given = [PIPELINE, *arguments, "ledger=sqlite", f"vars.state={self.folder}"]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / "ledger.sqlite")) as db:
            return db.execute(text, values).fetchall()

    def row(self, id: str) -> dict[str, Any]:
        """The exported row of a call, once it is written."""
        until = time.monotonic() + 20
        while not self.query("SELECT 1 FROM calls WHERE id = ?", id):
            assert time.monotonic() < until, "no row"
            time.sleep(0.02)
        rows = [json.loads(line) for line in self.verb("ledger", "export").splitlines()]
        return next(row for row in rows if row["id"] == id)


@contextlib.contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[Gateway]:
    with pipeline_server(*ECHO, f"vars.state={folder}", *overrides) as server:
        yield Gateway(server, folder)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(tmp_path_factory.mktemp("ledger"), "infer.tokens_per_second=200") as gateway:
        yield gateway


def chat(text: str = "a b c", **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def test_a_whole_answer_has_a_row_with_its_attempt(gateway: Gateway) -> None:
    _, id, answer = gateway.send(chat("one two three"))
    row = gateway.row(id)
    assert row["answer_id"] == answer["id"]
    assert (row["outcome"], row["status"], row["error"]) == ("completed", 200, None)
    assert (row["operation"], row["model"], row["used"], row["owner"]) == (
        "chat",
        "echo",
        "echo",
        "anonymous",
    )
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 3)
    assert row["usd"] == pytest.approx(3 * 1500 / 1e6)
    assert row["cache"] == "miss"
    assert row["route"] is not None
    assert [step["to"] for step in row["path"]][-1] == "infer"
    assert {step["outcome"] for step in row["path"]} == {"ok"}
    (attempt,) = row["attempts"]
    assert (attempt["stage"], attempt["outcome"], attempt["prompt_tokens"]) == ("infer", "completed", 3)
    assert attempt["usd"] == row["usd"]
    assert 0 < attempt["seconds"] * 1000 <= row["total_ms"]
    assert len(row["config"]) == 12


def test_a_stream_has_its_times_and_its_answers_id(gateway: Gateway) -> None:
    _, id, _ = gateway.send(chat("w x y z", stream=True))
    row = gateway.row(id)
    assert row["answer_id"].startswith("chatcmpl-")
    assert row["streaming"] == 1
    assert row["chunks"] >= 4
    assert 0 < row["first_ms"] < row["total_ms"]
    assert row["gap_ms"] == pytest.approx((row["total_ms"] - row["first_ms"]) / (row["chunks"] - 1), abs=0.01)
    assert row["completion_tokens"] == 4
    assert row["attempts"][0]["first_ms"] > 0


def test_a_hit_of_the_cache_has_no_attempt(gateway: Gateway) -> None:
    gateway.send(chat("again and again"))
    _, id, _ = gateway.send(chat("again and again"))
    row = gateway.row(id)
    assert (row["cache"], row["attempts"]) == ("hit", [])


def test_a_refused_call_has_its_error_and_no_message(gateway: Gateway) -> None:
    status, id, _ = gateway.send({**chat(), "model": "nobody"})
    row = gateway.row(id)
    assert (row["outcome"], row["status"], row["error"]) == ("refused", status, "model_not_found")


def test_a_client_that_leaves_is_cancelled(gateway: Gateway) -> None:
    body = json.dumps(chat("word " * 2000, stream=True)).encode()
    with socket.create_connection(("127.0.0.1", gateway.server.port)) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = b""
        while b"chatcmpl-" not in head:
            head += sock.recv(65536)
    id = head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
    row = gateway.row(id)
    assert (row["outcome"], row["status"], row["error"]) == ("cancelled", 200, None)
    assert row["attempts"][0]["outcome"] == "cancelled"
    assert row["attempts"][0]["estimated"] in (0, 1)


def test_nothing_that_a_client_said_is_kept(gateway: Gateway) -> None:
    _, id, _ = gateway.send(chat(SECRET))
    gateway.row(id)
    kept = b"".join(path.read_bytes() for path in gateway.folder.glob("ledger.sqlite*"))
    assert id.encode() in kept
    assert SECRET.encode() not in kept


def test_the_file_is_the_owners_alone(gateway: Gateway) -> None:
    files = list(gateway.folder.glob("ledger.sqlite*"))
    assert files
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_feedback_is_joined_by_either_id_and_reported(gateway: Gateway) -> None:
    _, first, answer = gateway.send(chat("good one"))
    _, second, _ = gateway.send(chat("bad one"))
    for given in ({"id": answer["id"], "rating": 5, "comment": "right"}, {"id": second, "rating": "down"}):
        status, _, said = gateway.send(given, "/v1/feedback")
        assert status == 200, said
    assert gateway.row(first)["feedback"]["comment"] == "right"
    gateway.send({"id": first, "rating": 4}, "/v1/feedback")  # takes the former one's place
    report = json.loads(gateway.verb("feedback", "--by", "model", "--json"))
    (row,) = report["rows"]
    assert (row["model"], row["ratings"], row["average"], row["positive"]) == ("echo", 2, 4, 0.5)
    assert row["distribution"] == {"4": 1, "down": 1}
    assert 0 < row["low"] < 0.5 < row["high"] < 1
    assert "echo" in gateway.verb("feedback")


@pytest.mark.parametrize(
    ("given", "status"),
    [({"id": "chatcmpl-none", "rating": 1}, 404), ({"id": "x", "rating": 6}, 400), ({"rating": "up"}, 400)],
)
def test_feedback_that_fits_no_call_is_refused(gateway: Gateway, given: dict[str, Any], status: int) -> None:
    assert gateway.send(given, "/v1/feedback")[0] == status


def test_it_is_exported_as_parquet(gateway: Gateway, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    _, id, _ = gateway.send(chat("for parquet"))
    gateway.row(id)
    target = tmp_path / "calls.parquet"
    gateway.verb("ledger", "export", "--format", "parquet", "--output", str(target))
    rows = {row["id"]: row for row in parquet.read_table(target).to_pylist()}
    assert rows[id]["prompt_tokens"] == 2
    assert json.loads(rows[id]["attempts"])[0]["stage"] == "infer"


def test_an_export_is_of_the_calls_that_are_asked_for(gateway: Gateway) -> None:
    _, id, _ = gateway.send(chat("filtered"))
    gateway.row(id)
    assert id in gateway.verb("ledger", "export", "--model", "echo", "--owner", "anonymous")
    assert gateway.verb("ledger", "export", "--owner", "nobody") == ""
    assert gateway.verb("ledger", "export", "--until", "2001-01-01") == ""


def test_each_attempt_of_a_retry_has_a_row(tmp_path: Path) -> None:
    with serving(tmp_path, "resilience=standard", "infer.failure_rate=1") as gateway:
        status, id, _ = gateway.send(chat())
        row = gateway.row(id)
    assert (row["outcome"], row["status"]) == ("failed", status)
    assert len(row["attempts"]) > 1
    assert {(one["outcome"], one["status"]) for one in row["attempts"]} == {("failed", 503)}


def test_a_kill_loses_no_call_older_than_the_flush_window(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger.flush=0.05", "server.workers=2") as gateway:
        answers = [gateway.send(chat(f"call {n}")) for n in range(40)]
        # A worker that is still loading refuses a call before the graph, and so before the ledger.
        told = [id for status, id, _ in answers if status == 200]
        time.sleep(1)
        own = gateway.server.process
        for one in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    found = {id for (id,) in gateway.query("SELECT id FROM calls")}
    assert told
    assert found == set(told), [n for n, id in enumerate(told) if id not in found]
    assert gateway.query("PRAGMA integrity_check") == [("ok",)]


def test_a_server_that_stops_writes_what_waits(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger.flush=60") as gateway:
        id = gateway.send(chat())[1]
    assert gateway.query("SELECT id FROM calls") == [(id,)]


def test_an_owners_calls_are_removed_from_the_file(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger.flush=0.05") as gateway:
        _, id, _ = gateway.send(chat())
        gateway.row(id)
        gateway.send({"id": id, "rating": "up", "comment": SECRET}, "/v1/feedback")
        assert gateway.verb("ledger", "delete", "--owner", "anonymous") == "1 calls removed\n"
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))
    assert id.encode() not in kept
    assert SECRET.encode() not in kept


def test_a_key_may_not_rate_what_another_owner_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ADMIN_KEY", "an-administrators-key-for-tests")
    held = {}
    for owner in ("alice", "bob"):
        command = [PIPELINE, "keys", "create", "--name", "n", "--owner", owner, "--tag", "team=x"]
        given = [*command, "keys=sqlite", f"vars.state={tmp_path}"]
        held[owner] = subprocess.run(given, capture_output=True, text=True, check=True).stdout.strip()
    with serving(tmp_path, "keys=sqlite") as gateway:
        status, id, _ = gateway.send(chat(), key=held["alice"])
        assert status == 200
        rating = {"id": id, "rating": "up"}
        assert gateway.send(rating, "/v1/feedback", key=held["bob"])[0] == 404
        assert gateway.send(rating, "/v1/feedback")[0] == 401
        assert gateway.send(rating, "/v1/feedback", key=held["alice"])[0] == 200
        row = gateway.row(id)
    assert (row["owner"], row["tags"], row["feedback"]["rating"]) == ("alice", {"team": "x"}, "up")
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))
    assert held["alice"].split("-")[2].encode() not in kept
    assert held["alice"].split("-")[1] == row["key"]

"""Ledgers from end to end: a real server, its database, and the verbs that read it."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.export import jsonl
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Filter, Store

from benchmarks.processes import PIPELINE, Process, pipeline_server

ECHO = [
    "infer=echo",
    "infer@embed=none",
    "monitor=none",
    "+price.models.echo={prompt: 1500}",
]

SECRET = "the-words-of-a-client"


@dataclass
class Gateway:
    """A running server, the folder of its state, and what names its ledger."""

    server: Process
    folder: Path
    ledger: tuple[str, ...]
    connect: Callable[[], Store]

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
        given = [PIPELINE, *arguments, *self.ledger, f"vars.state={self.folder}"]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as store:
            return store.database.execute(text, values)

    def row(self, id: str) -> dict[str, Any]:
        """The exported row of a call, once it is written."""
        until = time.monotonic() + 20
        while not self.query("SELECT 1 FROM calls WHERE id = ?", id):
            assert time.monotonic() < until, "no row"
            time.sleep(0.02)
        with contextlib.closing(self.connect()) as store:
            lines = io.BytesIO()
            jsonl((call for call in store.calls(Filter()) if call["id"] == id), lines)
        found: dict[str, Any] = json.loads(lines.getvalue())
        return found


@contextlib.contextmanager
def serving(folder: Path, *overrides: str, postgres: str | None = None) -> Iterator[Gateway]:
    namespace = f"t{os.urandom(6).hex()}"
    if postgres is None:
        ledger: tuple[str, ...] = ("ledger=sqlite",)
    else:
        ledger = ("ledger=postgres", f"ledger.url={postgres}", f"ledger.namespace={namespace}")

    def connect() -> Store:
        return Store(Postgres(postgres, namespace) if postgres else SQLite(folder / "ledger.sqlite"))

    with pipeline_server(*ECHO, *ledger, f"vars.state={folder}", *overrides) as server:
        yield Gateway(server, folder, ledger, connect)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("ledger")
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    given = ("infer.tokens_per_second=200", "ledger.flush=0.05", "server.max_body_bytes=200000")
    with serving(folder, *given, postgres=url) as gateway:
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
    assert (row["finish"], row["bodies"]) == ("stop", None)
    assert all(0 <= step["own_ms"] <= step["ms"] for step in row["path"])
    assert len(row["config"]) == 12


def test_a_stream_has_its_times_and_its_answers_id(gateway: Gateway) -> None:
    _, id, _ = gateway.send(chat("w x y z", stream=True))
    row = gateway.row(id)
    assert row["answer_id"].startswith("chatcmpl-")
    assert row["streaming"] == 1
    assert row["chunks"] >= 4
    assert 0 < row["first_ms"] < row["total_ms"]
    assert row["gap_ms"] == pytest.approx((row["total_ms"] - row["first_ms"]) / (row["chunks"] - 1), abs=0.01)
    gaps = Histogram.from_bytes(base64.b64decode(row["gaps"]))
    assert gaps.count == row["chunks"] - 1
    assert (row["completion_tokens"], row["finish"]) == (4, "stop")
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


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"messages": "none"}, 400, "invalid_type"), ({**chat(), "top_k": "x" * 300_000}, 413, None)],
)
def test_a_request_that_is_refused_before_the_graph_has_a_row(
    gateway: Gateway, body: dict[str, Any], status: int, code: str | None
) -> None:
    found, id, said = gateway.send(body)
    assert found == status, said
    row = gateway.row(id)
    told = said["error"]["code"] or said["error"]["type"]
    assert (row["outcome"], row["status"], row["error"]) == ("refused", status, told)
    assert (row["owner"], row["path"], row["attempts"], row["model"]) == ("anonymous", [], [], "")


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
    kept = gateway.verb("ledger", "export")
    assert id in kept
    assert SECRET not in kept


def test_the_file_is_the_owners_alone(gateway: Gateway) -> None:
    if gateway.ledger != ("ledger=sqlite",):
        pytest.skip("of files")
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
    [
        ({"id": "chatcmpl-none", "rating": 1}, 404),
        ({"id": "chatcmpl-\0", "rating": 1}, 404),
        ({"id": "x", "rating": 6}, 400),
        ({"id": "x", "rating": True}, 400),
        ({"rating": "up"}, 400),
    ],
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


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_judge_was_asked_is_an_attempt_of_the_call_that_it_judged(
    tmp_path: Path, stream: bool
) -> None:
    judged = ["graph=judged", "infer@judge=echo", "judge.name=jury", "judged.on_failure=flag"]
    with serving(tmp_path, *judged, "+price.models.jury={prompt: 1000}", "ledger.flush=0.05") as gateway:
        _, id, _ = gateway.send(chat(stream=stream))
        row = gateway.row(id)
    assert [(one["stage"], one["model"]) for one in row["attempts"]] == [("infer", "echo"), ("judge", "jury")]
    assert row["used"] == "echo"
    assert row["usd"] == pytest.approx(sum(one["usd"] for one in row["attempts"]))
    assert row["attempts"][1]["usd"] > row["attempts"][0]["usd"] > 0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_kill_loses_no_call_that_was_written(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of several workers, while they write: what was there before stays, and what came then is whole."""
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    with serving(tmp_path, "ledger.flush=0.02", "server.workers=2", postgres=url) as gateway:
        written = {gateway.send(chat(f"call {n}"))[1] for n in range(30)}
        until = time.monotonic() + 30
        while {id for (id,) in gateway.query("SELECT id FROM calls")} != written:
            assert time.monotonic() < until, "calls are not written"
            time.sleep(0.02)
        meanwhile = {gateway.send(chat(f"and {n}"))[1] for n in range(10)}
        own = gateway.server.process
        for one in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    found = {id for (id,) in gateway.query("SELECT id FROM calls")}
    assert written <= found <= written | meanwhile
    attempted = gateway.query("SELECT count(*) FROM calls WHERE row IN (SELECT call FROM attempts)")
    summed = gateway.query("SELECT sum(calls) FROM rollup WHERE kind = 'model' AND size = 60")
    answered = gateway.query("SELECT count(*) FROM calls WHERE status = 200")
    assert attempted == answered
    assert summed == [(len(found),)]
    if url is None:
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


def test_bodies_are_kept_as_they_can_be_sent_again(tmp_path: Path) -> None:
    given = chat("who is ada@example.org?", stream=True)
    with serving(tmp_path, "ledger.bodies=full", "ledger.flush=0.05") as gateway:
        _, id, _ = gateway.send(given)
        _, refused, _ = gateway.send({**chat(), "model": "nobody"})
        bodies, of_refused = gateway.row(id)["bodies"], gateway.row(refused)["bodies"]
    assert (bodies["policy"], bodies["request"]) == ("full", given)
    message = bodies["reply"]["choices"][0]["message"]
    assert message["content"].strip() == "who is ada@example.org?"
    assert (of_refused["request"]["model"], of_refused["reply"]) == ("nobody", None)


def test_on_loopback_bodies_are_redacted_where_a_check_can(tmp_path: Path) -> None:
    with serving(tmp_path, "validate=pii", "validate.on_failure=flag", "ledger.flush=0.05") as gateway:
        _, id, _ = gateway.send(chat("who is ada@example.org?"))
        bodies = gateway.row(id)["bodies"]
    assert bodies["policy"] == "redacted"
    assert bodies["request"]["messages"][0]["content"] == "who is <EMAIL>?"
    assert bodies["reply"]["choices"][0]["message"]["content"].strip() == "who is <EMAIL>?"


def test_redacting_without_a_check_that_can_is_refused_at_the_start() -> None:
    given = [PIPELINE, "serve", *ECHO, "ledger=sqlite", "ledger.bodies=redacted", "server.port=0"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "validate=pii" in done.stderr


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
    assert held["alice"].split("-", 2)[2].encode() not in kept
    assert held["alice"].split("-")[1] == row["key"]

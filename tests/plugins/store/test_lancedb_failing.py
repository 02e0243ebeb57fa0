"""A store of documents that fails: in words, in bounded time; and places where none can be."""

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

pytest.importorskip("lancedb")

from pipeline_plugins.store import lancedb
from pipeline_plugins.store.lancedb import LanceDB
from pipeline_plugins.store.lancedb_guard import reason_of
from pipeline_plugins.store.store import StoreFails

from pipeline.cli.app import run

LIST = "Invalid input, Failed to connect to namespace: IO { source: "
AT = "uri: Some(http://127.0.0.1:1/docs?list-type=2&prefix=rag), retries: 0, "


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ValueError(
                f'{LIST}{AT} inner: Status {{ status: 404, body: Some("<?xml?>\\n<Error><Code>'
                'NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>") }'
            ),
            "The specified bucket does not exist, NoSuchBucket (http://127.0.0.1:1/docs)",
        ),
        (
            ValueError(
                f'{LIST}{AT} inner: Http(HttpError {{ kind: Connect, source: ConnectError("tcp", '
                '127.0.0.1:1, Os { code: 111, kind: ConnectionRefused, message: "Connection refused" })'
            ),
            "Connection refused (http://127.0.0.1:1/docs)",
        ),
        (ValueError(f"{LIST}CredentialsNotLoaded(…)"), "there are no credentials for it"),
        (
            RuntimeError(
                "lance error: LanceError(IO): No space left on device, /root/lance-io/src/local.rs:1:2"
            ),
            "No space left on device",
        ),
        (PermissionError(13, "Permission denied", "/srv/rag"), "[Errno 13] Permission denied: '/srv/rag'"),
        (TimeoutError(), "it did not answer in time"),
    ],
)
def test_the_reason_is_what_went_wrong_and_not_where_in_the_library(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


async def names(path: str) -> list[str]:
    store = LanceDB(LanceDB.Config(path=path))
    await store.open(None)
    return await store.names("alice")


def test_an_object_store_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lancedb, "OPENING", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreFails) as failed:
            asyncio.run(names("s3://docs/rag"))
    assert failed.value.reason == "it did not answer in time"


def test_a_command_says_which_store_fails_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
    head = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\nconnection: close\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(head + b"content-length: %d\r\n\r\n" % len(answer) + answer)

        answering = threading.Thread(target=refuse, daemon=True)
        answering.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        status = run(["collections", "list", "rag.path=s3://docs/rag"])
        server.shutdown(socket.SHUT_RDWR)
        answering.join()
    assert status == 1
    assert (
        "Error: The store of documents, s3://docs/rag, fails: The specified bucket" in capsys.readouterr().err
    )


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("s4://docs/rag", "no store has the scheme `s4` (known: `abfss`, `az`, `cos`, `file`, `gs`, "),
        ("gcs://docs/rag", "(did you mean `gs`)"),
        ("http://127.0.0.1/rag", "no store has the scheme `http`"),
        ("s3:/docs/rag", "expected `s3://BUCKET/rag`"),
        ("s3://", "expected `s3://BUCKET/rag`"),
        ("file://srv/rag", "expected three slashes, `file:///srv/rag`"),
    ],
)
def test_a_place_that_can_hold_nothing_is_a_mistake_of_the_configuration(path: str, hint: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        LanceDB.Config(path=path)
    assert hint in str(wrong.value)


def test_check_tells_of_such_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "rag=hybrid", "rag.path=s4://docs/rag"]) == 2
    assert "rag.path\n    No store has the scheme `s4`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["rag", "~/rag", "/srv/a:b", "file:///srv/rag", "s3://docs", "S3://docs/rag", "s3+ddb://docs/rag"]
)
def test_folders_and_urls_of_stores_are_taken_as_they_are(path: str, tmp_path: Path) -> None:
    assert LanceDB.Config(path=path).path == path

"""One id for a request: in its response, whatever it is, and in every line that is logged meanwhile."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.processes import PIPELINE, wait_ready

CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


@dataclass
class Server:
    url: str
    log: Path
    first: str = ""
    """The id of the first call, at which a plugin has something to say."""

    def get(self, path: str, body: bytes | None = None, **headers: str) -> tuple[str, int]:
        """Ask; the response's id and status."""
        fields = {"content-type": "application/json", **headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, fields)) as answer:
                return answer.headers["x-request-id"], answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.headers["x-request-id"], error.code

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "stderr"
    overrides = ["infer=echo", "infer@embed=none", "server.port=0"]
    with log.open("wb") as file, subprocess.Popen([PIPELINE, "serve", *overrides], stderr=file) as process:
        try:
            url = ""
            while not url:
                for line in log.read_text().splitlines():
                    url = url or json.loads(line).get("url", "")
                assert process.poll() is None
            wait_ready(url)
            server = Server(url, log)
            server.first, _ = server.get("/v1/chat/completions", CHAT)
            yield server
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", CHAT, 200),
        ("/v1/chat/completions", CHAT[:-1] + b', "stream": true}', 200),
        ("/v1/chat/completions", b"{", 400),
        ("/v1/models", None, 200),
        ("/health/live", None, 200),
        ("/metrics", None, 200),
        ("/nowhere", None, 404),
        ("/v1/chat/completions", None, 405),
    ],
)
def test_every_response_has_the_id_once(server: Server, path: str, body: bytes | None, status: int) -> None:
    id, found = server.get(path, body)
    assert found == status
    assert id.startswith("req_")
    assert "," not in id


def test_lines_of_plugins_have_the_id_of_the_call_that_they_are_about(server: Server) -> None:
    events: list[object] = []
    end = time.monotonic() + 30
    while "call" not in events and time.monotonic() < end:
        events = [line["event"] for line in server.lines() if line.get("request_id") == server.first]
        time.sleep(0.01)
    assert events == ["no price is known, counted as free", "call"]


def test_each_request_of_a_connection_has_its_own_id(server: Server) -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request += b"content-length: %d\r\n\r\n%b" % (len(CHAT), CHAT)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        client.sendall(request * 3)
        answers = b""
        while answers.count(b"x-request-id: ") < 3:
            answers += client.recv(65536)
    ids = {part.partition(b"\r\n")[0].decode() for part in answers.split(b"x-request-id: ")[1:]}
    assert len(ids) == 3

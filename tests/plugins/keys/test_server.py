"""Keys from end to end: issued by the command, asked for by a real server, revoked."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from benchmarks.processes import PIPELINE, wait_ready
from tests.plugins.keys.stores import redis_shop, sqlite_shop

ADMIN = "an-administrators-key-for-tests"
ECHO = ["infer=echo", "infer.name=small", "infer.aliases=[mini]", "infer@embed=echo", "embed.name=e"]
LIMITS = ["limit@concurrency=concurrency"]
BOUND = 2.0
"""Seconds after which a revocation holds, as the README says."""


@dataclass
class Gateway:
    """A running server, its log, and the overrides by which the command finds its keys."""

    url: str
    log: Path
    overrides: list[str]

    def keys(self, *arguments: str) -> str:
        """What `pipeline keys` prints."""
        command = [PIPELINE, "keys", *arguments, *self.overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def client(self, key: str) -> OpenAI:
        """The official client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request with these headers, `_` for `-`; status and JSON."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, method=method)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def admin(self, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
        """A request of the administrator's."""
        return self.send(method, f"/v1/admin/keys{path}", body, authorization=f"Bearer {ADMIN}")


@contextmanager
def serving(folder: Path, overrides: list[str], *more: str) -> Iterator[Gateway]:
    log = folder / "log"
    command = [PIPELINE, "serve", "server.port=0", *ECHO, *LIMITS, *overrides, *more]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "PIPELINE_ADMIN_KEY": ADMIN})
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"http://[\w.]+:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        wait_ready(found.group())
        yield Gateway(found.group(), log, overrides)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("keys")
    if request.param == "sqlite":
        shop = sqlite_shop(folder)
    else:
        shop = redis_shop(request.getfixturevalue("redis_url"))
    with serving(folder, shop.overrides, "server.workers=2") as gateway:
        yield gateway


def ask(client: OpenAI, model: str = "small") -> str:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
    return answer.choices[0].message.content or ""


def id_of(held: str) -> str:
    return held.split("-")[1]


def test_a_key_of_the_command_is_good_until_it_is_revoked(gateway: Gateway) -> None:
    held = gateway.keys("create", "--name", "ci", "--owner", "alice")
    assert re.fullmatch(r"sk-[0-9a-f]{12}-[\w-]{43}", held)
    with gateway.client(held) as client:
        for _ in range(8):
            assert ask(client) == "hello"
        gateway.keys("revoke", id_of(held))
        time.sleep(BOUND)
        for _ in range(8):
            with pytest.raises(openai.AuthenticationError) as raised:
                ask(client)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.type == "invalid_request_error"
    assert held not in str(raised.value)
    assert f"sk-{id_of(held)}-***" in str(raised.value)


def test_a_key_may_use_and_sees_its_models_alone(gateway: Gateway) -> None:
    held = gateway.keys("create", "--name", "ci", "--owner", "alice", "--model", "mini")
    with gateway.client(held) as client:
        assert ask(client) == "hello"
        assert ask(client, "mini") == "hello"
        assert [model.id for model in client.models.list()] == ["small"]
        with pytest.raises(openai.PermissionDeniedError) as raised:
            client.embeddings.create(model="e", input="hello")
        assert raised.value.code == "model_not_allowed"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("e")


def test_a_rotated_key_keeps_its_id(gateway: Gateway) -> None:
    old = gateway.keys("create", "--name", "ci", "--owner", "alice")
    new = gateway.keys("rotate", id_of(old))
    assert new != old
    assert id_of(new) == id_of(old)
    with gateway.client(new) as client:
        assert ask(client) == "hello"
    with gateway.client(old) as client, pytest.raises(openai.AuthenticationError):
        ask(client)


def test_the_admin_api_issues_changes_rotates_and_revokes(gateway: Gateway) -> None:
    status, made = gateway.admin("POST", "", {"name": "api", "owner": "bob", "limits": {"concurrent": 3}})
    assert status == 200
    held, id = made["value"], made["id"]
    assert made["limits"]["concurrent"] == 3
    with gateway.client(held) as client:
        assert ask(client) == "hello"
    status, changed = gateway.admin("POST", f"/{id}", {"models": ["e"], "tags": {"team": "x"}})
    assert (status, changed["models"], changed["owner"]) == (200, ["e"], "bob")
    status, rotated = gateway.admin("POST", f"/{id}/rotate", {"grace": 60})
    assert status == 200
    assert rotated["former_until"] > time.time()
    status, one = gateway.admin("GET", f"/{id}")
    assert (status, one["tags"], one["status"]) == (200, {"team": "x"}, "active")
    assert held not in json.dumps(one)
    assert rotated["value"] not in json.dumps(one)
    status, gone = gateway.admin("DELETE", f"/{id}")
    assert (status, gone["status"]) == (200, "revoked")
    assert gateway.admin("POST", f"/{id}/rotate")[1]["error"]["code"] == "key_revoked"
    listed = gateway.admin("GET", "?limit=1000")[1]["data"]
    assert id in {key["id"] for key in listed}
    first = gateway.admin("GET", "?limit=1")[1]
    second = gateway.admin("GET", f"?limit=1&after={first['data'][0]['id']}")[1]
    assert first["has_more"] is True
    assert second["data"][0]["id"] == listed[1]["id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "", {"owner": "bob"}, 400, "name"),
        ("POST", "", {"name": "n", "owner": "bob", "admin": True}, 400, "admin"),
        ("POST", "", {"name": "n", "owner": "b", "limits": {"concurrent": 0}}, 400, "limits.concurrent"),
        ("POST", "", {"name": "n", "owner": "b", "limits": {"usd_per_day": "5"}}, 400, "limits.usd_per_day"),
        (
            "POST",
            "",
            {"name": "n", "owner": "b", "limits": {"usd_per_month": True}},
            400,
            "limits.usd_per_month",
        ),
        ("POST", "", {"name": "n", "owner": "b", "cache": {"ttl": [60]}}, 400, "cache.ttl"),
        ("POST", "", {"name": "n", "owner": "b", "expires_at": 1_000_000_000}, 400, "expires_at"),
        ("POST", "", {"name": "n", "owner": "b", "id": "0123456789ab"}, 400, "id"),
        ("POST", "/0123456789ab", {"owner": None}, 400, "owner"),
        ("POST", "/0123456789ab", {"digest": "00"}, 400, "digest"),
        ("POST", "/0123456789ab", {"owner": "eve"}, 404, "id"),
        ("GET", "/' or 1=1 --".replace(" ", "%20"), None, 404, "id"),
        ("DELETE", "/0123456789ab", None, 404, "id"),
        ("GET", "?limit=0", None, 400, "limit"),
        ("GET", f"?{'&'.join(f'a{i}=1' for i in range(9))}", None, 400, "a0"),
        ("GET", "?after=0123456789ab", None, 404, "after"),
        ("GET", "/0123456789ab/rotate", None, 404, None),
    ],
)
def test_the_admin_api_says_which_field_is_wrong(
    gateway: Gateway, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    found, answer = gateway.admin(method, path, body)
    assert (found, answer["error"]["param"]) == (status, param)


def test_only_the_administrator_manages_keys(gateway: Gateway) -> None:
    held = gateway.keys("create", "--name", "ci", "--owner", "alice")
    for path in ("/v1/admin/keys", f"/v1/admin/keys/{id_of(held)}"):
        assert gateway.send("GET", path, authorization=f"Bearer {held}")[0] == 403
        assert gateway.send("GET", path)[0] == 401
        assert gateway.send("GET", path, authorization="Bearer " + ADMIN[:-1])[0] == 401
    described = gateway.send("GET", "/openapi.json")[1]["paths"]
    assert set(described["/v1/admin/keys"]) == {"get", "post"}
    assert set(described["/v1/admin/keys/{name}"]) == {"get", "post", "delete"}


def test_only_the_administrator_reads_the_numbers_of_all(gateway: Gateway) -> None:
    held = gateway.keys("create", "--name", "numbers", "--owner", "mallory")
    assert gateway.send("GET", "/metrics", authorization=f"Bearer {held}")[0] == 403
    assert gateway.send("GET", "/metrics")[0] == 401
    request = urllib.request.Request(f"{gateway.url}/metrics", headers={"authorization": f"Bearer {ADMIN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert b"process_cpu_seconds_total" in answer.read()


def test_odd_headers_are_refused_cleanly(gateway: Gateway) -> None:
    held = gateway.keys("create", "--name", "ci", "--owner", "alice")
    models = "/v1/models"
    assert gateway.send("GET", models, x_api_key=held)[0] == 200
    assert gateway.send("GET", models, authorization=f"bearer  {held} ")[0] == 200
    odd: list[dict[str, str]] = [
        {},
        {"authorization": held},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {held}"},
        {"authorization": "Bearer " + "x" * 40_000},
        {"authorization": "Bearer sk-\u00e9\u00ff\u00b2"},
        {"authorization": f"Bearer {held} {held}"},
        {"authorization": f"Bearer {held.replace('sk-', 'sk-' + chr(0xB2))}"},
        {"authorization": f"Bearer {held}", "x-api-key": "another"},
        {"x-api-key": "' or '1'='1"},
        {"authorization": f"Bearer sk-{id_of(held)}-" + "A" * 43},
    ]
    for headers in odd:
        status, answer = gateway.send("GET", models, **headers)
        assert status == 401, headers
        assert answer["error"]["code"] == "invalid_api_key"
        assert held not in json.dumps(answer)


def test_two_keys_in_one_request_are_refused(gateway: Gateway) -> None:
    import http.client

    held = gateway.keys("create", "--name", "ci", "--owner", "alice")
    line = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
    line.putrequest("GET", "/v1/models")
    for key in (held, ADMIN):
        line.putheader("authorization", f"Bearer {key}")
    line.endheaders()
    answer = line.getresponse()
    assert answer.status == 401
    answer.read()
    line.close()


def test_no_log_line_or_error_has_a_secret(gateway: Gateway, tmp_path: Path) -> None:
    held = gateway.keys("create", "--name", "ci", "--owner", "alice")
    wrong = held[:-4] + "AAAA"
    said = [str(gateway.send("POST", "/v1/chat/completions", {"model": 5}, authorization=f"Bearer {held}"))]
    for key in (held, wrong, ADMIN, ADMIN + "x"):
        paths = ("/v1/models", "/v1/nothing", "/v1/admin/keys", "/v1/admin/keys/0123456789ab")
        said += [str(gateway.send("GET", path, authorization=f"Bearer {key}")) for path in paths]
    shown = "".join(said)
    configured = subprocess.run(
        [PIPELINE, "config", *gateway.overrides],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PIPELINE_ADMIN_KEY": ADMIN},
    )
    log = gateway.log.read_text()
    for secret in (held, wrong, held[16:], wrong[16:], ADMIN):
        assert secret not in shown
        assert secret not in log
        assert secret not in configured.stdout + configured.stderr


def test_elsewhere_than_on_loopback_it_serves_with_keys_and_not_without(tmp_path: Path) -> None:
    refused = subprocess.run(
        [PIPELINE, "serve", "server.port=0", "server.host=0.0.0.0", *ECHO],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    assert "Choose an option of `keys`" in refused.stderr
    with serving(tmp_path, sqlite_shop(tmp_path).overrides, "server.host=0.0.0.0") as gateway:
        assert gateway.send("GET", "/v1/models")[0] == 401
        assert gateway.send("GET", "/health/live")[0] == 200

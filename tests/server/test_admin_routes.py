"""Routes that are for administrators alone, and requests that give several keys."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from pipeline import hookimpl
from pipeline.call import Tenant
from pipeline.graph import Graph
from pipeline.hookspecs import Route
from pipeline.plan import plan_graph
from pipeline.server.app import App
from pipeline.settings import ServerConfig
from tests.stages import Empty, registry


class Adds:
    """Adds `/secret` for administrators and `/plain` for everyone."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        pass

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        yield Route("/secret", answer, methods=("GET", "POST"), admin=True)
        yield Route("/plain", answer)


class Asks:
    """Takes any key's text for its owner's name; `root` is an administrator."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        pass

    @hookimpl
    def pipeline_authenticate(self, headers: Mapping[str, str]) -> Tenant | None:
        name = headers.get("authorization")
        return Tenant(name, name, admin=name == "root") if name else None


async def answer(scope: Any, receive: Any, send: Any) -> None:
    body = json.dumps(scope["tenant"].key).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(path: str, *headers: tuple[str, str], method: str = "GET", keys: bool = True) -> tuple[int, Any]:
    """Status and JSON of one request, to a server with keys or an open one."""
    config: dict[str, Any] = {
        "graph": {"entry": "small", "stages": {"small": {}}},
        "small": {"plugin": "infer.answer"},
        "adds": {"plugin": "keys.adds"},
        "asks": {"plugin": "keys.asks" if keys else None},
        "extensions": {"adds": "adds", "asks": "asks"},
    }
    known = registry(keys_adds=f"{__name__}:Adds", keys_asks=f"{__name__}:Asks")
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def go() -> None:
        app = App(Graph.build(plan_graph(config, known)), ServerConfig())
        await app.open()
        raw = [(b"host", b"localhost"), *((name.encode(), value.encode()) for name, value in headers)]
        await app({"type": "http", "path": path, "method": method, "headers": raw}, receive, send)
        await app.close()

    asyncio.run(go())
    return sent[0]["status"], json.loads(sent[1]["body"])


def error_of(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_administrator_may_and_another_may_not(method: str) -> None:
    assert ask("/secret", ("authorization", "root"), method=method) == (200, "root")
    assert error_of(ask("/secret", ("authorization", "alice"), method=method)) == (403, "permission_denied")
    assert error_of(ask("/secret", method=method)) == (401, "invalid_api_key")
    assert ask("/plain", ("authorization", "alice")) == (200, "alice")


@pytest.mark.parametrize("site", ["cross-site", "same-site", ""])
def test_pages_of_other_sites_may_not_act_as_the_administrator(site: str) -> None:
    headers = (("authorization", "root"), ("sec-fetch-site", site))
    assert error_of(ask("/secret", *headers)) == (403, "cross_site")
    assert error_of(ask("/secret", *headers[1:], keys=False)) == (403, "cross_site")
    assert ask("/plain", *headers) == (200, "root")


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_pages_of_the_server_itself_may(site: str) -> None:
    assert ask("/secret", ("authorization", "root"), ("sec-fetch-site", site))[0] == 200


def test_in_open_mode_everyone_on_this_machine_is_the_administrator() -> None:
    assert ask("/secret", keys=False) == (200, "anonymous")


def test_a_request_with_two_keys_is_nobodys() -> None:
    keys = [("authorization", "alice"), ("authorization", "root")]
    for sent in (keys, keys[::-1]):
        assert error_of(ask("/plain", *sent)) == (401, "invalid_api_key")
    assert ask("/plain", keys[0], ("x-note", "a"), ("x-note", "b")) == (200, "alice")

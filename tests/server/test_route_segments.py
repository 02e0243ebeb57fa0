"""Addresses of plugins with segments that stand for any, and what the server says of them."""

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import hookimpl
from pipeline.graph import Graph
from pipeline.hookspecs import Route
from pipeline.plan import plan_graph
from pipeline.server.app import App
from pipeline.server.openapi import describe
from pipeline.settings import ServerConfig
from tests.stages import Empty, registry


class Order(BaseModel):
    """What to bring."""

    count: int


class Adds:
    """Adds addresses with segments, beside one that is spelled out."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        pass

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        yield Route("/shelf.v1/{shelf}/books/{book}", told)
        yield Route("/shelf.v1/{shelf}/order", told, methods=("POST",), about="Order one.", body=Order)
        yield Route("/shelf.v1/own/books/this", told)


async def told(scope: Any, receive: Any, send: Any) -> None:
    body = json.dumps(scope.get("path_params")).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def built() -> App:
    config: dict[str, Any] = {
        "graph": {"entry": "small", "stages": {"small": {}}},
        "small": {"plugin": "infer.answer"},
        "adds": {"plugin": "keys.adds"},
        "extensions": {"adds": "adds"},
    }
    return App(Graph.build(plan_graph(config, registry(keys_adds=f"{__name__}:Adds"))), ServerConfig())


async def opened() -> App:
    app = built()
    await app.open()
    return app


def ask(path: str, method: str = "GET", *, loading: bool = False) -> tuple[int, Any]:
    """Status and JSON of one request."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def run() -> None:
        app = built() if loading else await opened()
        cycle = SimpleNamespace(identify=lambda _: None)
        scope = {"type": "http", "path": path, "method": method, "headers": [(b"host", b"localhost")]}
        await app({**scope, "cycle": cycle}, receive, send)
        await app.close()

    asyncio.run(run())
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("path", "status", "params"),
    [
        ("/shelf.v1/a/books/b c", 200, {"shelf": "a", "book": "b c"}),
        ("/shelf.v1/own/books/this", 200, None),
        ("/shelf.v1/own/books/that", 200, {"shelf": "own", "book": "that"}),
        ("/shelf.v1/a/books/b/c", 404, None),
        ("/shelf.v1/a/books/", 404, None),
        ("/shelfxv1/a/books/b", 404, None),
        ("/shelf.v1/a/order", 405, None),
    ],
)
def test_a_segment_stands_for_one_part_of_the_path(path: str, status: int, params: Any) -> None:
    got, body = ask(path)
    assert got == status
    if got == 200:
        assert body == params


def test_an_address_that_may_be_a_plugins_is_not_said_to_be_missing_while_it_loads() -> None:
    status, body = ask("/shelf.v1/a/books/b", loading=True)
    assert (status, body["error"]["code"]) == (503, "not_ready")


def test_what_a_route_says_of_itself_is_in_the_description() -> None:
    async def run() -> Any:
        app = await opened()
        described = describe(app)
        await app.close()
        return described

    described = asyncio.run(run())
    order = described["paths"]["/shelf.v1/{shelf}/order"]["post"]
    assert order["summary"] == "Order one."
    assert [parameter["name"] for parameter in order["parameters"]] == ["shelf"]
    schema = order["requestBody"]["content"]["application/json"]["schema"]
    assert described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["required"] == ["count"]

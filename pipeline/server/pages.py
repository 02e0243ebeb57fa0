"""The endpoints that tell about the server: models, health, its own description."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.call import Tenant
from pipeline.errors import ModelNotFound, Overloaded
from pipeline.hookspecs import Route
from pipeline.server.openapi import describe
from pipeline.stage import Model

if TYPE_CHECKING:
    from pipeline.server.app import App, Receive, Scope, Send


def routes(app: App) -> Iterable[Route]:
    """Models, health, and the description as JSON and as a page."""
    yield Route("/v1/models", _json(lambda scope: _models(app, scope["tenant"])))
    yield Route("/v1/models/*", _json(lambda scope: _model(app, scope)))
    yield Route("/health/live", _json(lambda scope: {"status": "live"}), public=True)
    yield Route("/health/ready", _json(lambda scope: _ready(app)), public=True)
    yield Route("/openapi.json", _Description(app), public=True)
    yield Route("/docs", _docs, public=True)


def _json(answer: Callable[[Scope], dict[str, Any]]) -> Callable[..., Any]:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, orjson.dumps(answer(scope)), b"application/json")

    return handle


class _Description:
    """The OpenAPI document, made once for all: what plugins add is known when all are open."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._bytes = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = self._bytes or orjson.dumps(describe(self._app))
        if self._app.ready:
            self._bytes = content
        await _send(send, content, b"application/json")


async def _docs(scope: Scope, receive: Receive, send: Send) -> None:
    page = files("pipeline.server").joinpath("docs.html").read_bytes()
    await _send(send, page, b"text/html; charset=utf-8")


async def _send(send: Send, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    headers.append((b"x-content-type-options", b"nosniff"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _ready(app: App) -> dict[str, Any]:
    if not app.ready:
        state = "draining" if app.draining else "loading"
        raise Overloaded(f"The server is {state}.", code=state, headers=((b"retry-after", b"1"),))
    return {"status": "ready"}


def _models(app: App, tenant: Tenant) -> dict[str, Any]:
    named = [model for model in app.graph.models if model.id and model.allowed(tenant, model.id)]
    return {"object": "list", "data": [_entry(model) for model in named]}


def _model(app: App, scope: Scope) -> dict[str, Any]:
    name: str = scope["path"].removeprefix("/v1/models/")
    for model in app.graph.models:
        named = model.id and (name == model.id or name in model.aliases)
        if named and model.allowed(scope["tenant"], name):
            return _entry(model)
    raise ModelNotFound(f"The model `{name[:256]}` does not exist.", param="model")


def _entry(model: Model) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "operations": sorted(model.operations),
        "capabilities": sorted(model.capabilities),
        "context_window": model.context_window,
        "aliases": list(model.aliases),
    }
    return entry

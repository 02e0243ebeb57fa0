"""A call that fails: what is left of it."""

import asyncio
import gc
import logging
import weakref
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from pipeline import Call, Reply
from pipeline.errors import RateLimited
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from pipeline.server.app import App
from pipeline.server.cycle import Cycle
from pipeline.settings import ServerConfig
from tests.stages import Empty, registry


class Wire(asyncio.Transport):
    """Keeps what is written."""

    sent = b""

    def writelines(self, parts: Any) -> None:
        self.sent += b"".join(parts)


raised: list["weakref.ref[Refusal]"] = []


class Refusal(RateLimited):
    """Known after it is gone."""

    def __init__(self) -> None:
        super().__init__("Too many.")
        raised.append(weakref.ref(self))


class Refusing:
    """Refuses every call."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        self.models = ()

    async def __call__(self, call: Call) -> Reply:
        raise Refusal


def test_a_refusal_leaves_nothing_for_the_garbage_collector() -> None:
    plan = plan_graph(
        {"graph": {"entry": "limit", "stages": {"limit": {}}}, "limit": {"plugin": "infer.refusing"}},
        registry(infer_refusing=f"{__name__}:Refusing"),
    )
    graph = Graph.build(plan)
    app = App(graph, ServerConfig())
    app.ready = True

    async def ask() -> bytes:
        wire, log = Wire(), logging.getLogger("test")
        cycle = Cycle(
            {}, wire, FlowControl(wire), log, log, False, [], asyncio.Event(), False, True, lambda: None
        )  # type: ignore[arg-type]
        cycle.body = bytearray(b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}')
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app({**scope, "cycle": cycle, "whole": True}, None, None)  # type: ignore[arg-type]
        return wire.sent

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(ask()).startswith(b"HTTP/1.1 429 ")
        assert [error() for error in raised] == [None]
    finally:
        gc.enable()

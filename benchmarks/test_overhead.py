"""What the framework costs: a stage, a request, a chunk, a start, a worker's memory."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from benchmarks import load
from benchmarks.processes import PIPELINE, Process, pipeline_server, post, start, wait_ready
from benchmarks.upstream import CHUNKS
from pipeline import Call, Edge, Reply
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from pipeline.plugins import Registry

LITELLM = os.environ.get("LITELLM_PYTHON", "")
"""An interpreter beside which the peer's `litellm` is installed."""

REQUESTS = 4000
STREAMS = 32


class Empty(BaseModel):
    """No options."""


class Pass:
    """Passes on and does nothing else."""

    Config = Empty

    def __init__(self, config: Empty, next: Edge) -> None:
        self.next = next

    async def __call__(self, call: Call) -> Reply:
        """Pass on."""
        return await self.next(call)


class Answer:
    """Answers with the same reply always."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        self.reply = Reply(body=b"{}")
        self.models = ()

    async def __call__(self, call: Call) -> Reply:
        """Answer."""
        return self.reply


def chain(length: int) -> Graph:
    """A graph of `length` stages that pass on, and one that answers."""
    names = [f"s{index}" for index in range(length)] + ["end"]
    stages: dict[str, Any] = {name: {"next": names[index + 1]} for index, name in enumerate(names[:-1])}
    nodes = {name: {"plugin": "x.pass"} for name in names[:-1]} | {"end": {"plugin": "x.answer"}}
    entries = [
        EntryPoint(f"x.{c.__name__.lower()}", f"{__name__}:{c.__name__}", "pipeline") for c in (Pass, Answer)
    ]
    config = {"graph": {"entry": names[0], "stages": {**stages, "end": {}}}, **nodes}
    return Graph.build(plan_graph(config, Registry(entries)))


def seconds_per_call(graph: Graph, calls: int = 20_000) -> float:
    """CPU seconds of making one call and sending it through a graph."""

    async def go() -> float:
        body: dict[str, Any] = {"model": "default"}
        started = time.process_time()
        for _ in range(calls):
            await graph(Call(id="", operation="chat", body=body, deadline=1e9, received=0))
        return (time.process_time() - started) / calls

    return asyncio.run(go())


def test_stage(benchmark: Any, note: Callable[..., None]) -> None:
    short, long = chain(0), chain(6)
    bare = min(seconds_per_call(short) for _ in range(5))
    whole = benchmark.pedantic(lambda: min(seconds_per_call(long) for _ in range(5)), rounds=1)
    plain = min(plain_closures(6) for _ in range(5))
    per_stage = (whole - bare) / 6 * 1e6
    beside = f"a plain awaited closure: {plain * 1e6:.2f} µs"
    note("pass-through stage, timed and recorded", per_stage, "µs", 1.0, beside)


def plain_closures(length: int, calls: int = 20_000) -> float:
    """CPU seconds of one awaited closure in a chain: the floor for a stage."""

    async def end(call: object) -> None:
        return None

    def wrap(next: Any) -> Any:
        async def passing(call: object) -> Any:
            return await next(call)

        return passing

    async def go() -> float:
        chained: Any = end
        for _ in range(length):
            chained = wrap(chained)
        started = time.process_time()
        for _ in range(calls):
            await chained(None)
        return (time.process_time() - started) / calls / length

    return asyncio.run(go())


def cpu_per_request(server: Process, payload: bytes, count: int = REQUESTS, connections: int = 8) -> float:
    """CPU µs of a server process for one request, after a warm-up; the best of three goes."""

    def once() -> float:
        before = server.cpu()
        load.run(server.port, payload, count, connections)
        return (server.cpu() - before) / count * 1e6

    load.run(server.port, payload, max(count // 10, connections), connections)
    return min(once() for _ in range(3))


def test_proxied_request(
    benchmark: Any, note: Callable[..., None], proxy: Process, upstream: Process, relay: Process
) -> None:
    user = {"role": "user", "content": f"{load.NUMBER.decode()}: what is a llama, and what is it kept for?"}
    payload = load.request({**load.CHAT, "messages": [user], "temperature": 0})
    cost = benchmark.pedantic(lambda: cpu_per_request(proxy, payload), rounds=1)
    floor, bare = cpu_per_request(upstream, payload), cpu_per_request(relay, payload)
    beside = f"uvicorn alone: {floor:.0f} µs, a bare relay: {bare:.0f} µs"
    note("proxied chat completion, default graph, cache missed", cost, "µs CPU", 220, beside)


@pytest.mark.skipif(not LITELLM, reason="needs LITELLM_PYTHON, a Python with litellm[proxy]")
def test_litellm(
    benchmark: Any, note: Callable[..., None], proxy: Process, upstream: Process, tmp_path: Path
) -> None:
    """The peer, with nothing of its own switched on: no keys, no database, no cache, one worker."""
    payload = load.request({**load.CHAT, "temperature": 0.7})
    target = {"model": "openai/static", "api_base": f"{upstream.url}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "default", "litellm_params": target}],
        "litellm_settings": {"telemetry": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True"]
    command += ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true"]
    command += [str(Path(LITELLM).with_name("litellm")), "--config", str(tmp_path / "config.yaml")]
    with start([*command, "--host", "127.0.0.1", "--port", str(port)]) as peer:
        wait_ready(peer.url, path="/health/liveliness")
        theirs = benchmark.pedantic(lambda: cpu_per_request(peer, payload, 400), rounds=1)
    ours = cpu_per_request(proxy, payload)
    beside = (
        f"LiteLLM's proxy, all of it optional left out: {theirs:.0f} µs, {theirs / ours:.0f} times as much"
    )
    note("proxied chat completion, default graph, not cacheable", ours, "µs CPU", 220, beside)


def test_streamed_chunk(
    benchmark: Any, note: Callable[..., None], proxy: Process, upstream: Process, relay: Process
) -> None:
    whole = load.request(load.CHAT)
    payload = load.request({**load.CHAT, "stream": True})

    def per_chunk(server: Process) -> float:
        streamed = cpu_per_request(server, payload, STREAMS * 4, STREAMS)
        return (streamed - cpu_per_request(server, whole, REQUESTS // 4)) / CHUNKS

    cost = benchmark.pedantic(lambda: per_chunk(proxy), rounds=1)
    beside = (
        f"a bare relay: {per_chunk(relay):.1f} µs, uvicorn sending only: {per_chunk(upstream):.1f} µs; "
        f"{STREAMS} streams, 2 ms apart"
    )
    note("streamed chunk passed through", cost, "µs CPU", 15, beside)


def test_echo_request(benchmark: Any, note: Callable[..., None], echo: Process, upstream: Process) -> None:
    payload = load.request(load.CHAT)
    cost = benchmark.pedantic(lambda: cpu_per_request(echo, payload), rounds=1)
    floor = cpu_per_request(upstream, payload)
    note("validated and answered by echo", cost, "µs CPU", None, f"uvicorn alone: {floor:.0f} µs")
    note("memory of a worker without models", echo.memory() / 2**20, "MiB", 120)


def test_start(benchmark: Any, note: Callable[..., None]) -> None:
    def first_answer() -> float:
        started = time.perf_counter()
        with start([PIPELINE, "serve", "server.port=0"]) as server:
            wait_ready(server.url)
            post(f"{server.url}/v1/chat/completions", {**load.CHAT, "max_tokens": 1})
            return time.perf_counter() - started

    first_answer()
    seconds = benchmark.pedantic(first_answer, rounds=1)
    note("`serve` to the first answer of the packaged model", seconds, "s", 2.0)


def test_commands(benchmark: Any, note: Callable[..., None]) -> None:
    def timed(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([PIPELINE, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    timed("check")
    help_seconds = benchmark.pedantic(lambda: min(timed("--help") for _ in range(5)), rounds=1)
    note("`pipeline --help`", help_seconds, "s", 0.3)
    note("`pipeline check`", min(timed("check") for _ in range(5)), "s", 0.6)


def test_memory_is_flat(benchmark: Any, note: Callable[..., None]) -> None:
    payload = load.request(load.CHAT)
    with pipeline_server("infer=echo", "infer@embed=none") as server:
        load.run(server.port, payload, 5_000)
        before = server.memory()
        benchmark.pedantic(lambda: load.run(server.port, payload, 50_000), rounds=1)
        note("memory grown over 50,000 requests", (server.memory() - before) / 2**20, "MiB", 2)

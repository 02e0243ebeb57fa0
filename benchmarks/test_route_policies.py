"""What each routing policy costs: until the target is called, and for the whole request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict

from benchmarks import load
from pipeline import Call, Edges, Model, Price, Reply
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from pipeline.plugins import Registry

CALLS = 20_000
BODY = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A llama is a South American camelid. " * 6},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 50, "total_tokens": 90},
    }
)
RAW = orjson.dumps(load.CHAT)

POLICIES: dict[str, dict[str, Any]] = {
    "direct": {},
    "weighted": {"weights": {"a": 3, "b": 1}},
    "round_robin": {},
    "least_busy": {},
    "latency": {},
    "cheapest": {},
    "sticky": {},
    "ab": {},
    "bandit": {},
    "cascade": {"min_confidence": None},
    "shadow": {"share": 0.0},
}
"""Each policy with its options; `shadow` mirrors nothing here, see its own row for what a copy costs."""


class Target:
    """Answers at once, and notes when it was called."""

    class Config(BaseModel):
        """Its name, price and window."""

        model_config = ConfigDict(extra="forbid")
        price: float = 1.0

    entered = 0

    def __init__(self, config: Config, name: str) -> None:
        capabilities = frozenset({"streaming", "tools"})
        price = Price(config.price, config.price)
        self.models = (
            Model(name, frozenset({"chat"}), capabilities=capabilities, context_window=8192, price=price),
        )

    async def __call__(self, call: Call) -> Reply:
        """Answer."""
        Target.entered = time.perf_counter_ns()
        return Reply(body=BODY)


class Bare:
    """Passes on along its first edge: the least that any router costs."""

    class Config(BaseModel):
        """No options."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.next = next["a"]

    async def __call__(self, call: Call) -> Reply:
        """Pass on."""
        return await self.next(call)


def a_graph(router: str | None, options: dict[str, Any]) -> Graph:
    """A router before two targets, or a target alone."""
    own = (("infer.target", Target), ("route.bare", Bare))
    entries = [EntryPoint(name, f"{__name__}:{cls.__name__}", "pipeline") for name, cls in own]
    config: dict[str, Any] = {
        "a": {"plugin": "infer.target", "price": 1.0},
        "b": {"plugin": "infer.target", "price": 9.0},
        "graph": {"entry": "a", "stages": {"a": {}}},
    }
    if router is not None:
        ways = {"next": "a", "shadow": "b"} if router == "shadow" else {"next": {"a": "a", "b": "b"}}
        config["route"] = {"plugin": f"route.{router}", **options}
        config["graph"] = {"entry": "route", "stages": {"route": ways, "a": {}, "b": {}}}
    registry = Registry([*entry_points(group="pipeline"), *entries])
    return Graph.build(plan_graph(config, registry))


def a_call(deadline: float) -> Call:
    """A client's request as the server hands it over: bytes, and parsed."""
    headers = {"authorization": "Bearer not-needed", "x-session-id": "session-1"}
    body = dict(load.CHAT)
    return Call(id="", operation="chat", raw=RAW, body=body, deadline=deadline, received=0, headers=headers)


def cpu_per_call(router: str | None, options: dict[str, Any], calls: int = CALLS) -> float:
    """CPU µs of making a call and sending it through; the best of five goes."""

    async def go() -> float:
        graph = a_graph(router, options)
        await graph.open()
        deadline = asyncio.get_running_loop().time() + 3600
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for _ in range(calls):
                await graph(a_call(deadline))
            best = min(best, time.process_time() - started)
            await asyncio.sleep(0)
        await graph.close()
        return best / calls * 1e6

    return asyncio.run(go())


def decisions(router: str, options: dict[str, Any]) -> tuple[float, float]:
    """p50 and p99 µs from the router's start until its target is called; least of five goes."""

    async def go() -> tuple[float, float]:
        graph = a_graph(router, options)
        await graph.open()
        deadline = asyncio.get_running_loop().time() + 3600
        goes = []
        for _ in range(5):
            taken = []
            for _ in range(CALLS // 2):
                call = a_call(deadline)
                started = time.perf_counter_ns()
                await graph(call)
                taken.append(Target.entered - started)
            taken.sort()
            goes.append((taken[len(taken) // 2] / 1e3, taken[len(taken) * 99 // 100] / 1e3))
            await asyncio.sleep(0)
        await graph.close()
        return min(p50 for p50, _ in goes), min(p99 for _, p99 in goes)

    return asyncio.run(go())


@pytest.mark.parametrize("policy", POLICIES)
def test_policy(benchmark: Any, note: Callable[..., None], policy: str) -> None:
    options = POLICIES[policy]
    cpu_per_call(None, {})  # the first go warms up
    alone = cpu_per_call(None, {})
    whole = benchmark.pedantic(lambda: cpu_per_call(policy, options), rounds=1)
    alone = min(alone, cpu_per_call(None, {}))
    bare = cpu_per_call("bare", {}) - alone
    beside = f"a stage that takes its first edge: {bare:.2f} µs"
    note(f"route={policy}: added to a request", whole - alone, "µs CPU", None, beside)
    p50, p99 = decisions(policy, options)
    least, most = decisions("bare", {})
    beside = f"p99 {p99:.2f} µs; a stage that takes its first edge: {least:.2f} and {most:.2f} µs"
    note(f"route={policy}: until its target is called, p50", p50, "µs", None, beside)


def test_mirrored_call(benchmark: Any, note: Callable[..., None]) -> None:
    whole = benchmark.pedantic(lambda: mirrored(share=1.0), rounds=1)
    alone = mirrored(share=0.0)
    note("route=shadow: a copy, its answer read and discarded", whole - alone, "µs CPU")


def mirrored(share: float, calls: int = 5_000) -> float:
    """CPU µs of a call of which this share is mirrored, until all copies have ended."""

    async def go() -> float:
        graph = a_graph("shadow", {"share": share})
        await graph.open()
        deadline = asyncio.get_running_loop().time() + 3600
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for _ in range(calls):
                await graph(a_call(deadline))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            best = min(best, time.process_time() - started)
        await graph.close()
        return best / calls * 1e6

    return asyncio.run(go())

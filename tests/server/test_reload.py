"""Reloading: a new graph takes over between two requests, and a wrong one does not."""

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.processes import PIPELINE, Process, start, wait_ready
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from tests.stages import registry

CONFIG = """\
defaults:
  - graph: default
  - limit: none
  - limit@budget: none
  - limit@concurrency: none
  - cache: none
  - rag: none
  - validate: none
  - route: direct
  - infer: {infer}
  - infer@embed: none
  - monitor: log
  - server: default
  - _self_
infer: {{{settings}}}
"""


def write(folder: Path, name: str, infer: str = "echo", more: str = "") -> None:
    settings = f"name: {name}, tokens_per_second: 20"
    (folder / "pipeline.yaml").write_text(CONFIG.format(infer=infer, settings=settings) + more)


def write_proxy(folder: Path, upstream: Process, max_connections: int) -> None:
    settings = f"base_url: '{upstream.url}/v1', model: first, max_connections: {max_connections}"
    (folder / "pipeline.yaml").write_text(CONFIG.format(infer="openai", settings=settings))


@contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[Process]:
    if not (folder / "pipeline.yaml").exists():
        write(folder, "first")
    with start([PIPELINE, "serve", "-c", str(folder), "server.port=0", *overrides]) as server:
        wait_ready(server.url)
        yield server


def models(server: Process) -> list[str]:
    with urllib.request.urlopen(f"{server.url}/v1/models", timeout=30) as answer:
        return [model["id"] for model in json.load(answer)["data"]]


def reload(server: Process) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{server.url}/v1/admin/reload", b"", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_signal_brings_a_new_graph_into_force_while_calls_end_on_the_former(tmp_path: Path) -> None:
    words = [str(n) for n in range(60)]  # 3 s at 20 tokens a second

    async def go(server: Process) -> list[str]:
        body = {"messages": [{"role": "user", "content": " ".join(words)}], "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/v1/chat/completions", json=body) as answer,
        ):
            lines = [(await answer.content.readline()).decode()]
            write(tmp_path, "second")
            os.kill(server.process.pid, signal.SIGHUP)
            await asyncio.to_thread(eventually, lambda: models(server) == ["second"])
            lines += [line.decode() async for line in answer.content]
        return [line for line in lines if line.startswith("data: ")]

    with serving(tmp_path) as server:
        assert models(server) == ["first"]
        *chunks, last = asyncio.run(go(server))
        assert last.strip() == "data: [DONE]"
        parsed = [json.loads(chunk[6:]) for chunk in chunks]
        assert {chunk["model"] for chunk in parsed} == {"first"}
        said = "".join(choice["delta"].get("content") or "" for c in parsed for choice in c["choices"])
        assert said.split() == words


def test_a_stream_goes_on_though_its_model_is_kept_by_one_reload_and_dropped_by_the_next(
    tmp_path: Path,
) -> None:
    async def go(upstream: Process, server: Process) -> str:
        body = {"messages": [{"role": "user", "content": "one two " * 20}], "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/v1/chat/completions", json=body) as answer,
        ):
            await answer.content.readline()
            assert (await asyncio.to_thread(reload, server))[0] == 200
            write_proxy(tmp_path / "proxy", upstream, max_connections=9)
            assert (await asyncio.to_thread(reload, server))[0] == 200
            return (await answer.content.read()).decode()

    (tmp_path / "upstream").mkdir()
    (tmp_path / "proxy").mkdir()
    with serving(tmp_path / "upstream") as upstream:
        write_proxy(tmp_path / "proxy", upstream, max_connections=8)
        with serving(tmp_path / "proxy") as server:
            assert asyncio.run(go(upstream, server)).endswith("data: [DONE]\n\n")


def test_an_administrator_reloads_and_is_told_what_is_wrong(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        write(tmp_path, "second")
        assert reload(server) == (200, {"status": "reloaded"})
        assert models(server) == ["second"]
        write(tmp_path, "third", infer="ecko")
        status, answer = reload(server)
        assert (status, answer["error"]["code"]) == (400, "invalid_config")
        assert "ecko" in answer["error"]["message"]
        assert models(server) == ["second"]


@pytest.mark.parametrize("workers", [1, 2])
def test_without_its_primary_config_a_folder_is_not_reloaded_as_if_it_had_none(
    tmp_path: Path, workers: int
) -> None:
    with serving(tmp_path, f"server.workers={workers}") as server:
        (tmp_path / "pipeline.yaml").unlink()
        status, answer = reload(server)
        assert (status, answer["error"]["code"]) == (400, "invalid_config")
        assert "pipeline.yaml" in answer["error"]["message"]
        assert models(server) == ["first"]


def test_what_needs_a_new_process_is_not_reloaded(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        write(tmp_path, "second", more="server: {backlog: 99}\n")
        status, answer = reload(server)
        assert status == 400
        assert "server.backlog" in answer["error"]["message"]
        assert models(server) == ["first"]


def ask(server: Process, **more: Any) -> int:
    body = json.dumps({"messages": [{"role": "user", "content": "a b c"}], **more}).encode()
    url = f"{server.url}/v1/chat/completions"
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_budgets_hold_across_a_reload(tmp_path: Path) -> None:
    priced = ["+price=genai", "+extensions.price=price", "price.models={second:{completion:1}}"]
    budget = ["limit@budget=budget", "budget.scope=global", "budget.usd_per_day=0.0001"]
    with serving(tmp_path, *priced, *budget, f"+vars.state={tmp_path}/state") as server:
        write(tmp_path, "second")
        assert reload(server) == (200, {"status": "reloaded"})
        answers = [ask(server, max_tokens=60) for _ in range(50)]
        assert (answers[0], answers[-1]) == (200, 429)
        assert reload(server)[0] == 200
        assert ask(server, max_tokens=60) == 429


def test_a_signal_during_a_reload_is_followed_by_another_reload(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for n in range(5):
            write(tmp_path, f"model{n}")
            os.kill(server.process.pid, signal.SIGHUP)
            time.sleep(0.02)
        eventually(lambda: models(server) == ["model4"])


def test_every_worker_reloads(tmp_path: Path) -> None:
    with serving(tmp_path, "server.workers=2") as server:
        write(tmp_path, "second")
        assert reload(server) == (202, {"status": "reloading"})
        seen: list[list[str]] = []

        def all_new() -> bool:
            seen.append(models(server))
            return seen[-20:] == [["second"]] * 20

        eventually(all_new)


@pytest.mark.parametrize("text", ["hello", "other"])
def test_a_model_whose_config_is_the_same_stays_loaded(text: str) -> None:
    def config(entry: str, text: str) -> dict[str, Any]:
        stages = {entry: {"next": "small"}, "small": {}}
        nodes = {entry: {"plugin": "monitor.pass"}, "small": {"plugin": "infer.answer", "text": text}}
        return {"graph": {"entry": entry, "stages": stages}, **nodes}

    async def go() -> None:
        former = Graph.build(plan_graph(config("a", "hello"), registry()))
        await former.open()
        events = former.stages["small"].events
        events.clear()
        graph = Graph.build(plan_graph(config("b", text), registry()), former)
        await graph.open()
        graph.take_over(former)
        await former.close()
        same = text == "hello"
        assert (former.stages["small"] is graph.stages["small"]) is same
        assert events == ([] if same else ["open small", "close small"])
        await graph.close()
        assert events[-1:] == ["close small"]

    asyncio.run(go())

"""Real upstream processes killed under load: no answer is cut silently, and all is well again after."""

import asyncio
import json
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

from benchmarks.processes import PIPELINE, Process, pipeline_server, start, wait_ready

WORDS = " ".join(f"word{index}" for index in range(20))
CLIENTS = 6
PATIENCE = 60

GRAPH = """
# @package _global_
defaults:
  - /infer@a: openai
  - /infer@b: openai
graph:
  entry: monitor
  stages:
    monitor: {next: route}
    route: {next: [a, b]}
    a: {}
    b: {}
"""


@contextmanager
def upstream(name: str, port: int):
    """A server of 20 tokens in a fifth of a second, at a port that a later one can take over."""
    command = [PIPELINE, "serve", f"server.port={port}", "infer=echo", f"infer.name={name}"]
    with start([*command, "infer.tokens_per_second=100", "infer@embed=none", "monitor=none"]) as server:
        wait_ready(server.url)
        yield server


def gateway(folder: Path, a: Process, b: Process):
    (folder / "graph").mkdir()
    (folder / "graph" / "pair.yaml").write_text(GRAPH)
    targets = [
        f"{n}.{key}" for n, s in (("a", a), ("b", b)) for key in (f"base_url={s.url}/v1", f"model={n}")
    ]
    resilience = ["resilience=standard", "resilience.retry.backoff=0.01", "resilience.breaker.open_for=0.3"]
    quick = ["resilience.outliers.eject_for=0.3", "resilience.outliers.max_eject_for=0.3"]
    overrides = ["graph=pair", "route=fallback", *targets, *resilience, *quick, "monitor.success=false"]
    return pipeline_server("-c", str(folder), *overrides)


async def ask(session: aiohttp.ClientSession, url: str, stream: bool) -> tuple[str, str]:
    """What became of a call (`whole`, `error`), and the target that answered; fails for a silent cut."""
    body = {"messages": [{"role": "user", "content": WORDS}], "stream": stream}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        route = answer.headers["x-pipeline-route"]
        data = await answer.read()
    if answer.status != 200:
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}
        return "error", route
    if not stream:
        assert json.loads(data)["choices"][0]["message"]["content"] == WORDS
        return "whole", route
    events = [block.removeprefix("data: ") for block in data.decode().split("\n\n")[:-1]]
    if events[-1] != "[DONE]":
        assert json.loads(events[-1])["error"]["type"] == "upstream_error"
        assert not any('"finish_reason":"' in event for event in events)
        return "error", route
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == WORDS
    return "whole", route


class Load:
    """Clients that ask without a pause, every second one for streams; `seen` is what they got."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.seen: list[tuple[str, str, bool]] = []
        self._stopped = False
        self._tasks = [
            asyncio.create_task(self._client(session, url, bool(index % 2))) for index in range(CLIENTS)
        ]

    async def _client(self, session: aiohttp.ClientSession, url: str, stream: bool) -> None:
        while not self._stopped:
            self.seen.append((*await ask(session, url, stream), stream))

    async def until_answered_by(self, target: str, times: int) -> None:
        """Wait until a target has given so many whole answers from now on."""
        start = len(self.seen)
        while sum(seen[:2] == ("whole", target) for seen in self.seen[start:]) < times:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


def test_the_other_target_answers_while_one_is_dead_and_it_is_asked_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    async def go(url: str, first: Process, processes: ExitStack) -> Load:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            load = Load(session, url)
            await load.until_answered_by("a", 2 * CLIENTS)
            first.process.kill()
            await load.until_answered_by("b", 5 * CLIENTS)
            await asyncio.to_thread(processes.enter_context, upstream("a", port))
            await load.until_answered_by("a", 2 * CLIENTS)
            await load.stop()
            return load

    with ExitStack() as processes:
        first = processes.enter_context(upstream("a", port))
        second = processes.enter_context(upstream("b", 0))
        server = processes.enter_context(gateway(tmp_path, first, second))
        seen = asyncio.run(go(server.url, first, processes)).seen
    assert all(result == "whole" for result, _, stream in seen if not stream)
    broken = [route for result, route, stream in seen if result == "error" and stream]
    assert set(broken) <= {"a"}
    assert len(broken) <= CLIENTS


def test_with_every_target_dead_clients_are_told_and_all_recover(tmp_path: Path) -> None:
    with socket.socket() as found, socket.socket() as another:
        found.bind(("127.0.0.1", 0))
        another.bind(("127.0.0.1", 0))
        ports = {"a": found.getsockname()[1], "b": another.getsockname()[1]}

    async def go(url: str, dying: list[Process], processes: ExitStack) -> None:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            assert (await ask(session, url, True))[0] == "whole"
            for server in dying:
                server.process.kill()
            assert [(await ask(session, url, index % 2 == 0))[0] for index in range(12)] == ["error"] * 12
            for name, port in ports.items():
                await asyncio.to_thread(processes.enter_context, upstream(name, port))
            answered = ("error", "")
            while answered != ("whole", "a"):
                answered = await ask(session, url, True)

    with ExitStack() as processes:
        servers = [processes.enter_context(upstream(name, port)) for name, port in ports.items()]
        server = processes.enter_context(gateway(tmp_path, *servers))
        asyncio.run(go(server.url, servers, processes))

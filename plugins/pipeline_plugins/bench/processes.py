"""Processes of a benchmark: the server that is measured, and generators beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from pipeline_plugins.bench.arrivals import Load
from pipeline_plugins.bench.generator import Generator, Prompts
from pipeline_plugins.bench.result import Result
from pipeline_plugins.bench.targets import Remote, Target

PIPELINE = (sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())")

ADDRESS = re.compile(r"http://(?:[\w.-]+|\[[\w:.]+\]):\d+")

COST = re.compile(r"^pipeline_target_cost_usd_total\S* (\S+)$", re.MULTILINE)

HEAD_START = 0.5
"""Seconds that each further generator gets to start in."""


@dataclass(slots=True, frozen=True)
class Spec:
    """What a generator does; JSON for one in another process."""

    load: Load
    prompts: dict[str, Any]
    url: str
    key: str | None
    seconds: float
    most: int


async def generate(spec: Spec, target: Target, start: float, index: int = 0, processes: int = 1) -> Result:
    """Send every `processes`-th request from the one with number `index` on; `start` is monotonic time."""
    arrivals = islice(enumerate(spec.load), index, None, processes)
    generator = Generator(target, Prompts(**spec.prompts), most=max(1, spec.most // processes))
    try:
        return await generator.run(arrivals, start)
    finally:
        await target.close()


def run(work: Any) -> Any:
    """Run a coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def generate_remote(spec: Spec, processes: int) -> Result:
    """Send to a server from some processes at once, all by the same clock."""
    start = time.monotonic() + (HEAD_START * processes if processes > 1 else 0.05)
    if processes == 1:
        return _one(spec, start, 0, 1)
    command = [sys.executable, "-m", __name__]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 — our own
        for _ in range(processes)
    ]
    try:
        for index, child in enumerate(children):
            given = _dump(spec) | {"start": start, "index": index, "processes": processes}
            assert child.stdin is not None  # noqa: S101 — for the type checker
            child.stdin.write(json.dumps(given).encode())
            child.stdin.close()
            child.stdin = None
        whole = Result()
        for child in children:
            said, _ = child.communicate()
            if child.returncode:
                raise click.ClickException("A generator failed; what it said is above.")
            whole.merge(Result.load(json.loads(said)))
        return whole
    finally:
        for child in children:
            child.kill()
            child.wait()


def _one(spec: Spec, start: float, index: int, processes: int) -> Result:
    async def go() -> Result:
        target = Remote(
            spec.url,
            spec.key,
            streaming=spec.prompts["streaming"],
            seconds=spec.seconds,
            connections=max(1, spec.most // processes),
        )
        return await generate(spec, target, start, index, processes)

    found: Result = run(go())
    return found


def _dump(spec: Spec) -> dict[str, Any]:
    return asdict(spec) | {"load": asdict(spec.load) | {"trace": str(spec.load.trace or "")}}


def _main() -> None:
    given = json.loads(sys.stdin.buffer.read())
    start, index, processes = (given.pop(name) for name in ("start", "index", "processes"))
    load = Load(**{**given.pop("load"), "trace": None} if not given["load"]["trace"] else given.pop("load"))
    print(json.dumps(_one(Spec(load=load, **given), start, index, processes).dump()))  # noqa: T201


@contextlib.contextmanager
def served(overrides: tuple[str, ...], config: Path | None) -> Iterator[str]:
    """`pipeline serve` on a free loopback port, ready; its address.

    Raises ClickException with what it said.
    """
    command = [*PIPELINE, "serve", "server.port=0", "server.host=127.0.0.1", *overrides]
    if config is not None:
        command += ["--config", str(config)]
    said: deque[str] = deque(maxlen=30)
    found: list[str] = []
    ready = threading.Event()
    child = subprocess.Popen(  # noqa: S603 — our own
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )

    def listen() -> None:
        for line in child.stderr or ():
            said.append(line)
            if not found and (address := ADDRESS.search(line)):
                found.append(address[0])
                ready.set()
        ready.set()

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    try:
        ready.wait()
        if not found or not _wait_ready(found[0], child):
            child.wait()
            listening.join()
            raise click.ClickException("The server did not start:\n" + "".join(said))
        yield found[0]
    finally:
        child.terminate()
        child.wait()
        listening.join()


def _wait_ready(url: str, child: subprocess.Popen[str]) -> bool:
    while child.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=5):  # noqa: S310
            return True
        time.sleep(0.05)
    return False


def cost(url: str) -> float | None:
    """USD that a server has counted so far, None where it does not say."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            amounts = COST.findall(answer.read().decode())
    except OSError:
        return None
    return sum(map(float, amounts)) if amounts else None


if __name__ == "__main__":
    _main()

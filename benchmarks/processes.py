"""Servers under measurement: started, asked for their CPU time, stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PIPELINE = str(Path(sys.executable).parent / "pipeline")


@dataclass
class Process:
    """A running server: its address and its process."""

    url: str
    process: psutil.Process

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def cpu(self) -> float:
        """CPU seconds used so far, user and system."""
        times = self.process.cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)


@contextmanager
def start(command: list[str]) -> Iterator[Process]:
    """Start a server that says its `http://…` address on standard error, and stop it after."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stderr is not None
    drain: threading.Thread | None = None
    try:
        said = []
        for line in child.stderr:
            said.append(line)
            if found := re.search(r"http://[\w.]+:\d+", line):
                break
        else:
            raise RuntimeError(f"{command} did not start: {''.join(said)}")
        drain = threading.Thread(target=child.stderr.read, daemon=True)
        drain.start()
        yield Process(found.group(), psutil.Process(child.pid))
    finally:
        child.terminate()
        child.wait(30)
        if drain is not None:
            drain.join()
        child.stderr.close()


@contextmanager
def pipeline_server(*overrides: str) -> Iterator[Process]:
    """`pipeline serve` on a free port, ready."""
    with start([PIPELINE, "serve", "server.port=0", *overrides]) as server:
        wait_ready(server.url)
        yield server


def in_front_of(upstream: Process, model: str) -> list[str]:
    """Overrides for a gateway of one model, which an upstream answers for."""
    base = f"infer.base_url={upstream.url}/v1"
    return ["infer=openai", base, f"infer.model={model}", "infer@embed=none"]


def wait_ready(url: str, seconds: float = 120, path: str = "/health/ready") -> None:
    """Wait until `path` is answered with 200."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}{path}", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON request."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)  # type: ignore[no-any-return]

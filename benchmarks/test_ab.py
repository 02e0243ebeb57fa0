"""What experiments find in 2,000 simulated ones, each looked at after every one of 4,000 calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pipeline_plugins.experiment.sequence import mismatch

from benchmarks.ab import ALPHA, Draw, failing, lasting, simulate, steer

TESTS, CALLS = 2000, 4000

ALIKE: dict[str, tuple[Draw, int | None, bool]] = {
    "50 % fail": (failing(0.5), None, True),
    "10 % fail": (failing(0.1), None, True),
    "1 % fail": (failing(0.01), None, True),
    "10 % fail, 300 unlike users return": (failing(0.1, spread=0.8), 300, True),
    "latency": (lasting(), None, False),
    "latency, heavy tail": (lasting(sigma=1.0), None, False),
    "latency, 300 unlike users return": (lasting(spread=0.5), 300, False),
}

UNLIKE: dict[str, tuple[Draw, int | None, bool]] = {
    "10 % fail, 12 % with the variant": (failing(0.1, 0.02), None, True),
    "10 % fail, 15 % with the variant": (failing(0.1, 0.05), None, True),
    "10 % fail, 20 % with the variant": (failing(0.1, 0.1), None, True),
    "latency, 5 % more with the variant": (lasting(0.05), None, False),
    "latency, 10 % more with the variant": (lasting(0.1), None, False),
}


@pytest.mark.parametrize("name", ALIKE)
def test_no_difference(benchmark: Any, note: Callable[..., None], name: str) -> None:
    draw, units, share = ALIKE[name]
    given = {"tests": TESTS, "calls": CALLS, "units": units, "share": share, "seed": 7}
    found = benchmark.pedantic(lambda: simulate(draw, **given), rounds=1)
    note(
        f"A/A, {name}: found a difference",
        100 * found.always,
        "%",
        100 * ALPHA,
        f"a fixed test, looked at as often: {found.peeked:.1%}; once, at the end: {found.once:.1%}",
    )


@pytest.mark.parametrize("name", UNLIKE)
def test_difference(benchmark: Any, note: Callable[..., None], name: str) -> None:
    draw, units, share = UNLIKE[name]
    given = {"tests": TESTS, "calls": CALLS, "units": units, "share": share, "seed": 8}
    found = benchmark.pedantic(lambda: simulate(draw, **given), rounds=1)
    stopped = f"after {found.stopped:.0f} calls in the median" if found.stopped is not None else "never"
    note(
        f"A/B, {name}: found it",
        100 * found.always,
        "%",
        None,
        f"{stopped}; a fixed test, once, after {CALLS}: {found.once:.1%}",
    )


def test_shares(benchmark: Any, note: Callable[..., None]) -> None:
    def suspected(share: float) -> float:
        random = np.random.default_rng(9)
        found = 0
        for _ in range(TESTS):
            first = np.cumsum(random.random(1000) < share).tolist()
            found += any(mismatch([n, at + 1 - n], [0.5, 0.5]) < ALPHA for at, n in enumerate(first))
        return 100 * found / TESTS

    note(
        "units in the shares wanted: suspected, looked at after each of 1,000",
        benchmark.pedantic(lambda: suspected(0.5), rounds=1),
        "%",
        100 * ALPHA,
        f"55 % instead of 50 %: {suspected(0.55):.1f} %",
    )


STEERED = {
    "50 % fail in both": (0.5, 0.5),
    "10 % fail in both": (0.1, 0.1),
    "10 %, 15 % with the variant": (0.1, 0.15),
    "10 %, 20 % with the variant": (0.1, 0.2),
    "20 %, 50 % with the variant": (0.2, 0.5),
}


@pytest.mark.parametrize("name", STEERED)
def test_bandit(benchmark: Any, note: Callable[..., None], name: str) -> None:
    rates = STEERED[name]
    given = {"tests": TESTS, "calls": CALLS, "explore": 0.1, "seed": 10}
    found = benchmark.pedantic(lambda: steer(rates, **given), rounds=1)
    even = sum(rates) / 2
    plain, weighted = found.bias
    note(
        f"bandit, {name}: the interval was wrong at some time",
        100 * found.wrong,
        "%",
        100 * ALPHA,
        f"{found.failed:.1%} of calls failed, {even:.1%} with even shares; "
        f"found a difference: {found.found:.1%}; the control's rate at the end is off by {plain:+.2%}, "
        f"weighted by {weighted:+.2%}",
    )

"""What the learned router is worth and what it costs: APGR on held-out rows, training, a decision."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_plugins.route.capable_fit import Recipe, fit

from benchmarks.routing import DATA, Task


@pytest.fixture(scope="module")
def task() -> Task:
    """The routing data."""
    if not DATA.is_file():
        pytest.skip(f"the routing data is not at {DATA}")
    return Task.load()


def test_quality_against_strong_calls(benchmark: Any, note: Callable[..., None], task: Task) -> None:
    estimates = benchmark.pedantic(lambda: task.routed(Recipe(), task.labelled.prompts, 0), rounds=1)
    mmlu, gsm8k = task.curves(estimates)
    rebalanced = task.routed(Recipe(), task.labelled.prompts, 0, balance=True)
    mmlu_too, gsm8k_too = task.curves(rebalanced)
    beside = "random 0.5; `python -m benchmarks.routing` has the baselines and what each part gains"
    note("`route=capable`, MMLU, held out: APGR", mmlu.apgr, "", 0.70, beside, more_is_better=True)
    note("`route=capable`, MMLU: CPT(50%)", 100 * mmlu.cpt(0.5), "% strong", None, "random 50")
    note("`route=capable`, GSM8K, held out: APGR", gsm8k.apgr, "", 0.62, "random 0.5", more_is_better=True)
    beside = f"MMLU: {mmlu_too.apgr:.3f}"
    note("the same, sets balanced: APGR", gsm8k_too.apgr, "", 0.62, beside, more_is_better=True)


def test_training(benchmark: Any, note: Callable[..., None], task: Task, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from pipeline_plugins.route.train import command

    started = time.perf_counter()
    arguments = ["train", str(DATA), "--out", str(tmp_path)]
    benchmark.pedantic(
        lambda: CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False),
        rounds=1,
    )
    note("`pipeline route train`, 7,716 rows", time.perf_counter() - started, "s", 60)


def test_decision(benchmark: Any, note: Callable[..., None], task: Task) -> None:
    few = np.arange(0, len(task.sets), 8)
    estimator = fit(task.prompts.take(few), task.right[few], task.labelled.targets, Recipe(), 0)
    prompts = task.labelled.prompts[1::8]

    def timed(prompt: str) -> float:
        started = time.perf_counter()
        estimator.estimate(prompt)
        return time.perf_counter() - started

    seconds = benchmark.pedantic(lambda: [min(timed(p) for _ in range(3)) for p in prompts], rounds=1)
    note("`route=capable`, a decision, p50", 1e3 * float(np.median(seconds)), "ms", 5)
    note("`route=capable`, a decision, p99", 1e3 * float(np.quantile(seconds, 0.99)), "ms")

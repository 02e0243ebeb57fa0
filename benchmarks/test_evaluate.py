"""Evaluation: examples per second, what a sweep adds to its work, going on after a stop, comparing runs.

Times are CPU seconds: other work on the machine changes them little.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import orjson
import pytest
from pipeline_plugins.evaluate.compare import compare, find
from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.files import write_json, write_yaml
from pipeline_plugins.evaluate.journal import Journal
from pipeline_plugins.evaluate.metric import MEASURES, Metric, measures
from pipeline_plugins.evaluate.prepare import prepare
from pipeline_plugins.evaluate.run import Runner
from pipeline_plugins.evaluate.sweep import sweep
from pipeline_plugins.evaluate.table import write_examples

ECHO = ["infer=echo", "infer@embed=none", "monitor=none", "cache=none", "score=[exact_match]"]
EXAMPLES, POINTS = 10_000, 8


def questions(folder: Path, count: int) -> Path:
    """So many questions, of which each second one is expected to be echoed."""
    path = folder / f"questions-{count}.jsonl"
    rows = ({"id": n, "prompt": f"question {n}", "expected": f"question {n - n % 2}"} for n in range(count))
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def test_examples(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    prepared = prepare([*ECHO, f"data={questions(tmp_path, EXAMPLES)}"])
    folders = iter(tmp_path / f"run{n}" for n in range(100))

    def once() -> float:
        with Runner() as runner:
            started = process_time()
            runner.run(prepared, next(folders))
            return EXAMPLES / (process_time() - started)

    rate = benchmark.pedantic(lambda: max(once() for _ in range(3)), rounds=1)
    beside = "10,000 of them, the summary and the Parquet file included"
    note("examples evaluated with echo", rate, "/s", 1000, beside, more_is_better=True)


def test_a_sweeps_points(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    data = questions(tmp_path, 100)

    def once(name: str, points: int) -> float:
        seeds = ",".join(map(str, range(points)))
        started = process_time()
        assert sweep([*ECHO, f"data={data}", f"infer.seed={seeds}"], None, tmp_path / name) == 0
        return process_time() - started

    def work(name: str) -> float:
        runs = [prepare([*ECHO, f"data={data}", f"infer.seed={seed}"]) for seed in range(POINTS)]
        started = process_time()
        with Runner() as runner:
            for seed, prepared in enumerate(runs):
                runner.run(prepared, tmp_path / f"{name}-{seed}", answers=tmp_path / f"{name}.sqlite")
        return process_time() - started

    once("warm", 2)
    whole = benchmark.pedantic(
        lambda: min(once(f"sweep{repeat}", POINTS) for repeat in range(3)) / POINTS, rounds=1
    )
    own = min(work(f"work{repeat}") for repeat in range(3)) / POINTS
    beside = f"the work itself: {own:.3f} s; composing is most of the rest"
    note("a sweep's point of 100 examples, over its work", whole - own, "s", 0.3, beside)


def test_going_on(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    prepared = prepare([*ECHO, f"data={questions(tmp_path, EXAMPLES)}"])
    folders = iter(tmp_path / f"run{n}" for n in range(100))

    def once() -> float:
        folder = next(folders)
        folder.mkdir()
        journal = Journal(folder / "examples.jsonl")
        for example in prepared.data.examples[:-1]:
            outcome = Outcome(example.id, "completed", 200, answer="a")
            outcome.scores = {**measures(outcome), "exact_match": 1.0}
            journal.add(outcome)
        journal.close()
        with Runner() as runner:
            started = process_time()
            assert runner.run(prepared, folder).resumed == EXAMPLES - 1
            return process_time() - started

    took = benchmark.pedantic(lambda: min(once() for _ in range(3)), rounds=1)
    note(
        "going on with 1 of 10,000 examples left",
        took,
        "s",
        None,
        "the summary and the Parquet file included",
    )


@pytest.mark.skipif(os.environ.get("BENCH_LONG") != "1", reason="takes a minute: BENCH_LONG=1")
def test_comparing_100_runs(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    chance = random.Random(1)
    metrics = [Metric("exact_match"), *MEASURES]
    examples = [Example(str(n), {"messages": []}) for n in range(EXAMPLES)]
    for number in range(100):
        outcomes = [
            Outcome(one.id, "completed", 200, answer="a", usd=chance.random() / 100, seconds=chance.random())
            for one in examples
        ]
        for outcome in outcomes:
            right = float(chance.random() < 0.5 + number / 1000)
            outcome.scores = {**measures(outcome), "exact_match": right}
        made(tmp_path / f"run{number:03}", examples, outcomes, metrics)

    def once() -> float:
        started = process_time()
        compare(find(sorted(tmp_path.iterdir())))
        return process_time() - started

    took = benchmark.pedantic(once, rounds=1)
    note(
        "100 runs of 10,000 examples compared",
        took,
        "s",
        None,
        "3 metrics, 2,000 resamples, 9,999 permutations",
    )


def made(folder: Path, examples: list[Example], outcomes: list[Outcome], metrics: list[Metric]) -> None:
    """A run's folder as evaluation leaves it."""
    folder.mkdir()
    write_examples(folder / "examples.parquet", examples, outcomes, metrics)
    write_yaml(folder / "config.yaml", {"infer": {"plugin": "infer.echo", "seed": folder.name}})
    means = {
        metric.name: sum(one.scores.get(metric.name) or 0.0 for one in outcomes) / len(outcomes)
        for metric in metrics
    }
    write_json(folder / "metrics.json", {name: {"mean": mean} for name, mean in means.items()})
    write_json(
        folder / "manifest.json",
        {
            "state": "complete",
            "digest": folder.name,
            "quality": "exact_match",
            "overrides": [f"infer.seed={folder.name}"],
            "metrics": {metric.name: {"better": metric.better, "clock": metric.clock} for metric in metrics},
            "data": {"name": "made", "sha256": "0", "examples": len(examples)},
        },
    )

"""What each part of the learned router gains, on RouteLLM's MMLU and GSM8K labels.

    python -m benchmarks.routing [--embeddings vectors.npy] [--seeds 5] [--data prompts.csv.gz]

Every figure is on rows kept out of the fit: five folds by row (equal prompts share a fold),
repeated with other seeds; then folds by topic; then one fifth of the rows that took no part
in choosing the recipe. `--embeddings` adds the baselines on MiniLM vectors, which are
computed (minutes) where the file is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pipeline_plugins.route.capable_curve import Curve, HeldOut, calibration_error
from pipeline_plugins.route.capable_data import Labelled, read
from pipeline_plugins.route.capable_fit import (
    Prompts,
    Recipe,
    balanced,
    calibration,
    cross_fit,
    fit,
    folds,
    predict,
)
from rich import box
from rich.console import Console
from rich.table import Table

Array = NDArray[Any]

DATA = Path(__file__).parent.parent.parent / "shared/data/routing/prompts.csv.gz"
SETS = ("mmlu", "gsm8k")
OUTER_SEED = 20260
"""Deals the rows that took no part in choosing the recipe."""

PUBLISHED = {
    "RouteLLM, best of those trained on Arena": ((0.450, 0.769, 0.524), (0.544, 0.821, 0.475)),
    "RouteLLM, best with augmented data": ((0.354, 0.716, 0.603), (0.336, 0.633, 0.622)),
}
"""CPT(50%), CPT(80%), APGR on MMLU and GSM8K: arXiv 2406.18665v4, tables 2 and 3."""

RECIPES = {
    "words": replace(Recipe(), waves=0, topics=0),
    "kernel of shape": replace(Recipe(), words=False, topics=0),
    "kernel of shape and topics": replace(Recipe(), words=False),
    "words + kernel of shape": replace(Recipe(), topics=0),
    "words + kernel of shape and topics (`capable`)": Recipe(),
}


@dataclass(slots=True, frozen=True)
class Task:
    """The data, read once."""

    labelled: Labelled
    prompts: Prompts
    right: Array
    sets: Array

    @classmethod
    def load(cls, path: Path = DATA) -> Task:
        """Read the data."""
        labelled = read(path)
        prompts = Prompts.read(labelled.prompts)
        return cls(labelled, prompts, np.array(labelled.right), np.array(labelled.columns["set"]))

    def curves(self, estimates: Array, rows: Array | None = None) -> list[Curve]:
        """A curve for each set, of these rows or all; the targets are strong and weak."""
        advantage = estimates[:, 0] - estimates[:, 1]
        chosen = np.ones(len(self.sets), bool) if rows is None else rows
        parts = [chosen & (self.sets == name) for name in SETS]
        return [Curve.of(advantage[p], self.right[p, 0], self.right[p, 1]) for p in parts]

    def routed(
        self,
        recipe: Recipe,
        groups: list[str],
        seed: int,
        rows: Array | None = None,
        *,
        balance: bool = False,
    ) -> Array:
        """Estimates by cross-validation within `rows`; not a number elsewhere."""
        at = np.arange(len(self.sets)) if rows is None else np.flatnonzero(rows)
        fold = folds([groups[i] for i in at], 5, seed)
        estimates = np.full(self.right.shape, np.nan)
        weights = balanced(self.sets[at].tolist()) if balance else None
        prompts, right, targets = self.prompts.take(at), self.right[at], self.labelled.targets
        estimates[at] = cross_fit(prompts, right, targets, fold, recipe, seed, weights=weights)
        return estimates


def logistic(inside: Array, right: Array, outside: Array, penalty: float = 1.0) -> Array:
    """Logistic regression by Newton's method, one for each column of `right`."""
    x, y = (np.hstack([part, np.ones((len(part), 1))]) for part in (inside, outside))
    chances = []
    for column in right.T:
        weights = np.zeros(x.shape[1])
        for _ in range(8):
            p = 1 / (1 + np.exp(-x @ weights))
            curvature = (x * (p * (1 - p))[:, None]).T @ x + penalty * np.eye(x.shape[1])
            weights -= np.linalg.solve(curvature, x.T @ (p - column) + penalty * weights)
        chances.append(1 / (1 + np.exp(-y @ weights)))
    return np.stack(chances, axis=1)


def by_vectors(task: Task, vectors: Array, groups: list[str], seed: int) -> Array:
    """Estimates by two logistic regressions on embeddings, cross-validated."""
    fold = folds(groups, 5, seed)
    estimates = np.empty(task.right.shape)
    for number in range(5):
        inside = fold != number
        estimates[~inside] = logistic(vectors[inside], task.right[inside], vectors[~inside])
    return estimates


def embeddings(path: Path, prompts: list[str]) -> Array:
    """MiniLM vectors of the prompts, kept in a file."""
    if not path.is_file():
        from pipeline_plugins.infer.minilm_embedder import Embedder

        np.save(path, Embedder().embed(prompts, truncate=True))
    vectors: Array = np.load(path, allow_pickle=False).astype(np.float64)
    return vectors


def report(table: Table, name: str, runs: list[list[Curve]]) -> None:
    """A line: each set's mean APGR with its spread over seeds, and CPTs."""
    cells = []
    for at in range(len(SETS)):
        apgr = [run[at].apgr for run in runs]
        cells += [f"{np.mean(apgr):.3f} ± {np.std(apgr):.3f}"]
        cells += [f"{np.mean([run[at].cpt(share) for run in runs]):.1%}" for share in (0.5, 0.8)]
    table.add_row(name, *cells)
    print(f"{name}: {', '.join(cells)}", file=sys.stderr)


def untouched(task: Task, console: Console, *, balance: bool) -> None:
    """Fit on four fifths, report on the fifth that was kept apart, `quality` included."""
    prompts = task.labelled.prompts
    apart = np.random.default_rng(OUTER_SEED).random(len(prompts)) < 0.2
    seen = {prompts[row] for row in np.flatnonzero(~apart)}
    apart &= np.array([prompt not in seen for prompt in prompts])
    inside, outside = np.flatnonzero(~apart), np.flatnonzero(apart)
    targets = task.labelled.targets
    crossed = task.routed(Recipe(), prompts, 0, ~apart, balance=balance)[inside]
    slope, offset = calibration(crossed, task.right[inside])
    held_out = HeldOut(np.clip(offset + slope * crossed, 0, 1), task.right[inside])
    how = ", sets balanced" if balance else ""
    console.print(f"{len(outside)} rows that took no part in choosing the recipe{how}:")
    weights = balanced(task.sets[inside].tolist()) if balance else None
    fitted = fit(task.prompts.take(inside), task.right[inside], targets, Recipe(), 0, weights)
    estimates = np.full(task.right.shape, np.nan)
    raw = predict(fitted, task.prompts.take(outside))
    estimates[outside] = np.clip(offset + slope * raw, 0, 1)
    for name, curve in zip(SETS, task.curves(estimates, apart), strict=True):
        cpt = f"CPT(50%) {curve.cpt(0.5):.1%}, CPT(80%) {curve.cpt(0.8):.1%}"
        console.print(f"{name}: APGR {curve.apgr:.3f}, {cpt}")
    tested = HeldOut(estimates[outside], task.right[outside])
    strongest = tested.right.mean(axis=0).max()
    for at, target in enumerate(targets):
        error = calibration_error(tested.estimates[:, at], tested.right[:, at])
        console.print(f"calibration error of {target}: {error:.3f}")
    costs = np.array([1.0, 0.0])
    for share in (0.9, 0.95, 0.98):
        quality, calls = tested.routed(held_out.rate_for_quality(share, costs), costs)
        console.print(f"quality={share}: kept {quality / strongest:.3f} with {calls:.1%} strong calls")


def main(arguments: list[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args(arguments)
    if not options.data.is_file():
        print(f"The routing data is not at {options.data}; nothing to measure.")
        return 0
    console = Console(width=140, highlight=False)
    task, seeds = Task.load(options.data), range(options.seeds)
    same = task.labelled.prompts
    topics = task.labelled.columns["topic"]
    table = Table(box=box.SIMPLE, title=f"held-out rows, 5 folds, {len(seeds)} seeds")
    for heading in ("router", *(f"{s} {m}" for s in SETS for m in ("APGR", "CPT(50%)", "CPT(80%)"))):
        table.add_column(heading, justify="left" if heading == "router" else "right")
    table.add_row("always strong", *("–", "100.0%", "100.0%") * 2)
    table.add_row("always weak", *("–", "never", "never") * 2)
    for name, sets in PUBLISHED.items():
        table.add_row(name, *(c for a, b, g in sets for c in (f"{g:.3f}", f"{a:.1%}", f"{b:.1%}")))
    chance = [np.random.default_rng(seed).random(task.right.shape) for seed in seeds]
    report(table, "random", [task.curves(one) for one in chance])
    report(table, "what really happened (oracle)", [task.curves(task.right)])
    runs: dict[str, Callable[[list[str], int], Array]] = {
        name: lambda groups, seed, recipe=recipe: task.routed(recipe, groups, seed)  # type: ignore[misc]
        for name, recipe in RECIPES.items()
    }
    runs["`capable`, sets balanced"] = lambda groups, seed: task.routed(Recipe(), groups, seed, balance=True)
    if options.embeddings:
        vectors = embeddings(options.embeddings, same)
        baseline = "two logistic regressions on MiniLM"
        runs = {baseline: lambda groups, seed: by_vectors(task, vectors, groups, seed)} | runs
        whole = Recipe()
        runs["`capable` + MiniLM's estimates"] = lambda groups, seed: (
            task.routed(whole, groups, seed) + 0.3 * by_vectors(task, vectors, groups, seed)
        )
    for name, run in runs.items():
        report(table, name, [task.curves(run(same, seed)) for seed in seeds])
    for name, run in runs.items():
        report(table, f"{name}, new topics", [task.curves(run(topics, seed)) for seed in seeds[:2]])
    console.print(table)
    untouched(task, console, balance=False)
    untouched(task, console, balance=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

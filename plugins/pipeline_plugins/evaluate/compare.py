"""Runs held against each other: paired differences, how sure they are, and which config keys differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline_plugins.evaluate.example import DataError
from pipeline_plugins.evaluate.run import CONFIG, POINTS, damaged, read_manifest, read_metrics
from pipeline_plugins.evaluate.summary import AT_ONCE, Numbers, interval, resampled_means
from pipeline_plugins.evaluate.table import EXAMPLES, read_columns

IGNORED = ("eval.dir", "eval.concurrency", "eval.resamples", "eval.objective")
"""Keys whose values make no run another one."""


@dataclass(slots=True)
class Run:
    """A complete run, as it is compared. `label` is what tells it from the others."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    config: dict[str, Any]
    label: str = ""


@dataclass(slots=True, frozen=True)
class Difference:
    """A metric's mean less the baseline's, over the examples that both have.

    `p` is of a paired permutation test of no difference, adjusted by Holm's method for all
    tests of the comparison.
    """

    metric: str
    mean: float
    low: float
    high: float
    p: float
    examples: int


@dataclass(slots=True)
class Comparison:
    """Runs with their differences from the first one; `front` are the indices of the Pareto-best."""

    runs: list[Run]
    metrics: list[str]
    keys: dict[str, list[Any]]
    differences: list[dict[str, Difference]]
    front: set[int]
    axes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def find(folders: Iterable[Path]) -> list[Run]:
    """Runs in these folders, each once; a sweep's stand for its points.

    Raises `DataError` where there is none.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        points = sorted((folder / POINTS).glob("*/manifest.json"))
        found = [_read(path.parent) for path in points] if points else [_read(folder)]
        complete = [run for run in found if run is not None]
        if not complete:
            raise DataError(f"{folder} has no complete run.")
        for run in complete:
            runs.setdefault(run.folder.resolve(), run)
    return list(runs.values())


def _read(folder: Path) -> Run | None:
    manifest = read_manifest(folder)
    if manifest is None or manifest["state"] != "complete":
        return None
    try:
        config = yaml.load((folder / CONFIG).read_bytes(), Loader=LOADER)  # noqa: S506 — a safe one
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise damaged(folder, CONFIG, error) from None
    return Run(folder, manifest, read_metrics(folder), flat(config) if config else {})


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Key paths of all values that are not mappings, lists whole."""
    if not isinstance(node, Mapping) or not node:
        return {path: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def keys_that_differ(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Config keys whose values are not the same in all runs, with each run's; None where it has none.

    Fields of a plugin count only among the runs that have this plugin. A run without any, such as what
    a ledger recorded, is of a configuration that is not known.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in IGNORED)
    found = {}
    for key in keys:
        values = [run.config.get(key) for run in runs]
        plugin = f"{key.rpartition('.')[0]}.plugin"
        groups: dict[Any, Any] = {}
        for run, value in zip(runs, values, strict=True):
            if (
                run.config
                and groups.setdefault(None if key == plugin else run.config.get(plugin), value) != value
            ):
                found[key] = values
    return found


def compare(
    runs: Sequence[Run],
    metrics: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int = 9_999,
    seed: int = 0,
) -> Comparison:
    """Compare runs with the first. `metrics` None are the quality, cost and latency.

    Raises `DataError` for runs that have no example in common, or for a metric that none has.
    """
    quality = runs[0].manifest["quality"]
    axes = tuple(one for one in (quality, "cost_usd", "latency_s") if one is not None)
    wanted = [quality if name == "quality" and quality else name for name in metrics or axes]
    measured = dict.fromkeys(name for run in runs for name in run.metrics)
    chosen = [name for name in dict.fromkeys(wanted) if name in measured]
    if unknown := [name for name in wanted if name not in measured and metrics]:
        raise DataError(f"no run measures `{unknown[0]}`, but {', '.join(measured)}.")
    keys = keys_that_differ(runs)
    _label(runs)
    examples, columns = _paired(runs, chosen)
    differences = _differences(
        examples, columns, chosen, len(runs), confidence, resamples, permutations, seed
    )
    front = pareto(runs, axes)
    notes = []
    if len({run.manifest["data"]["sha256"] for run in runs}) > 1:
        notes.append("The runs are of different data: only examples of equal id are compared.")
    whole = max(run.manifest["data"]["examples"] for run in runs)
    if len(examples) < whole:
        notes.append(f"{len(examples)} examples are in all runs, of up to {whole}.")
    return Comparison(list(runs), chosen, keys, differences, front, axes, notes)


def _label(runs: Sequence[Run]) -> None:
    """Call each run by the overrides that not all have, or by its folder where that tells more."""
    shared = set.intersection(*(set(run.manifest["overrides"]) for run in runs))
    names = [" ".join(one for one in run.manifest["overrides"] if one not in shared) for run in runs]
    for run, name in zip(runs, names, strict=True):
        run.label = name if name and names.count(name) == 1 else run.folder.name


def _paired(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[list[str], Numbers]:
    """Ids that all runs have, and the values: `(examples, runs × metrics)`."""
    names = ["id", *(f"score.{name}" for name in metrics)]
    tables = [read_columns(run.folder / EXAMPLES, names) for run in runs]
    common = set(tables[0]["id"]).intersection(*(table["id"] for table in tables[1:]))
    ids = [id for id in tables[0]["id"] if id in common]
    if not ids:
        raise DataError("the runs have no example in common.")
    columns = []
    for table in tables:
        same = table["id"] == ids
        at = None if same else {id: n for n, id in enumerate(table["id"])}
        for name in metrics:
            values = np.array(table.get(f"score.{name}") or [None] * len(table["id"]), dtype=np.float64)
            columns.append(values if at is None else values[[at[id] for id in ids]])
    return ids, np.column_stack(columns)


def _differences(
    examples: Sequence[str],
    columns: Numbers,
    metrics: Sequence[str],
    runs: int,
    confidence: float,
    resamples: int,
    permutations: int,
    seed: int,
) -> list[dict[str, Difference]]:
    if runs < 2 or not metrics:
        return [{} for _ in range(runs)]
    width = len(metrics)
    paired = columns[:, width:] - np.tile(columns[:, :width], runs - 1)
    known = ~np.isnan(paired).all(axis=0)
    means = resampled_means(paired[:, known], resamples, seed)
    p = holm(permutation_test(paired[:, known], permutations, seed))
    found: list[dict[str, Difference]] = [{} for _ in range(runs)]
    for at, column in enumerate(np.flatnonzero(known).tolist()):
        values = paired[:, column]
        low, high = interval(values, means[:, at], confidence)
        count = int((~np.isnan(values)).sum())
        one = Difference(metrics[column % width], float(np.nanmean(values)), low, high, float(p[at]), count)
        found[1 + column // width][one.metric] = one
    return found


def permutation_test(differences: Numbers, permutations: int, seed: int) -> Numbers:
    """Two-sided p-values of paired differences, a column each, by flipping signs at random.

    `(b + 1) / (m + 1)` for `b` of `m` permutations at least as far from 0 (Phipson and Smyth 2010).
    """
    rows, count = differences.shape
    filled = np.where(np.isnan(differences), 0.0, differences).astype(np.float32)
    # Single precision takes half the time. Sums in another order differ in the last digits.
    least = np.abs(filled.sum(axis=0)) * np.float32(1 - 1e-5)
    random = np.random.default_rng(seed)
    further = np.zeros(count)
    step = max(1, AT_ONCE // rows)
    for start in range(0, permutations, step):
        size = min(step, permutations - start)
        bits = np.unpackbits(
            np.frombuffer(random.bytes(size * -(-rows // 8)), np.uint8).reshape(size, -1), axis=1
        )
        signs = bits[:, :rows].astype(np.float32) * 2 - 1
        further += (np.abs(signs @ filled) >= least).sum(axis=0)
    return (further + 1) / (permutations + 1)


def holm(p: Numbers) -> Numbers:
    """P-values adjusted for as many tests (Holm 1979): the chance of any false one stays bounded."""
    order = np.argsort(p)
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def pareto(runs: Sequence[Run], axes: Sequence[str]) -> set[int]:
    """Runs that no other one is as good as in every axis and better in one; no value is as bad as can be."""
    points = np.array([[_goodness(run, axis) for axis in axes] for run in runs])
    front = set()
    for at, point in enumerate(points):
        no_worse = (points >= point).all(axis=1)
        better = (points > point).any(axis=1)
        if not (no_worse & better).any():
            front.add(at)
    return front


def _goodness(run: Run, axis: str) -> float:
    found = run.metrics.get(axis)
    if found is None:
        return float("-inf")
    return float(found["mean"]) * (1 if run.manifest["metrics"][axis]["better"] == "higher" else -1)

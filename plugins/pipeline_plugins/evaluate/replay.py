"""Recorded calls and the same calls sent again: both as runs, and what the difference costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_plugins.evaluate.compare import Comparison, compare, find
from pipeline_plugins.evaluate.files import write_json, write_yaml
from pipeline_plugins.evaluate.metric import MEASURES, measures
from pipeline_plugins.evaluate.prepare import Prepared
from pipeline_plugins.evaluate.run import CONFIG, MANIFEST, OVERRIDES, Done, write_results
from pipeline_plugins.evaluate.summary import resampled_means, values_of
from pipeline_plugins.evaluate.table import EXAMPLES, read_columns

RECORDED = "recorded"
"""Folder within a replay's: the recorded calls as a run, which `pipeline compare` takes as any."""


@dataclass(slots=True, frozen=True)
class Cost:
    """What calls cost as recorded and as sent again, in USD, over those that have a price in both.

    change     of the sum, as a share of what was recorded; None where that is 0
    low, high  its interval: percentiles of paired bootstrap resamples of the calls
    seconds    from the first call to the last, as recorded
    """

    calls: int
    recorded: float
    replayed: float
    change: float | None
    low: float
    high: float
    seconds: float


def keep_recorded(prepared: Prepared, done: Done) -> Path:
    """Write what was recorded as a run beside the one that was made of it; returns its folder.

    Its configuration is not known. Scorers' metrics are of the answers sent again alone.
    """
    folder = done.folder / RECORDED
    folder.mkdir(mode=0o700, exist_ok=True)
    recorded = prepared.data.recorded
    for outcome in recorded:
        outcome.scores = measures(outcome)
    write_results(prepared, folder, recorded, MEASURES)
    write_yaml(folder / CONFIG, {})
    write_yaml(folder / OVERRIDES, [])
    facts = ("version", "state", "digest", "started", "objective", "metrics", "data", "seeds")
    told = {name: done.manifest[name] for name in facts}
    write_json(folder / MANIFEST, {**told, "overrides": [], "quality": None, "seconds": span(prepared)})
    return folder


def span(prepared: Prepared) -> float:
    """Seconds from the first recorded call to the last."""
    times = [example.at for example in prepared.data.examples if example.at is not None]
    return max(times) - min(times) if times else 0.0


def held_together(prepared: Prepared, done: Done) -> Comparison:
    """The recorded run and the one made of it, in all that both measure."""
    runs = find([keep_recorded(prepared, done), done.folder])
    names = [metric.name for metric in MEASURES if all(metric.name in run.metrics for run in runs)]
    settings = prepared.settings
    return compare(
        runs, names, confidence=settings.confidence, resamples=settings.resamples, seed=settings.seed
    )


def lost(prepared: Prepared, done: Done) -> Counter[str]:
    """Calls that were answered when they were recorded, and not now, counted by error."""
    now = read_columns(done.folder / EXAMPLES, ["outcome", "error"])
    pairs = zip(prepared.data.recorded, now["outcome"], now["error"], strict=True)
    return Counter(str(error) for before, after, error in pairs if not before.failed and after == "failed")


def cost_of(prepared: Prepared, done: Done) -> Cost | None:
    """What the recorded calls cost, and what they cost now; None where prices are not known in both."""
    column = "score.cost_usd"
    again = [{column: value} for value in read_columns(done.folder / EXAMPLES, [column])[column]]
    columns = np.column_stack(
        [
            values_of([outcome.scores for outcome in prepared.data.recorded], "cost_usd"),
            values_of(again, column),
        ]
    )
    columns = columns[~np.isnan(columns).any(axis=1)]
    if not len(columns):
        return None
    recorded, replayed = columns.sum(axis=0).tolist()
    settings, change, low, high = prepared.settings, None, 0.0, 0.0
    if recorded > 0:
        means = resampled_means(columns, settings.resamples, settings.seed)
        shares = means[means[:, 0] > 0]
        tail = (1 - settings.confidence) / 2
        low, high = np.quantile(shares[:, 1] / shares[:, 0] - 1, (tail, 1 - tail)).tolist()
        change = replayed / recorded - 1
    return Cost(len(columns), recorded, replayed, change, low, high, span(prepared))

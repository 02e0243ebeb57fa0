"""What a semantic cache reports: hits, measured errors, savings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import Metric
from pipeline_plugins.cache.semantic_decision import Tally


@dataclass(slots=True)
class Counts:
    """What happened to calls, and what hits saved."""

    exact: int = 0
    semantic: int = 0
    missed: int = 0
    bypassed: int = 0
    tokens: int = 0
    usd: float = 0.0


def info_of(counts: Counts, tally: Tally, questions: int) -> dict[str, Any]:
    """Hit rate, error rate with its 95 % interval, and savings, as plain values.

    The error rate is wrong hits per request, as measured by exploring.
    """
    asked = counts.exact + counts.semantic + counts.missed
    error, low, high = tally.error()
    return {
        "requests": asked,
        "bypassed": counts.bypassed,
        "misses": counts.missed,
        "hits": {"exact": counts.exact, "semantic": counts.semantic},
        "hit_rate": (counts.exact + counts.semantic) / asked if asked else 0.0,
        "error_rate": error,
        "error_interval": [low, high],
        "audited": tally.audited,
        "disproved": tally.disproved,
        "saved": {"tokens": counts.tokens, "usd": counts.usd},
        "questions": questions,
    }


def metrics(stage: str, info: dict[str, Any]) -> Iterable[Metric]:
    """What `info_of` says, as metrics."""
    hits = info["hits"]
    results = {"hit": hits["exact"], "semantic": hits["semantic"]}
    results |= {"miss": info["misses"], "bypass": info["bypassed"]}
    low, high = info["error_interval"]
    errors = {"measured": info["error_rate"], "low": low, "high": high}
    yield Metric(
        "pipeline_cache_calls_total",
        "Calls by result.",
        "counter",
        {(stage, result): float(count) for result, count in results.items()},
        ("stage", "result"),
    )
    yield Metric(
        "pipeline_cache_error_rate",
        "Wrong hits per request, with the ends of the 95 % interval.",
        "gauge",
        {(stage, bound): value for bound, value in errors.items()},
        ("stage", "bound"),
        "max",
    )
    for what, value in info["saved"].items():
        yield Metric(
            f"pipeline_cache_saved_{what}_total",
            f"{what} of calls that hits saved.",
            "counter",
            {(stage,): float(value)},
            ("stage",),
        )
    yield Metric(
        "pipeline_cache_questions",
        "Questions known now.",
        "gauge",
        {(stage,): float(info["questions"])},
        ("stage",),
    )

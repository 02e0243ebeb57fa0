"""From a ledger's sums to the figures of a page, as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import orjson

from pipeline_plugins.dashboard.source import MOST, Counts, Group, Source
from pipeline_plugins.dashboard.window import DAY, Range, Window
from pipeline_plugins.histogram import ERROR, Histogram
from pipeline_plugins.ledger.report import summary, wilson
from pipeline_plugins.price.projection import LEAST, Projection, project

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

TIMES: tuple[Literal["first", "total"], ...] = ("first", "total")

PATHS = 200
"""Calls whose paths are looked at where a stage has several callers."""

DAYS = 40
"""Days of spend that are read: this month's, and those that its projection looks at."""

SPLIT = ("completed", "cached", "refused", "failed", "cancelled")
"""What calls came to: each is in one."""

SUMMED = ("prompt_tokens", "completion_tokens", "usd", "saved_cache_usd", "saved_route_usd")

Figures = dict[str, Any]

Edges = frozenset[tuple[str, str]]


def figures(source: Source, range: Range, edges: Edges) -> Figures:
    """All of a page but the lists of calls. `edges` are the graph's, by caller and target. Blocks."""
    now = time.time()
    window = Window.of(range, now)
    steps, models = _groups(source, window)
    return {
        "range": range,
        "since": window.since,
        "until": window.until,
        "step": window.step,
        "now": now,
        "error": ERROR,
        "series": _series(window, steps),
        "totals": _totals(models.values(), window),
        "before": _split(source.total(window.before())),
        "models": _ranked(models),
        "keys": [_key(name, counts) for name, counts in source.ranked("key", window)],
        "errors": [{"error": name, **_split(counts)} for name, counts in source.ranked("error", window)],
        "cost": _cost(source, window),
        "graph": _graph(source, window, edges),
        **_said(source, window),
    }


def _groups(source: Source, window: Window) -> tuple[dict[int, Group], dict[str, Group]]:
    """The calls of each step, and of each model: all calls, either way."""
    steps: dict[int, Group] = {}
    models: dict[str, Group] = {}
    for start, name, counts, first, total in source.spans("model", window, window.size):
        step = window.since + (start - window.since) // window.step * window.step
        steps.setdefault(step, Group()).add(counts, first, total)
        models.setdefault(name, Group()).add(counts, first, total)
    return steps, models


def _split(counts: Counts) -> Figures:
    """Sums, with the calls that a cache answered apart from those that a model did."""
    cached = min(counts["hits"], counts["completed"])
    return {
        "calls": counts["calls"],
        "completed": counts["completed"] - cached,
        "cached": cached,
        **{name: counts[name] for name in SPLIT[2:]},
        **{name: counts[name] for name in SUMMED},
    }


def _totals(groups: Iterable[Group], window: Window) -> Figures:
    whole, first, total = Group(), Histogram(), Histogram()
    for group in groups:
        whole.add(group.counts)
        first.merge(group.histogram("first"))
        total.merge(group.histogram("total"))
    return {
        **_split(whole.counts),
        "seconds": window.seconds,
        "stream_tokens_per_second": _pace(whole.counts),
        "first_ms": _quantiles(first),
        "total_ms": _quantiles(total),
    }


def _pace(counts: Counts) -> float | None:
    """Tokens in a second of one stream, once it has begun."""
    return counts["stream_tokens"] / counts["stream_ms"] * 1000 if counts["stream_ms"] else None


def _series(window: Window, steps: dict[int, Group]) -> Figures:
    """Columns for charts; None where there is nothing to be said."""
    groups = [steps.get(step, Group()) for step in window.steps]
    rows = [_split(group.counts) for group in groups]
    series: Figures = {name: [row[name] for row in rows] for name in (*SPLIT, *SUMMED)}
    for name in TIMES:
        found = [_quantiles(group.histogram(name)) for group in groups]
        series[f"{name}_ms"] = {label: [one[label] for one in found] for label in QUANTILES}
    return {"time": window.steps, **series}


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    return dict(zip(QUANTILES, histogram.quantiles(tuple(QUANTILES.values())), strict=True))


def _timed(group: Group) -> Figures:
    """Sums and latency."""
    first, total = _quantiles(group.histogram("first")), _quantiles(group.histogram("total"))
    return {**_split(group.counts), "total_ms": total, "first_ms": first}


def _ranked(models: dict[str, Group]) -> list[Figures]:
    """By calls, the most first; what is beyond `MOST` is one row without a name."""
    ranked = sorted(models.items(), key=lambda item: -item[1].counts["calls"])
    rows: list[Figures] = [{"model": model, "others": 0, **_timed(group)} for model, group in ranked[:MOST]]
    if rest := ranked[MOST:]:
        other = Group()
        for _, group in rest:
            other.add(group.counts)
            other.first += group.first
            other.total += group.total
        rows.append({"model": None, "others": len(rest), **_timed(other)})
    return rows


def _key(name: str, counts: Counts) -> Figures:
    owner, _, key = name.rpartition("/")
    return {"owner": owner, "key": key, **_split(counts)}


def _cost(source: Source, window: Window) -> Figures:
    """Today's and this month's cost, and what the month will come to. Days are of UTC."""
    now = window.now
    found = source.daily(int(now) - DAYS * DAY, window.until)
    days = {time.strftime("%Y-%m-%d", time.gmtime(start)): usd for start, usd in found.items()}
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    # The middle of thousands of drawn months: not drawn anew for each cent of today's.
    coarse = {**days, today: float(f"{days.get(today, 0.0):.2g}")}
    projected = _projected(tuple(sorted(coarse.items())), today)
    return {
        "today": days.get(today, 0.0),
        "month": sum(usd for day, usd in days.items() if day[:7] == today[:7]),
        "projected": None
        if projected is None
        else {"usd": projected.usd, "low": projected.low, "high": projected.high, "days": projected.days},
        "least": LEAST,
    }


@lru_cache(maxsize=4)
def _projected(days: tuple[tuple[str, float], ...], today: str) -> Projection | None:
    return project(dict(days), today)


def _graph(source: Source, window: Window, edges: Edges) -> Figures:
    """Each stage's own time, of all passages, and how often each edge was taken.

    All that come to a stage with one caller came from there. Where there are several, some
    calls' paths tell the part of each.
    """
    stages: dict[str, Group] = {}
    for _, name, counts, _, total in source.spans("stage", window):
        stages.setdefault(name, Group()).add(counts, None, total)
    whole = sum(group.counts["total_ms"] for group in stages.values()) or 1.0
    callers = Counter(to for _, to in edges)
    taken: Counter[tuple[str, str]] = Counter()
    if any(calls > 1 for calls in callers.values()):
        for path in source.paths(window, PATHS):
            taken.update((step["from"], step["to"]) for step in orjson.loads(path))
    arrived = Counter[str]()
    for (_, to), calls in taken.items():
        arrived[to] += calls
    return {
        "stages": {
            name: {
                "calls": group.counts["calls"],
                "raised": group.counts["failed"],
                "share": group.counts["total_ms"] / whole,
                **_quantiles(group.histogram("total")),
            }
            for name, group in stages.items()
        },
        "edges": [
            {
                "from": caller,
                "to": to,
                "calls": stages[to].counts["calls"]
                * (1 if callers[to] == 1 else taken[caller, to] / (arrived[to] or 1)),
            }
            for caller, to in edges
            if to in stages
        ],
    }


def _said(source: Source, window: Window) -> Figures:
    """What people and checks say of answers, and how the variants of experiments compare."""
    arms: dict[str, Group] = {}
    for _, name, counts, first, total in source.spans("variant", window):
        arms.setdefault(name, Group()).add(counts, first, total)
    rated = source.rated_variants(window) if arms else {}
    checks = source.failed_checks(window).most_common(MOST)
    scored: dict[str, Group] = {}
    for _, name, counts, _, total in source.spans("score", window):
        scored.setdefault(name, Group()).add(counts, None, total)
    return {
        "quality": {
            "ratings": summary(source.ratings(window)),
            "checks": [{"check": name, "calls": calls} for name, calls in checks],
            "scores": [_scored(name, group) for name, group in sorted(scored.items())],
        },
        "experiments": [_arm(name, group, rated.get(name)) for name, group in sorted(arms.items())],
    }


def _scored(name: str, group: Group) -> Figures:
    """A check's scores: in its own scale, those that passed and those that did not."""
    calls = group.counts["calls"]
    tenth, median = group.histogram("total").quantiles((0.1, 0.5))
    return {
        "check": name,
        "calls": calls,
        "mean": group.counts["score"] / calls,
        "median": median,
        "tenth": tenth,
    }


def _arm(name: str, group: Group, rated: Counter[bool] | None) -> Figures:
    experiment, _, variant = name.partition("=")
    calls, failed = int(group.counts["calls"]), int(group.counts["failed"])
    positive, ratings = (rated[True], rated.total()) if rated is not None else (0, 0)
    return {
        "experiment": experiment,
        "variant": variant,
        **_timed(group),
        "failed_interval": wilson(failed, calls) if calls else None,
        "positive": positive,
        "rated": ratings,
        "positive_interval": wilson(positive, ratings) if ratings else None,
    }

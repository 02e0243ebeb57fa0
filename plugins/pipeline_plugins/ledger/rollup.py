"""Sums over minutes, ten minutes, hours and days, kept as rows are written.

What asks for a week of traffic reads some hundred of these rows instead of millions of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.schema import COUNTS, HISTOGRAMS

MINUTE = 60

LARGER = (600, 3600, 86_400)
"""Seconds of the spans that minutes are folded into."""

KEEP = {MINUTE: 2 * 86_400, 600: 14 * 86_400, 3600: 400 * 86_400}
"""Seconds for which spans of a size are kept; days stay."""

KINDS = ("model", "target", "stage", "variant", "error", "owner", "key")

WITH_HISTOGRAMS = ("model", "stage", "variant")

LATE = 120
"""Seconds after its end at which a minute is folded. A call that is written later goes into all sizes."""

Key = tuple[str, int, str]
"""Kind, start and name."""

Row = dict[str, Any]


class Sums:
    """A row of the rollup in the making."""

    __slots__ = ("counts", "histograms", "slowest", "slowest_ms")

    def __init__(self) -> None:
        self.counts: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self.histograms: dict[str, Histogram] = {}
        self.slowest_ms: float | None = None
        self.slowest: str | None = None

    def add(self, counts: dict[str, float], histograms: dict[str, Histogram], row: Row) -> None:
        """Add sums; `row` has the `slowest_ms` and `slowest` to compare with its own."""
        for name, count in counts.items():
            self.counts[name] += count
        for name, histogram in histograms.items():
            self.histogram(name).merge(histogram)
        slowest = row["slowest_ms"]
        if slowest is not None and (self.slowest_ms is None or slowest > self.slowest_ms):
            self.slowest_ms, self.slowest = slowest, row["slowest"]

    def histogram(self, name: str) -> Histogram:
        """One of its histograms, made where missing."""
        found = self.histograms.get(name)
        if found is None:
            found = self.histograms[name] = Histogram()
        return found

    def values(self, key: Key, size: int) -> tuple[Any, ...]:
        """Values in the order of `schema.ROLLUP`."""
        kind, start, name = key
        histograms = (self.histograms[h].to_bytes() if h in self.histograms else None for h in HISTOGRAMS)
        return (kind, size, start, name, *self.counts.values(), *histograms, self.slowest_ms, self.slowest)


Summed = dict[Key, Sums]


def summed(written: Iterable[tuple[Row, list[tuple[Any, ...]]]]) -> Summed:
    """The sums by minute of calls (values by column), each with its attempts (in the order of `ATTEMPTS`)."""
    found: Summed = {}
    for row, attempts in written:
        _add(found, row, attempts)
    return found


def _add(found: Summed, row: Row, attempts: list[tuple[Any, ...]]) -> None:
    minute = int(row["time"]) // MINUTE * MINUTE
    counts = _counts(row, len(attempts))
    # A refusal takes no time: among answers it would make them look fast.
    timed = ("first", "total") if row["outcome"] == "completed" else ()
    histograms = {name: Histogram((row[f"{name}_ms"],)) for name in timed if row[f"{name}_ms"] is not None}
    if row["gaps"]:
        histograms["gap"] = Histogram.from_bytes(row["gaps"])
    slow = {"slowest_ms": row["total_ms"], "slowest": row["id"]}
    names = [("model", row["used"] or "")]
    names += [("variant", f"{name}={variant}") for name, variant in orjson.loads(row["variants"]).items()]
    for kind, name in names:
        found.setdefault((kind, minute, name), Sums()).add(counts, histograms, slow)
    others = [("owner", row["owner"]), ("key", f"{row['owner']}/{row['key']}")]
    if row["route"] is not None:
        others.append(("target", row["route"]))
    if row["outcome"] != "completed":
        others.append(("error", row["error"] or str(row["status"])))
    for kind, name in others:
        found.setdefault((kind, minute, name), Sums()).add(counts, {}, slow)
    for name, passed in _stages(row, attempts):
        stage = found.setdefault(("stage", minute, name), Sums())
        total = Histogram((passed["total_ms"],))
        stage.add(passed, {"total": total}, {"slowest_ms": passed["total_ms"], "slowest": row["id"]})


def _counts(row: Row, attempts: int) -> dict[str, float]:
    saved = orjson.loads(row["saved"]) if row["saved"] else {}
    counts: dict[str, float] = {
        "calls": 1,
        row["outcome"]: 1,
        "attempts": attempts,
        "limited": row["admitted"] == 0,
        "invalid": row["valid"] == 0,
        "hits": row["cache"] in ("hit", "semantic"),
        "misses": row["cache"] == "miss",
        "streams": row["streaming"],
        "prompt_tokens": row["prompt_tokens"] or 0,
        "cached_tokens": row["cached_tokens"] or 0,
        "completion_tokens": row["completion_tokens"] or 0,
        "total_ms": row["total_ms"],
        "usd": row["usd"] or 0.0,
        "saved_cache_usd": saved.get("cache", 0.0),
        "saved_route_usd": saved.get("route", 0.0),
    }
    if row["first_ms"] is not None and attempts and row["completion_tokens"]:
        counts["stream_tokens"] = row["completion_tokens"]
        counts["stream_ms"] = row["total_ms"] - row["first_ms"]
    return counts


def _stages(row: Row, attempts: list[tuple[Any, ...]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each passage of a stage, by its own time; that of a model is its attempt's, streams to their end."""
    for _, _, stage, _, outcome, _, _, prompt, cached, completion, usd, _, seconds, *_ in attempts:
        if seconds is not None:
            yield (
                stage,
                {
                    "calls": 1,
                    outcome: 1,
                    "prompt_tokens": prompt or 0,
                    "cached_tokens": cached or 0,
                    "completion_tokens": completion or 0,
                    "usd": usd or 0.0,
                    "total_ms": seconds * 1000,
                },
            )
    tried = {attempt[2] for attempt in attempts}
    for step in orjson.loads(row["path"]):
        if step["to"] not in tried:
            outcome = {"ok": "completed", "CancelledError": "cancelled"}.get(step["outcome"], "failed")
            yield step["to"], {"calls": 1, outcome: 1, "total_ms": step["own_ms"]}


def larger(sums: Summed, size: int) -> Summed:
    """The same sums by a larger span."""
    found: Summed = {}
    for (kind, start, name), one in sums.items():
        row = {"slowest_ms": one.slowest_ms, "slowest": one.slowest}
        found.setdefault((kind, start // size * size, name), Sums()).add(one.counts, one.histograms, row)
    return found


def read(row: Row) -> tuple[Key, Sums]:
    """A row of the table."""
    sums = Sums()
    histograms = {name: Histogram.from_bytes(row[name]) for name in HISTOGRAMS if row[name]}
    sums.add({name: row[name] for name in COUNTS}, histograms, row)
    return (row["kind"], row["start"], row["name"]), sums

"""Sums over minutes, ten minutes, hours and days, kept as rows are written.

What asks for a week of traffic reads some hundred of these rows instead of millions of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.schema import COUNTS, HISTOGRAMS

MINUTE = 60

LARGER = (600, 3600, 86_400)
"""Seconds of the spans that minutes are folded into."""

KEEP = {MINUTE: 2 * 86_400, 600: 14 * 86_400, 3600: 400 * 86_400}
"""Seconds for which spans of a size are kept; days stay."""

KINDS = ("model", "target", "stage", "variant", "error", "owner", "key", "score")

WITH_HISTOGRAMS = ("model", "stage", "variant", "score")

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
        self.slowest_ms = -1.0
        self.slowest: str | None = None

    def note(self, counts: dict[str, float], ms: float, call: str | None) -> None:
        """Add counts of a call, or of a stage's passage, that took some time."""
        own = self.counts
        for name, count in counts.items():
            own[name] += count
        if ms > self.slowest_ms:
            self.slowest_ms, self.slowest = ms, call

    def merge(self, other: Sums) -> None:
        """Add another row's sums."""
        self.note(other.counts, other.slowest_ms, other.slowest)
        for name, histogram in other.histograms.items():
            self.histogram(name).merge(histogram)

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


class Summed(dict[Key, Sums]):
    """Rows of one size by their keys; one that is missing is made."""

    def __missing__(self, key: Key) -> Sums:
        found = self[key] = Sums()
        return found


def summed(written: Iterable[tuple[Row, list[tuple[Any, ...]]]]) -> Summed:
    """The sums by minute of calls (values by column), each with its attempts (in the order of `ATTEMPTS`)."""
    found = Summed()
    for row, attempts in written:
        _add(found, row, attempts)
    return found


def _add(found: Summed, row: Row, attempts: list[tuple[Any, ...]]) -> None:
    minute = int(row["time"]) // MINUTE * MINUTE
    id, total = row["id"], row["total_ms"]
    counts = _counts(row, len(attempts))
    # A refusal takes no time: among answers it would make them look fast.
    timed = row["outcome"] == "completed"
    variants = orjson.loads(row["variants"]) if row["variants"] != "{}" else {}
    names = [("model", row["used"] or ""), *(("variant", f"{e}={v}") for e, v in variants.items())]
    for kind, name in names:
        sums = found[kind, minute, name]
        sums.note(counts, total, id)
        if timed:
            sums.histogram("total").add(total)
        if timed and row["first_ms"] is not None:
            sums.histogram("first").add(row["first_ms"])
        if row["gaps"]:
            sums.histogram("gap").merge(Histogram.from_bytes(row["gaps"]))
    owner = row["owner"]
    others = [("owner", owner), ("key", f"{owner}/{row['key']}")]
    if row["route"] is not None:
        others.append(("target", row["route"]))
    if row["outcome"] != "completed":
        others.append(("error", row["error"] or str(row["status"])))
    for kind, name in others:
        found[kind, minute, name].note(counts, total, id)
    for name, score in orjson.loads(row["scores"]).items() if row["scores"] else ():
        sums = found["score", minute, name]
        sums.note({"calls": 1, "score": score}, total, id)
        sums.histogram("total").add(score)
    for name, passed in _stages(row, attempts):
        sums, own = found["stage", minute, name], passed["total_ms"]
        sums.note(passed, own, id)
        sums.histogram("total").add(own)


def _counts(row: Row, attempts: int) -> dict[str, float]:
    """What a call adds, without what is 0."""
    counts: dict[str, float] = {"calls": 1, row["outcome"]: 1, "total_ms": row["total_ms"]}
    if attempts:
        counts["attempts"] = attempts
    if row["streaming"]:
        counts["streams"] = 1
    if row["admitted"] == 0:
        counts["limited"] = 1
    if row["valid"] == 0:
        counts["invalid"] = 1
    if row["cache"] in ("hit", "semantic"):
        counts["hits"] = 1
    elif row["cache"] == "miss":
        counts["misses"] = 1
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "usd"):
        if row[name]:
            counts[name] = row[name]
    for what, usd in (orjson.loads(row["saved"]) if row["saved"] else {}).items():
        if (name := f"saved_{what}_usd") in COUNTS:
            counts[name] = usd
    cached = row["cache"] in ("hit", "semantic")
    if row["first_ms"] is not None and attempts and not cached and row["completion_tokens"]:
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


def larger(sums: Mapping[Key, Sums], size: int) -> Summed:
    """The same sums by a larger span."""
    found = Summed()
    for (kind, start, name), one in sums.items():
        found[kind, start // size * size, name].merge(one)
    return found


def read(row: Row) -> tuple[Key, Sums]:
    """A row of the table."""
    sums = Sums()
    sums.note({name: row[name] for name in COUNTS}, row["slowest_ms"], row["slowest"])
    sums.histograms = {name: Histogram.from_bytes(row[name]) for name in HISTOGRAMS if row[name]}
    return (row["kind"], row["start"], row["name"]), sums

"""What came of a load, in a form that several generators' results add up in."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline_plugins.histogram import ERROR, Histogram

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}

LATE_MS, LATE_SHARE = 10.0, 0.05
"""The generator kept up if the 99th percentile of its lateness is below one of these: milliseconds, or a
share of the median answer's time."""


@dataclass(slots=True)
class Timings:
    """Milliseconds: a histogram, and what is known exactly."""

    histogram: Histogram = field(default_factory=Histogram)
    sum: float = 0.0
    max: float = 0.0

    def add(self, ms: float) -> None:
        """Note one."""
        self.histogram.add(ms)
        self.sum += ms
        self.max = max(self.max, ms)

    def merge(self, other: Timings) -> None:
        """Add another's."""
        self.histogram.merge(other.histogram)
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def report(self) -> dict[str, Any]:
        """Count, mean, quantiles (within `ERROR`) and maximum, None where there are none."""
        count = self.histogram.count
        quantiles = {name: _rounded(self.histogram.quantile(share)) for name, share in SHARES.items()}
        mean = _rounded(self.sum / count) if count else None
        return {"count": count, "mean": mean, **quantiles, "max": _rounded(self.max) if count else None}

    def dump(self) -> dict[str, Any]:
        """What `load` reads."""
        histogram = base64.b64encode(self.histogram.to_bytes()).decode()
        return {"histogram": histogram, "sum": self.sum, "max": self.max}

    @classmethod
    def load(cls, given: dict[str, Any]) -> Timings:
        """What `dump` made."""
        histogram = Histogram.from_bytes(base64.b64decode(given["histogram"]))
        return cls(histogram, given["sum"], given["max"])


@dataclass(slots=True)
class Result:
    """Counts and times of all requests.

    Times are from when a request was due: what waited for the generator or for a connection
    counts. `late` is how much after it was due a request was sent, `first` the time to the
    first text, `gap` that between two pieces of text, `per_token` the time after the first
    text for each further token. `seconds` are from the first due time to the last end.
    """

    sent: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    usd: float | None = None
    most_in_flight: int = 0
    offered_seconds: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    late: Timings = field(default_factory=Timings)
    first: Timings = field(default_factory=Timings)
    gap: Timings = field(default_factory=Timings)
    per_token: Timings = field(default_factory=Timings)
    total: Timings = field(default_factory=Timings)

    def merge(self, other: Result) -> None:
        """Add the result of a generator that ran at the same time."""
        for name in ("offered_seconds", "seconds"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.usd is not None:
            self.usd = (self.usd or 0.0) + other.usd
        self.codes += other.codes
        for name in TIMED:
            getattr(self, name).merge(getattr(other, name))

    @property
    def kept_up(self) -> bool:
        """Whether requests were sent when they were due."""
        late = self.late.histogram.quantile(0.99) or 0.0
        return late <= max(LATE_MS, LATE_SHARE * (self.total.histogram.quantile(0.5) or 0.0))

    def report(self) -> dict[str, Any]:
        """For people and programs; rates are per second, times in milliseconds."""
        seconds = self.seconds or 1.0
        return {
            "sent": self.sent,
            "completed": self.completed,
            "refused": self.refused,
            "failed": self.failed,
            "codes": dict(self.codes),
            "seconds": round(self.seconds, 3),
            "offered_per_s": _rounded(self.sent / self.offered_seconds) if self.offered_seconds else None,
            "completed_per_s": _rounded(self.completed / seconds),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "completion_tokens_per_s": _rounded(self.completion_tokens / seconds),
            "without_usage": self.without_usage,
            "usd": self.usd,
            "most_in_flight": self.most_in_flight,
            "generator": {
                "kept_up": self.kept_up,
                "cpu_share": round(self.cpu_seconds / seconds, 3),
                "late_ms": self.late.report(),
            },
            "first_ms": self.first.report(),
            "gap_ms": self.gap.report(),
            "per_token_ms": self.per_token.report(),
            "total_ms": self.total.report(),
            "error_of_quantiles": ERROR,
        }

    def dump(self) -> dict[str, Any]:
        """What `load` reads; JSON."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in TIMED}
        return plain | {name: getattr(self, name).dump() for name in TIMED}

    @classmethod
    def load(cls, given: dict[str, Any]) -> Result:
        """What `dump` made."""
        timed = {name: Timings.load(given[name]) for name in TIMED}
        return cls(**{**given, **timed, "codes": Counter(given["codes"])})


TIMED = ("late", "first", "gap", "per_token", "total")

COUNTED = (
    "sent",
    "completed",
    "refused",
    "failed",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "without_usage",
    "most_in_flight",
    "cpu_seconds",
)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")

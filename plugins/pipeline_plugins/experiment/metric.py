"""What is compared between variants: a number of each call, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline_plugins.ledger.report import POSITIVE


@dataclass(slots=True)
class Seen:
    """A call that took part, in the ledger's words and units; None where it has no such number."""

    outcome: str
    total_ms: float
    first_ms: float | None = None
    valid: bool | int | None = None
    usd: float | None = None
    completion_tokens: int | None = None
    rating: str | None = None


@dataclass(slots=True, frozen=True)
class Metric:
    """`of` gives a call's number, None where the call doesn't count.

    share    whether it is 0 or 1, and its mean a share
    more     whether more is better
    """

    name: str
    about: str
    of: Callable[[Seen], float | None]
    share: bool = False
    more: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("failed", "calls that failed", lambda seen: float(seen.outcome == "failed"), share=True),
        Metric(
            "invalid",
            "checked calls of which a check did not hold",
            lambda seen: None if seen.valid is None else float(not seen.valid),
            share=True,
        ),
        Metric(
            "latency_s",
            "seconds of completed calls",
            lambda seen: seen.total_ms / 1000 if seen.outcome == "completed" else None,
        ),
        Metric(
            "ttft_s",
            "seconds to the first chunk of completed streams",
            lambda seen: (
                seen.first_ms / 1000 if seen.outcome == "completed" and seen.first_ms is not None else None
            ),
        ),
        Metric("cost_usd", "USD of a call", lambda seen: seen.usd),
        Metric(
            "completion_tokens",
            "tokens of an answer",
            lambda seen: None if seen.completion_tokens is None else float(seen.completion_tokens),
        ),
        Metric(
            "positive",
            "rated calls with 4, 5 or `up`",
            lambda seen: None if seen.rating is None else float(seen.rating in POSITIVE),
            share=True,
            more=True,
        ),
        Metric(
            "rating",
            "stars of calls rated 1 to 5",
            lambda seen: float(seen.rating) if seen.rating is not None and seen.rating.isdigit() else None,
            more=True,
        ),
    )
}
"""By name, in the order in which they are shown."""

"""What is compared between variants: a number of each call, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline_plugins.ledger.report import POSITIVE

GOOD = ", ".join(f"'{rating}'" for rating in sorted(POSITIVE))


@dataclass(slots=True)
class Seen:
    """A call that took part, in the ledger's words and units; None where it has no such number.

    `limited` where it was refused for being one too many (429).
    """

    outcome: str
    total_ms: float
    first_ms: float | None = None
    valid: bool | int | None = None
    usd: float | None = None
    completion_tokens: int | None = None
    rating: str | None = None
    limited: bool = False


@dataclass(slots=True, frozen=True)
class Metric:
    """`of` gives a call's number, None where the call doesn't count.

    sql      the same of a row of the ledger, NULL for None
    share    whether it is 0 or 1, and its mean a share
    more     whether more is better
    rated    whether it is of what a person said, after the call
    """

    name: str
    about: str
    of: Callable[[Seen], float | None]
    sql: str
    share: bool = False
    more: bool = False
    rated: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "failed",
            "calls that failed",
            lambda seen: float(seen.outcome == "failed"),
            "CASE WHEN outcome = 'failed' THEN 1.0 ELSE 0.0 END",
            share=True,
        ),
        Metric(
            "invalid",
            "checked calls of which a check did not hold",
            lambda seen: None if seen.valid is None else float(not seen.valid),
            "1.0 - valid",
            share=True,
        ),
        Metric(
            "latency_s",
            "seconds of completed calls",
            lambda seen: seen.total_ms / 1000 if seen.outcome == "completed" else None,
            "CASE WHEN outcome = 'completed' THEN total_ms / 1000 END",
        ),
        Metric(
            "ttft_s",
            "seconds to the first chunk of completed streams",
            lambda seen: (
                seen.first_ms / 1000 if seen.outcome == "completed" and seen.first_ms is not None else None
            ),
            "CASE WHEN outcome = 'completed' THEN first_ms / 1000 END",
        ),
        Metric("cost_usd", "USD of a call", lambda seen: seen.usd, "usd"),
        Metric(
            "completion_tokens",
            "tokens of an answer",
            lambda seen: None if seen.completion_tokens is None else float(seen.completion_tokens),
            "completion_tokens",
        ),
        Metric(
            "positive",
            "rated calls with 4, 5 or `up`",
            lambda seen: None if seen.rating is None else float(seen.rating in POSITIVE),
            f"CASE WHEN rating IN ({GOOD}) THEN 1.0 ELSE 0.0 END",
            share=True,
            more=True,
            rated=True,
        ),
        Metric(
            "rating",
            "stars of calls rated 1 to 5",
            lambda seen: float(seen.rating) if seen.rating is not None and seen.rating.isdigit() else None,
            "CASE WHEN rating NOT IN ('up', 'down') THEN CAST(rating AS DOUBLE PRECISION) END",
            more=True,
            rated=True,
        ),
    )
}
"""By name, in the order in which they are shown."""

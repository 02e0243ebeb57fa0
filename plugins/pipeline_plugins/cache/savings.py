"""What a call has cost, and what it would have cost without a cache, in its record."""

from __future__ import annotations

from pipeline import Call, Spent


def spent(call: Call) -> float:
    """USD that a call has cost so far."""
    spent = call.record.decision(Spent)
    return 0.0 if spent is None else spent.usd


def credit(call: Call, usd: float) -> None:
    """Note what a call would have cost without the cache."""
    if usd <= 0:
        return
    saved = call.record.whole.growing(Spent).saved
    saved["cache"] = saved.get("cache", 0.0) + usd

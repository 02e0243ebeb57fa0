"""The ledger's columns, and making a row of what ended."""

from __future__ import annotations

import re
from typing import Any

import orjson

from pipeline.kinds import Cached, Exposed, Limited, Routed, Validated
from pipeline.price import Spent
from pipeline_plugins.ledger.watch import Attempts, Ended

DECISIONS = (Spent, Routed, Cached, Validated, Limited, Exposed)
"""What stages decide that a row has."""

CALLS = {
    "id": "TEXT NOT NULL UNIQUE",
    "answer_id": "TEXT",
    "time": "REAL NOT NULL",
    "operation": "TEXT NOT NULL",
    "key": "TEXT NOT NULL",
    "owner": "TEXT NOT NULL",
    "tags": "TEXT NOT NULL",
    "config": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "used": "TEXT",
    "streaming": "INTEGER NOT NULL",
    "outcome": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "error": "TEXT",
    "route": "TEXT",
    "reason": "TEXT",
    "cache": "TEXT",
    "admitted": "INTEGER",
    "limit_rule": "TEXT",
    "valid": "INTEGER",
    "failed_checks": "TEXT",
    "retries": "INTEGER",
    "prompt_tokens": "INTEGER",
    "cached_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "usd": "REAL",
    "saved_usd": "REAL",
    "first_ms": "REAL",
    "total_ms": "REAL NOT NULL",
    "chunks": "INTEGER NOT NULL",
    "gap_ms": "REAL",
    "path": "TEXT NOT NULL",
    "variants": "TEXT NOT NULL",
}
"""A row of a call. `time` is its end, in seconds since 1970; `gap_ms` the mean time between chunks;
`tags`, `failed_checks`, `path` and `variants` are JSON."""

ATTEMPTS = {
    "call": "INTEGER NOT NULL",
    "number": "INTEGER NOT NULL",
    "stage": "TEXT NOT NULL",
    "model": "TEXT",
    "outcome": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "error": "TEXT",
    "prompt_tokens": "INTEGER",
    "cached_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "usd": "REAL",
    "estimated": "INTEGER",
    "seconds": "REAL",
    "first_ms": "REAL",
    "chunks": "INTEGER NOT NULL",
}
"""A row of an attempt, `number` counted from 0 in the order in which they began.

`call` is the number of its call's row: ids are random, and tables in their order would have
pages all over the file written for each batch.
"""

JSON_COLUMNS = ("tags", "failed_checks", "path", "variants")

ID = re.compile(rb'"id":\s?"([\w.:-]{1,128})"')


def of_call(row: Ended, config: str) -> tuple[Any, ...]:
    """A call's values, in the order of `CALLS`."""
    found = row.decisions
    spent, routed, cached = found.get(Spent), found.get(Routed), found.get(Cached)
    valid, limited, exposed = found.get(Validated), found.get(Limited), found.get(Exposed)
    usage, tenant = row.usage, row.tenant
    gap = (row.ended - row.first) / (row.chunks - 1) if row.first is not None and row.chunks > 1 else None
    return (
        row.id,
        answer_id(row.head),
        row.time,
        row.operation,
        tenant.key,
        tenant.owner,
        _json(dict(tenant.tags)),
        config,
        row.model,
        row.used or _charged_model(spent),
        row.streaming,
        row.outcome,
        row.status,
        row.error,
        routed.target if routed is not None else None,
        routed.reason[:256] if routed is not None else None,
        cached.result if cached is not None else None,
        limited.admitted if limited is not None else None,
        limited.rule[:256] if limited is not None else None,
        valid.passed if valid is not None else None,
        _json(valid.failed) if valid is not None else None,
        valid.retries if valid is not None else None,
        usage.prompt_tokens if usage is not None else None,
        usage.cached_tokens if usage is not None else None,
        usage.completion_tokens if usage is not None else None,
        spent.usd if spent is not None else None,
        sum(spent.saved.values()) if spent is not None else None,
        _ms(row.first, row.received),
        _ms(row.ended, row.received),
        row.chunks,
        round(gap * 1000, 3) if gap is not None else None,
        _path(row),
        _json(exposed.variants if exposed is not None else {}),
    )


def of_attempts(found: Attempts) -> list[tuple[Any, ...]]:
    """The values of a call's attempts in the order of `ATTEMPTS`, `call` being the request's id."""
    rows = []
    for number, one in enumerate(list(found.attempts)):
        charge = one.charge
        usage = charge.usage if charge is not None else one.usage
        rows.append(
            (
                found.call,
                number,
                one.stage,
                one.model or (charge.model if charge is not None else None),
                one.outcome,
                one.status,
                one.error,
                usage.prompt_tokens if usage is not None else None,
                usage.cached_tokens if usage is not None else None,
                usage.completion_tokens if usage is not None else None,
                charge.usd if charge is not None else None,
                charge.estimated if charge is not None else None,
                round(one.ended - one.started, 6) if one.ended else None,
                _ms(one.first, one.started),
                one.chunks,
            )
        )
    return rows


def answer_id(head: bytes) -> str | None:
    """The id that an answer begins with, as `chatcmpl-…`; None where its beginning has none."""
    before, _, _ = head.partition(b'"choices"')
    found = ID.search(before)
    return found[1].decode() if found is not None else None


def _path(row: Ended) -> str:
    """The edges that the call went along: when from its beginning, how long, and what came back."""
    return _json(
        [
            {
                "from": step.source,
                "to": step.stage,
                "at_ms": _ms(step.started, row.received),
                "ms": _ms(step.ended or row.ended, step.started),
                "outcome": step.outcome,
            }
            for step in list(row.steps)
        ]
    )


def _charged_model(spent: Spent | None) -> str | None:
    return spent.charges[-1].model if spent is not None and spent.charges else None


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _ms(end: float | None, start: float) -> float | None:
    return round((end - start) * 1000, 3) if end is not None else None

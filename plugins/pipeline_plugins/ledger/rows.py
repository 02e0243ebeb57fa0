"""Making rows of what ended, in the order of the tables' columns."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import orjson

from pipeline.kinds import Cached, Exposed, Limited, Retrieved, Routed, Validated
from pipeline.price import Spent
from pipeline.redaction import redactor
from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.watch import Attempts, Ended

DECISIONS = (Spent, Routed, Cached, Validated, Limited, Exposed, Retrieved)
"""What stages decide that a row has."""

ID = re.compile(rb'"id":\s?"([\w.:-]{1,128})"')

FINISH = re.compile(rb'"finish_reason":\s?"(\w{1,32})"')


def of_call(row: Ended, config: str) -> dict[str, Any]:
    """A call's values by column, in the order of `schema.CALLS`."""
    found = row.decisions
    spent, routed, cached = found.get(Spent), found.get(Routed), found.get(Cached)
    valid, limited, exposed = found.get(Validated), found.get(Limited), found.get(Exposed)
    retrieved, usage, tenant = found.get(Retrieved), row.usage, row.tenant
    gap = (row.ended - row.first) / (row.chunks - 1) if row.first is not None and row.chunks > 1 else None
    return {
        "id": row.id,
        "answer_id": answer_id(row.head),
        "time": row.time,
        "operation": row.operation,
        "key": tenant.key,
        "owner": tenant.owner,
        "tags": _json(dict(tenant.tags)),
        "config": config,
        "model": text(redactor.redact(row.model)),  # clients put keys into the wrong field, too
        "used": text(row.used or (spent.model if spent is not None else None)),
        "streaming": int(row.streaming),
        "outcome": row.outcome,
        "status": row.status,
        "finish": finish_reason(row.head, row.tail),
        "error": text(row.error),
        "route": routed.target if routed is not None else None,
        "reason": text(routed.reason[:256]) if routed is not None else None,
        "cache": cached.result if cached is not None else None,
        "similarity": cached.similarity if cached is not None else None,
        "admitted": int(limited.admitted) if limited is not None else None,
        "limit_rule": text(limited.rule[:256]) if limited is not None else None,
        "valid": int(valid.passed) if valid is not None else None,
        "failed_checks": _json(valid.failed) if valid is not None else None,
        "retries": valid.retries if valid is not None else None,
        "collection": text(retrieved.collection) if retrieved is not None else None,
        "passages": retrieved.passages if retrieved is not None else None,
        "retrieval_ms": round(retrieved.seconds * 1000, 3) if retrieved is not None else None,
        "prompt_tokens": usage.prompt_tokens if usage is not None else None,
        "cached_tokens": usage.cached_tokens if usage is not None else None,
        "completion_tokens": usage.completion_tokens if usage is not None else None,
        "usd": spent.usd if spent is not None else None,
        "saved_usd": sum(spent.saved.values()) if spent is not None else None,
        "saved": _json(spent.saved) if spent is not None and spent.saved else None,
        "first_ms": _ms(row.first, row.received),
        "total_ms": round((row.ended - row.received) * 1000, 3),
        "chunks": row.chunks,
        "gap_ms": round(gap * 1000, 3) if gap is not None else None,
        "gaps": gaps(row).to_bytes() or None,
        "path": _json(path(row)),
        "variants": _json(exposed.variants if exposed is not None else {}),
        "units": _json(exposed.units) if exposed is not None and exposed.units else None,
        "scores": _json(valid.scores) if valid is not None and valid.scores else None,
        "probabilities": _json(exposed.probabilities)
        if exposed is not None and exposed.probabilities
        else None,
    }


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
                text(one.model or (charge.model if charge is not None else None)),
                one.outcome,
                one.status,
                text(one.error),
                usage.prompt_tokens if usage is not None else None,
                usage.cached_tokens if usage is not None else None,
                usage.completion_tokens if usage is not None else None,
                charge.usd if charge is not None else None,
                int(charge.estimated) if charge is not None else None,
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


def finish_reason(head: bytes, tail: bytes) -> str | None:
    """Why the answer ended, as it says near its end or at its beginning; None where it says nothing.

    Inside a text the quotes would be escaped.
    """
    found = FINISH.findall(tail) or FINISH.findall(head)
    return found[-1].decode() if found else None


def gaps(row: Ended) -> Histogram:
    """Milliseconds between the chunks of a stream whose times are kept."""
    return Histogram((after - before) * 1000 for before, after in pairwise(row.times or ()))


def path(row: Ended) -> list[dict[str, Any]]:
    """The edges that the call went along: when from its beginning, how long, and what came back.

    `ms` is the whole passage, until a stream begins; `own_ms` without what the stage awaited of others.
    """
    steps = list(row.steps)
    received, over = row.received, row.ended
    latest: dict[str, int] = {}
    awaited: list[list[tuple[float, float]]] = []
    spans: list[tuple[float, float]] = []
    for index, step in enumerate(steps):
        span = (step.started, step.ended or over)
        caller = latest.get(step.source)
        if caller is not None:
            awaited[caller].append(span)
        latest[step.stage] = index
        spans.append(span)
        awaited.append([])
    return [
        {
            "from": step.source,
            "to": step.stage,
            "at_ms": round((started - received) * 1000, 3),
            "ms": round((ended - started) * 1000, 3),
            "own_ms": round(max(ended - started - _covered(inner, ended), 0.0) * 1000, 3),
            "outcome": step.outcome,
        }
        for step, (started, ended), inner in zip(steps, spans, awaited, strict=True)
    ]


def text(value: str | None) -> str | None:
    """What a client or an upstream wrote, without the NUL that PostgreSQL refuses in texts."""
    return value.replace("\0", "\ufffd") if value is not None and "\0" in value else value


def _covered(spans: list[tuple[float, float]], end: float) -> float:
    """Seconds within at least one of some spans, sorted by their start, before `end`."""
    seconds, reached = 0.0, float("-inf")
    for start, stop in spans:
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            seconds += stop - start
            reached = stop
    return seconds


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _ms(end: float | None, start: float) -> float | None:
    return round((end - start) * 1000, 3) if end is not None else None

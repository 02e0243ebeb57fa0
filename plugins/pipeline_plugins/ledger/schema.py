"""The ledger's tables, the same in SQLite and in PostgreSQL.

Columns are added by later releases, never renamed: what reads the tables goes on working.
Types are PostgreSQL's, of which SQLite understands what it needs; `row` is made by the database.
"""

from __future__ import annotations

VERSION = 5

CALLS = {
    "id": "TEXT NOT NULL UNIQUE",
    "answer_id": "TEXT",
    "time": "DOUBLE PRECISION NOT NULL",
    "operation": "TEXT NOT NULL",
    "key": "TEXT NOT NULL",
    "owner": "TEXT NOT NULL",
    "tags": "TEXT NOT NULL",
    "config": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "used": "TEXT",
    "streaming": "BIGINT NOT NULL",
    "outcome": "TEXT NOT NULL",
    "status": "BIGINT NOT NULL",
    "finish": "TEXT",
    "error": "TEXT",
    "route": "TEXT",
    "reason": "TEXT",
    "cache": "TEXT",
    "similarity": "DOUBLE PRECISION",
    "admitted": "BIGINT",
    "limit_rule": "TEXT",
    "valid": "BIGINT",
    "failed_checks": "TEXT",
    "retries": "BIGINT",
    "collection": "TEXT",
    "passages": "BIGINT",
    "retrieval_ms": "DOUBLE PRECISION",
    "prompt_tokens": "BIGINT",
    "cached_tokens": "BIGINT",
    "completion_tokens": "BIGINT",
    "usd": "DOUBLE PRECISION",
    "saved_usd": "DOUBLE PRECISION",
    "saved": "TEXT",
    "first_ms": "DOUBLE PRECISION",
    "total_ms": "DOUBLE PRECISION NOT NULL",
    "chunks": "BIGINT NOT NULL",
    "gap_ms": "DOUBLE PRECISION",
    "gaps": "BYTEA",
    "path": "TEXT NOT NULL",
    "variants": "TEXT NOT NULL",
    "units": "TEXT",
    "scores": "TEXT",
    "probabilities": "TEXT",
}
"""A row of a call. `time` is its end, in seconds since 1970; `gap_ms` the mean time between chunks and
`gaps` a histogram of these times; what `JSON_COLUMNS` names is JSON."""

ATTEMPTS = {
    "call": "BIGINT NOT NULL",
    "number": "BIGINT NOT NULL",
    "stage": "TEXT NOT NULL",
    "model": "TEXT",
    "outcome": "TEXT NOT NULL",
    "status": "BIGINT NOT NULL",
    "error": "TEXT",
    "prompt_tokens": "BIGINT",
    "cached_tokens": "BIGINT",
    "completion_tokens": "BIGINT",
    "usd": "DOUBLE PRECISION",
    "estimated": "BIGINT",
    "seconds": "DOUBLE PRECISION",
    "first_ms": "DOUBLE PRECISION",
    "chunks": "BIGINT NOT NULL",
}
"""A row of an attempt, `number` counted from 0 in the order in which they began.

`call` is the number of its call's row: ids are random, and tables in their order would have
pages all over the file written for each batch.
"""

BODIES = {"call": "BIGINT PRIMARY KEY", "policy": "TEXT NOT NULL", "request": "TEXT", "reply": "TEXT"}
"""What was said, where it is kept: `request` is the JSON to send to the operation's address again,
`reply` the whole answer as one JSON object; NULL where too long. `policy` is `redacted` or `full`."""

FEEDBACK = {
    "call": "TEXT PRIMARY KEY",
    "time": "DOUBLE PRECISION NOT NULL",
    "rating": "TEXT NOT NULL",
    "comment": "TEXT",
    "label": "TEXT",
}
"""The last rating of a call, by the call's `id`."""

COUNTS = {
    "calls": "BIGINT NOT NULL",
    "completed": "BIGINT NOT NULL",
    "refused": "BIGINT NOT NULL",
    "failed": "BIGINT NOT NULL",
    "cancelled": "BIGINT NOT NULL",
    "limited": "BIGINT NOT NULL",
    "invalid": "BIGINT NOT NULL",
    "hits": "BIGINT NOT NULL",
    "misses": "BIGINT NOT NULL",
    "streams": "BIGINT NOT NULL",
    "attempts": "BIGINT NOT NULL",
    "prompt_tokens": "BIGINT NOT NULL",
    "cached_tokens": "BIGINT NOT NULL",
    "completion_tokens": "BIGINT NOT NULL",
    "stream_tokens": "BIGINT NOT NULL",
    "stream_ms": "DOUBLE PRECISION NOT NULL",
    "total_ms": "DOUBLE PRECISION NOT NULL",
    "usd": "DOUBLE PRECISION NOT NULL",
    "saved_cache_usd": "DOUBLE PRECISION NOT NULL",
    "saved_route_usd": "DOUBLE PRECISION NOT NULL",
    "score": "DOUBLE PRECISION NOT NULL DEFAULT 0",
}
"""What a rollup adds up."""

HISTOGRAMS = {"first": "BYTEA", "total": "BYTEA", "gap": "BYTEA"}
"""Histograms of milliseconds: time to the first chunk, total time, time between chunks."""

ROLLUP = {
    "kind": "TEXT NOT NULL",
    "size": "BIGINT NOT NULL",
    "start": "BIGINT NOT NULL",
    "name": "TEXT NOT NULL",
    **COUNTS,
    **HISTOGRAMS,
    "slowest_ms": "DOUBLE PRECISION",
    "slowest": "TEXT",
}
"""Sums over the calls that ended in `size` seconds from `start` on, by `kind` and `name`."""

META = {"name": "TEXT PRIMARY KEY", "value": "BIGINT NOT NULL"}
"""`version` of the tables; `folded`: the first minute that is in no larger span of the rollup yet."""

TABLES = {
    "calls": CALLS,
    "attempts": ATTEMPTS,
    "bodies": BODIES,
    "feedback": FEEDBACK,
    "rollup": ROLLUP,
    "meta": META,
}

KEYS = {
    "attempts": "PRIMARY KEY (call, number)",
    "rollup": "PRIMARY KEY (kind, size, start, name)",
}

INDEXES = {
    "calls_time": "calls (time)",
    "calls_owner": "calls (owner, time)",
    "calls_answer": "calls (answer_id) WHERE answer_id IS NOT NULL",
    "calls_other": "calls (time) WHERE outcome <> 'completed'",
    "calls_invalid": "calls (time) WHERE valid = 0",
    "feedback_time": "feedback (time, rating)",
}

JSON_COLUMNS = ("tags", "failed_checks", "saved", "path", "variants", "units", "scores", "probabilities")


def tables(row: str, clustered: str = "") -> list[str]:
    """What makes the tables: `row` is the type of a call's number, `clustered` follows a table with a key."""
    statements = []
    for table, columns in TABLES.items():
        parts = [f"{name} {type}" for name, type in columns.items()]
        if table == "calls":
            parts.insert(0, f"row {row}")
        if table in KEYS:
            parts.append(KEYS[table])
        end = clustered if table not in ("calls", "bodies") else ""
        statements.append(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(parts)}){end}")
    return statements


def indexes() -> list[str]:
    """What makes the indexes."""
    return [f"CREATE INDEX IF NOT EXISTS {name} ON {of}" for name, of in INDEXES.items()]


def started(now: int) -> str:
    """What notes, once, from which minute on the rollup is folded."""
    minute = now // 60 * 60
    return f"INSERT INTO meta (name, value) VALUES ('folded', {minute}) ON CONFLICT DO NOTHING"  # noqa: S608

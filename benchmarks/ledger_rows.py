"""A ledger with many calls in it, made faster than a server would write them."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.rollup import KEEP, LARGER, MINUTE, WITH_HISTOGRAMS
from pipeline_plugins.ledger.schema import COUNTS, ROLLUP
from pipeline_plugins.ledger.sqlite_database import SQLite

DAYS = 30

STAGES = ("monitor", "limit", "cache", "validate", "route", "small", "large", "embed")

NAMES = {
    "model": ("", "small", "large", "embed"),
    "stage": STAGES,
    "target": STAGES[-3:],
    "variant": ("size=small", "size=large"),
    "error": ("overloaded", "rate_limit_exceeded", "validation_failed"),
    "owner": tuple(f"team-{n}" for n in range(20)),
    "key": tuple(f"team-{n % 20}/{n:012x}" for n in range(60)),
    "score": ("judge",),
}
"""Names by kind: each has a row in every span."""

PATH = orjson.dumps(
    [
        {"from": a, "to": b, "at_ms": 0.1 * n, "ms": 900.0 - n, "own_ms": 0.1, "outcome": "ok"}
        for n, (a, b) in enumerate(zip(("", *STAGES[:5]), STAGES[:6], strict=True))
    ]
).decode()

CALLS = f"""
WITH RECURSIVE n (i, r) AS (
  SELECT ?1, abs(random()) UNION ALL SELECT i + 1, abs(random()) FROM n WHERE i < ?2
)
INSERT INTO calls (id, answer_id, time, operation, key, owner, tags, config, model, used, streaming,
  outcome, status, error, cache, valid, failed_checks, prompt_tokens, completion_tokens, usd, saved_usd,
  first_ms, total_ms, chunks, path, variants)
SELECT printf('req_%024x', i), printf('chatcmpl-%032x', i), ?3 + i * ?4, 'chat', printf('%012x', r % 60),
  'team-' || (r % 20), '{{}}', 'c0ffee', 'default', CASE r % 3 WHEN 0 THEN 'small' ELSE 'large' END, r % 2,
  CASE WHEN r % 100 = 7 THEN 'failed' WHEN r % 50 = 3 THEN 'refused' ELSE 'completed' END,
  CASE WHEN r % 100 = 7 THEN 503 WHEN r % 50 = 3 THEN 400 ELSE 200 END,
  CASE WHEN r % 100 = 7 THEN 'overloaded' WHEN r % 50 = 3 THEN 'validation_failed' END,
  CASE WHEN r % 3 = 0 THEN 'hit' ELSE 'miss' END, r % 50 <> 3,
  CASE WHEN r % 50 = 3 THEN '["pii"]' ELSE '[]' END,
  r % 900, r % 300, 0.0001 * (r % 90), 0, 20 + r % 400, 100 + r % 1700 * (1 + 9 * (r % 89 = 0)), r % 200,
  '{PATH}', CASE r % 2 WHEN 0 THEN '{{"size": "small"}}' ELSE '{{"size": "large"}}' END
FROM n
"""


def fill(path: Path, calls: int) -> None:
    """Make a ledger of this many calls, evenly over the last 30 days, with its rollup; 2 % are rated."""
    with closing(SQLite(path)):
        pass
    now = time.time()
    since = now - DAYS * 86_400
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        for start in range(0, calls, 1_000_000):
            db.execute(CALLS, (start, min(start + 1_000_000, calls) - 1, since, DAYS * 86_400 / calls))
        db.execute(
            "INSERT INTO feedback (call, time, rating) "
            "SELECT id, time, 1 + row % 5 FROM calls WHERE row % 50 = 0"
        )
        db.execute("BEGIN")
        places = ", ".join("?" for _ in ROLLUP)
        db.executemany(f"INSERT INTO rollup VALUES ({places})", _spans(int(since), int(now), calls))
        db.execute("UPDATE meta SET value = ? WHERE name = 'folded'", (int(now) // MINUTE * MINUTE - 180,))
        db.execute("COMMIT")


def _spans(since: int, now: int, calls: int) -> Iterator[tuple[Any, ...]]:
    for kind, names in NAMES.items():
        for size in (MINUTE, *LARGER):
            each = max(1, round(calls * size / (DAYS * 86_400) / len(names)))
            shapes = [_histogram(min(each, 2000)) for _ in range(16)] if kind in WITH_HISTOGRAMS else [None]
            first = max(since, now - KEEP.get(size, now))
            for start in range(first // size * size, now, size):
                for name in names:
                    shape = random.choice(shapes)
                    some = each // 100
                    known = {"calls": each, "completed": each - 2 * some, "refused": some, "failed": some}
                    known |= {"hits": each // 3, "prompt_tokens": 450 * each, "completion_tokens": 150 * each}
                    known |= {
                        "total_ms": 400 * each,
                        "usd": 0.0045 * each,
                        "saved_cache_usd": 0.001 * each,
                        "score": 7.0 * each,
                    }
                    counts = (known.get(name, 0) for name in COUNTS)
                    yield (kind, size, start, name, *counts, shape, shape, None, 17_000.0, f"req_{each:024x}")


def _histogram(count: int) -> bytes:
    """Times as of models: log-normal, around 400 ms."""
    return Histogram(random.lognormvariate(6, 0.8) for _ in range(count)).to_bytes()

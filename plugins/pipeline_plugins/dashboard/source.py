"""What the dashboard asks of a ledger, in either database.

Sums come from the rollup, so that a month is read as fast as an hour; single calls from their
own rows, by indexes. See docs/ledger.md for the tables.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson

from pipeline_plugins.dashboard.window import DAY, Listing, Window, pieces
from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable
from pipeline_plugins.ledger.report import POSITIVE
from pipeline_plugins.ledger.schema import ATTEMPTS, CALLS, FEEDBACK, JSON_COLUMNS
from pipeline_plugins.ledger.store import Store

MOST = 12
"""Names of a kind that are told apart; the rest is left to the sum."""

EXACT = 20_000
"""Calls of a window that are sorted to find the slowest; beyond, the slowest of each span are known."""

CANDIDATES = 1_000
"""Calls known as the slowest of a model and span that are looked for, beyond `EXACT`."""

CHECKED = 1_000
"""Calls whose failed checks are counted, the newest ones."""

RATED = 2_000
"""Rated calls whose variants are looked up, those rated last."""

LATE = 3.0
"""Seconds after its end at which a call's row is there, besides the ledger's flush."""

RECENT = 60
"""Seconds that are counted one by one."""

COUNTS = (
    "calls",
    "completed",
    "refused",
    "failed",
    "cancelled",
    "hits",
    "prompt_tokens",
    "completion_tokens",
    "stream_tokens",
    "stream_ms",
    "total_ms",
    "usd",
    "saved_cache_usd",
    "saved_route_usd",
    "score",
)
"""Sums of the rollup that a page shows."""

SUMS = ", ".join(f"sum({name})" for name in COUNTS)

SHOWN = (
    "id",
    "time",
    "operation",
    "owner",
    "model",
    "used",
    "streaming",
    "outcome",
    "status",
    "error",
    "cache",
    "prompt_tokens",
    "completion_tokens",
    "usd",
    "first_ms",
    "total_ms",
)
"""Columns of a call in a list."""

Counts = dict[str, float]

T = TypeVar("T")


class SourceDown(Exception):
    """The ledger can't be read now."""


@dataclass(slots=True)
class Group:
    """Sums of calls, and the bytes of histograms of their times, to be added up."""

    counts: Counts = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    first: list[bytes] = field(default_factory=list)
    total: list[bytes] = field(default_factory=list)
    _merged: dict[str, Histogram] = field(default_factory=dict)

    def add(self, counts: Counts, first: bytes | None = None, total: bytes | None = None) -> None:
        """Add others."""
        for name, count in counts.items():
            self.counts[name] += count
        if first:
            self.first.append(first)
        if total:
            self.total.append(total)

    def histogram(self, name: Literal["first", "total"]) -> Histogram:
        """All of them added up, once all are there."""
        found = self._merged.get(name)
        if found is None:
            found = self._merged[name] = Histogram.from_bytes(*getattr(self, name))
        return found


class Source:
    """A ledger to read, by one thread at a time. Methods block, and raise `SourceDown`.

    `connect` opens the ledger; it is done again after a failure. `flush` is the ledger's own.
    """

    def __init__(self, connect: Callable[[], Store], flush: float) -> None:
        self._connect = connect
        self._late = LATE + 2 * flush
        self._store: Store | None = None
        self._seconds: dict[int, list[int]] = {}
        self._counted = 0.0

    def close(self) -> None:
        """Let the ledger go."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def abort(self) -> None:
        """From another thread: give up what is being asked."""
        if self._store is not None:
            self._store.database.abort()

    def revision(self) -> int:
        """A number that is greater once there are new rows."""
        return int(self._ask("SELECT coalesce(max(row), 0) FROM calls")[0][0])

    def spans(
        self, kind: str, window: Window, largest: int = DAY
    ) -> Iterable[tuple[int, str, Counts, bytes | None, bytes | None]]:
        """Start, name, sums and histograms of the spans of a kind, of `largest` seconds at most."""
        columns = f"start, name, {', '.join(COUNTS)}, first, total"
        query, values = self._spans(columns, kind, window.since, window.until, largest)
        for start, name, *counts, first, total in self._ask(query, *values):
            yield start, name, dict(zip(COUNTS, counts, strict=True)), first, total

    def total(self, window: Window) -> Counts:
        """The sum of all calls."""
        query, values = self._spans(", ".join(COUNTS), "model", window.since, window.until)
        ((*sums,),) = self._ask(f"SELECT {SUMS} FROM ({query}) AS spans", *values)  # noqa: S608
        return _counts(sums)

    def ranked(self, kind: str, window: Window) -> list[tuple[str, Counts]]:
        """Names of a kind with their sums, the most calls first."""
        query, values = self._spans(f"name, {', '.join(COUNTS)}", kind, window.since, window.until)
        rows = self._ask(
            f"SELECT name, {SUMS} FROM ({query}) AS spans GROUP BY name ORDER BY 2 DESC, 1 LIMIT {MOST}",  # noqa: S608
            *values,
        )
        return [(name, _counts(sums)) for name, *sums in rows]

    def daily(self, since: int, until: int) -> dict[int, float]:
        """USD by the beginning of each day (UTC)."""
        query, values = self._spans("start, usd", "model", since // DAY * DAY, until)
        days: dict[int, float] = {}
        for start, usd in self._ask(query, *values):
            days[start // DAY * DAY] = days.get(start // DAY * DAY, 0.0) + usd
        return days

    def seconds(self) -> tuple[int, list[tuple[int, ...]]]:
        """The first of the last seconds; and second, calls, failed ones and completion tokens of each."""
        now = time.time()
        first = int(now) - RECENT
        since = int(max(first, self._counted - self._late))
        found: dict[int, list[int]] = {s: c for s, c in self._seconds.items() if first <= s < since}
        for moment, failed, tokens in self._ask(
            "SELECT time, outcome = 'failed', completion_tokens FROM calls WHERE time >= ?", float(since)
        ):
            counts = found.setdefault(int(moment), [0, 0, 0])
            counts[0] += 1
            counts[1] += bool(failed)
            counts[2] += tokens or 0
        self._seconds, self._counted = found, now
        return first, [(second, *counts) for second, counts in sorted(found.items())]

    def paths(self, window: Window, size: int) -> list[str]:
        """Paths of calls (JSON), of about as many as wanted, at even distances by their number."""
        ends = [
            self._ask(
                f"SELECT row FROM calls WHERE time >= ? AND time < ? ORDER BY time {order} LIMIT 1",  # noqa: S608
                float(window.since),
                float(window.until),
            )
            for order in ("", "DESC")
        ]
        if not ends[0]:
            return []
        low, high = sorted((ends[0][0][0], ends[1][0][0]))
        numbers = list(range(high, low - 1, -max(1, (high - low + 1) // size)))[:size]
        marks = ", ".join("?" for _ in numbers)
        return [path for (path,) in self._ask(f"SELECT path FROM calls WHERE row IN ({marks})", *numbers)]  # noqa: S608

    def ratings(self, window: Window) -> Counter[str]:
        """How many of each rating were given."""
        query = "SELECT rating, count(*) FROM feedback WHERE time >= ? AND time < ? GROUP BY rating"
        return Counter(dict(self._ask(query, float(window.since), float(window.until))))

    def rated_variants(self, window: Window) -> dict[str, Counter[bool]]:
        """By `EXPERIMENT=VARIANT`, how many ratings were positive and how many were not."""
        found: dict[str, Counter[bool]] = {}
        for rating, variants in self._ask(
            "SELECT rating, variants FROM feedback JOIN calls ON calls.id = feedback.call "  # noqa: S608
            f"WHERE feedback.time >= ? AND feedback.time < ? ORDER BY feedback.time DESC LIMIT {RATED}",
            float(window.since),
            float(window.until),
        ):
            for name, variant in orjson.loads(variants).items():
                found.setdefault(f"{name}={variant}", Counter())[rating in POSITIVE] += 1
        return found

    def failed_checks(self, window: Window) -> Counter[str]:
        """How many calls failed each check."""
        counts: Counter[str] = Counter()
        for (names,) in self._ask(
            "SELECT failed_checks FROM calls WHERE valid = 0 AND time >= ? AND time < ? "  # noqa: S608
            f"ORDER BY time DESC LIMIT {CHECKED}",
            float(window.since),
            float(window.until),
        ):
            # `judge: choices[0].message.content scored 3 of 10`: a check may find several things in a call.
            counts.update({name.partition(":")[0] for name in orjson.loads(names or "[]")})
        return counts

    def calls(self, window: Window, listing: Listing, size: int) -> tuple[bool, list[dict[str, Any]]]:
        """Calls of a list in the columns of `SHOWN`, and whether none can be missing.

        Of many calls, the slowest of each model and span are known.
        """
        where, values = "time >= ? AND time < ?", [float(window.since), float(window.until)]
        order, exact = "time DESC", True
        if listing == "failed":
            where += " AND outcome <> 'completed' AND outcome <> 'cancelled'"
        elif listing == "slowest":
            order = "total_ms DESC"
            exact = self.total(window)["calls"] <= EXACT
            if not exact:
                query, given = self._spans(
                    "slowest, slowest_ms", "model", window.since, window.until, window.size
                )
                # Some may have been removed since: by their age, or with their owner's.
                found = self._ask(f"{query} ORDER BY 2 DESC LIMIT {CANDIDATES}", *given)
                ids = [id for id, _ in found if id is not None]
                where, values = f"id IN ({', '.join('?' for _ in ids) or 'NULL'})", ids
        rows = self._ask(
            f"SELECT {', '.join(SHOWN)} FROM calls WHERE {where} ORDER BY {order} LIMIT {size}",  # noqa: S608
            *values,
        )
        return exact, [dict(zip(SHOWN, row, strict=True)) for row in rows]

    def call(self, id: str) -> dict[str, Any] | None:
        """All that is known of one call but what was said, with its attempts and its feedback."""
        return self._with(lambda store: _call(store, id)) if "\0" not in id else None

    def _spans(
        self, columns: str, kind: str, since: int, until: int, largest: int = DAY
    ) -> tuple[str, list[Any]]:
        """A query for the spans that make up a stretch of time."""
        folded = int(self._ask("SELECT value FROM meta WHERE name = 'folded'")[0][0])
        query = f"SELECT {columns} FROM rollup WHERE kind = ? AND size = ? AND start >= ? AND start < ?"  # noqa: S608
        found = pieces(since, until, largest, folded)
        return " UNION ALL ".join([query] * len(found)), [
            value for piece in found for value in (kind, *piece)
        ]

    def _ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._with(lambda store: store.database.execute(query, values))

    def _with(self, work: Callable[[Store], T]) -> T:
        try:
            if self._store is None:
                self._store = self._connect()
            return work(self._store)
        except (Unavailable, Unusable, Refused, OSError) as error:
            self.close()
            raise SourceDown(str(error)[:200]) from None


def _counts(sums: Iterable[Any]) -> Counts:
    """PostgreSQL's sums of integers are decimal numbers, and of nothing there is no sum."""
    return {name: float(value or 0) for name, value in zip(COUNTS, sums, strict=True)}


def _call(store: Store, id: str) -> dict[str, Any] | None:
    found = _rows(store, "calls", [name for name in CALLS if name != "gaps"], "id", id)
    if not found:
        return None
    (call,) = found
    for name in JSON_COLUMNS:
        call[name] = orjson.loads(call[name]) if call[name] else None
    ((number,),) = store.database.execute("SELECT row FROM calls WHERE id = ?", (id,))
    call["attempts"] = sorted(
        _rows(store, "attempts", ATTEMPTS, "call", number), key=lambda one: one["number"]
    )
    call["feedback"] = next(iter(_rows(store, "feedback", FEEDBACK, "call", id)), None)
    return call


def _rows(store: Store, table: str, columns: Iterable[str], key: str, value: Any) -> list[dict[str, Any]]:
    names = list(columns)
    rows = store.database.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {key} = ?", (value,))  # noqa: S608
    return [dict(zip(names, row, strict=True)) for row in rows]

"""What is done with the ledger's tables, in either database."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline_plugins.ledger import rollup
from pipeline_plugins.ledger.database import Database
from pipeline_plugins.ledger.rollup import MINUTE, Row, Sums
from pipeline_plugins.ledger.schema import ATTEMPTS, BODIES, CALLS, COUNTS, FEEDBACK, ROLLUP

PIECE = 1000
"""Calls removed in one transaction."""

PAGE = 500
"""Calls read at once."""

FOLD = 60 * MINUTE
"""Seconds of minutes that one transaction folds into larger spans."""


def _insert(table: str, columns: Iterable[str]) -> str:
    names = list(columns)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' for _ in names)})"  # noqa: S608


def _instead(columns: Iterable[str]) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in columns)


ADD_CALL = _insert("calls", CALLS)

ADD_ATTEMPT = (
    f"INSERT INTO attempts ({', '.join(ATTEMPTS)}) SELECT row, "  # noqa: S608
    + ", ".join(f"CAST(? AS {type.removesuffix(' NOT NULL')})" for type in list(ATTEMPTS.values())[1:])
    + f" FROM calls WHERE id = ? ON CONFLICT (call, number) DO UPDATE SET {_instead(list(ATTEMPTS)[2:])}"
)
"""None is added where its call was dropped; one that is there already is replaced."""

ADD_BODY = (
    "INSERT INTO bodies (call, policy, request, reply) "
    "SELECT row, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT) FROM calls WHERE id = ?"
)

RATE = (
    f"{_insert('feedback', FEEDBACK)} ON CONFLICT (call) DO UPDATE SET "
    "time = excluded.time, rating = excluded.rating, comment = excluded.comment, label = excluded.label"
)

ADD_SUMS = (
    _insert("rollup", ROLLUP)
    + " ON CONFLICT (kind, size, start, name) DO UPDATE SET "
    + ", ".join(f"{name} = rollup.{name} + excluded.{name}" for name in COUNTS)
    + ", first = excluded.first, total = excluded.total, gap = excluded.gap, "
    "slowest = CASE WHEN excluded.slowest_ms > coalesce(rollup.slowest_ms, -1) "
    "THEN excluded.slowest ELSE rollup.slowest END, "
    "slowest_ms = CASE WHEN excluded.slowest_ms > coalesce(rollup.slowest_ms, -1) "
    "THEN excluded.slowest_ms ELSE rollup.slowest_ms END"
)
"""Histograms are of all: what the table had is in them already."""


@dataclass(slots=True, frozen=True)
class Filter:
    """Which calls are wanted; times in seconds since 1970, `until` excluded.

    `rows` are the numbers of their rows: those above the first and up to the second.
    """

    since: float | None = None
    until: float | None = None
    owner: str | None = None
    model: str | None = None
    rows: tuple[int, int] | None = None

    def where(self) -> tuple[str, list[Any]]:
        """The condition and its values."""
        terms, values = ["1 = 1"], []
        for term, value in (
            ("time >= ?", self.since),
            ("time < ?", self.until),
            ("owner = ?", self.owner),
            ("coalesce(used, model) = ?", self.model),
            ("row > ?", self.rows and self.rows[0]),
            ("row <= ?", self.rows and self.rows[1]),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        return " AND ".join(terms), values


@dataclass(slots=True)
class Entry:
    """A call to write: its row by column, its attempts, and its body's policy, request and reply."""

    row: Row
    attempts: list[tuple[Any, ...]]
    body: tuple[str, str | None, str | None] | None = None


@dataclass(slots=True)
class Batch:
    """What is written in one transaction; `late` are attempts that outlasted their call's row."""

    entries: list[Entry] = field(default_factory=list)
    late: list[tuple[Any, ...]] = field(default_factory=list)


class Store:
    """The ledger's tables behind one connection, for one thread at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        """Close the connection."""
        self.database.close()

    def add(self, batch: Batch) -> None:
        """Write a batch with its sums, all of it or nothing."""
        sums = rollup.summed((entry.row, entry.attempts) for entry in batch.entries)
        attempts = [one for entry in batch.entries for one in entry.attempts] + batch.late
        bodies = [(*entry.body, entry.row["id"]) for entry in batch.entries if entry.body is not None]
        with self.database.transaction():
            self.database.many(ADD_CALL, [tuple(entry.row.values()) for entry in batch.entries])
            self.database.many(ADD_ATTEMPT, [(*one[1:], one[0]) for one in attempts])
            self.database.many(ADD_BODY, bodies)
            self._add_sums(sums)

    def has(self, batch: Batch) -> bool:
        """Whether a batch was written: its first call stands for all of it."""
        if not batch.entries:
            return False
        return bool(self.database.execute("SELECT 1 FROM calls WHERE id = ?", (batch.entries[0].row["id"],)))

    def fold(self, now: float) -> bool:
        """Add minutes that are over to the larger spans; whether there may be more to do."""
        until = (int(now) - rollup.LATE) // MINUTE * MINUTE
        with self.database.transaction():
            self.database.alone()
            since = self._folded()
            if since >= until:
                return False
            first = self.database.execute(
                f"SELECT min(start) FROM rollup WHERE kind IN ({_quoted(rollup.KINDS)}) "  # noqa: S608
                "AND size = ? AND start >= ?",
                (MINUTE, since),
            )[0][0]
            end = until if first is None else min(until, max(first, since) + FOLD)
            sums = dict(self._sums(MINUTE, since, end))
            for size in rollup.LARGER:
                self._merge(rollup.larger(sums, size), size)
            self.database.execute("UPDATE meta SET value = ? WHERE name = 'folded'", (end,))
        return end < until

    def prune(self, now: float) -> None:
        """Remove small spans of the rollup that are too old."""
        for size, seconds in rollup.KEEP.items():
            for kind in rollup.KINDS:
                self.database.execute(
                    "DELETE FROM rollup WHERE kind = ? AND size = ? AND start < ?",
                    (kind, size, int(now) - seconds),
                )

    def find(self, id: str, owner: str | None) -> str | None:
        """The request's id of a call by its own or its answer's, the newest; of an owner unless None."""
        term, values = ("", [id, id]) if owner is None else (" AND owner = ?", [id, id, owner])
        rows = self.database.execute(
            f"SELECT id FROM calls WHERE (id = ? OR answer_id = ?){term} ORDER BY time DESC LIMIT 1",  # noqa: S608
            values,
        )
        return rows[0][0] if rows else None

    def rate(self, call: str, rating: str, comment: str | None, label: str | None) -> None:
        """Keep what was said of a call; it takes the place of what was said before."""
        self.database.execute(RATE, (call, time.time(), rating, comment, label))

    def ratings(self, wanted: Filter) -> Iterator[tuple[Any, ...]]:
        """Rating, model, tags and variants (JSON), and label of each call that was rated."""
        where, values = wanted.where()
        return self.database.stream(
            "SELECT rating, coalesce(used, model), tags, variants, label FROM feedback JOIN "  # noqa: S608
            f"(SELECT id, used, model, tags, variants FROM calls WHERE {where}) AS rated ON call = id",
            values,
        )

    def exposures(
        self, measures: Iterable[str], wanted: Filter, *, rated: bool = False
    ) -> Iterator[tuple[Any, ...]]:
        """Calls that took part in experiments, added up by who took part in what, and how likely that was.

        `variants`, `units` and `probabilities` (JSON), key, calls, and of each of some expressions over
        their columns how many calls have it, and its sum. With `rated`, of calls that were rated alone,
        `rating` being a column, too.
        """
        where, values = wanted.where()
        summed = "".join(f", count({one}), sum({one})" for one in measures)
        said = "(SELECT call AS rated, rating FROM feedback) AS said CROSS JOIN " if rated else ""
        return self.database.stream(
            f"SELECT variants, units, probabilities, key, count(*){summed} FROM {said}calls "  # noqa: S608
            f"WHERE {where} AND variants <> '{{}}'{' AND id = rated' if rated else ''} "
            "GROUP BY variants, units, probabilities, key",
            values,
        )

    def newest(self, until: float) -> int:
        """The highest number of the rows of calls that ended last before a time; 0 where there is none.

        Several processes write: rows are not quite in the order of their times.
        """
        query = f"SELECT row FROM calls WHERE time < ? ORDER BY time DESC LIMIT {PIECE}"  # noqa: S608
        return max((row for (row,) in self.database.execute(query, (until,))), default=0)

    def oldest(self) -> int:
        """The number of the first row that is kept; 0 where there is none."""
        return int(self.database.execute("SELECT coalesce(min(row), 0) FROM calls")[0][0])

    def calls(self, wanted: Filter) -> Iterator[Row]:
        """Rows by time, each with its `attempts`, its `feedback` and its `bodies`.

        They are read a page at a time, so that no transaction stays open and memory is bounded.
        """
        where, values = wanted.where()
        query = (
            f"SELECT row, {', '.join(CALLS)} FROM calls WHERE {where} "  # noqa: S608
            f"AND time >= ? AND (time > ? OR row > ?) ORDER BY time, row LIMIT {PAGE}"
        )
        time, row = float("-inf"), -1
        while page := self.database.execute(query, (*values, time, time, row)):
            rows = {number: dict(zip(CALLS, found, strict=True)) for number, *found in page}
            yield from self._whole(rows)
            ((row, last),) = list(rows.items())[-1:]
            time = last["time"]

    def spans(self, kind: str, size: int, since: int, until: int) -> list[Row]:
        """Rows of the rollup that start from `since` on and before `until`, by start and name."""
        rows = self.database.execute(
            f"SELECT {', '.join(ROLLUP)} FROM rollup "  # noqa: S608
            "WHERE kind = ? AND size = ? AND start >= ? AND start < ? ORDER BY start, name",
            (kind, size, since, until),
        )
        return [dict(zip(ROLLUP, row, strict=True)) for row in rows]

    def remove(self, wanted: Filter, pieces: int | None = None) -> int:
        """Remove calls with all that belongs to them, in transactions of `PIECE`; returns how many."""
        where, values = wanted.where()
        removed = 0
        while pieces is None or pieces > 0:
            with self.database.transaction():
                found = self.database.execute(
                    f"SELECT row, id FROM calls WHERE {where} LIMIT {PIECE}",  # noqa: S608
                    values,
                )
                rows = [(row,) for row, _ in found]
                self.database.many("DELETE FROM feedback WHERE call = ?", [(id,) for _, id in found])
                self.database.many("DELETE FROM bodies WHERE call = ?", rows)
                self.database.many("DELETE FROM attempts WHERE call = ?", rows)
                self.database.many("DELETE FROM calls WHERE row = ?", rows)
            removed += len(found)
            if len(found) < PIECE:
                break
            pieces = pieces - 1 if pieces is not None else None
        return removed

    def forget(self, owner: str) -> int:
        """Remove all of an owner's calls and its sums, unreadably where the database can."""
        removed = self.remove(Filter(owner=owner))
        with self.database.transaction():
            self.database.alone()  # or rows of sums would be locked in another order than by who writes
            self.database.execute("DELETE FROM rollup WHERE kind = 'owner' AND name = ?", (owner,))
            # `OWNER/KEY`, where an owner may have a slash and a key has none.
            found = self.database.execute("SELECT DISTINCT name FROM rollup WHERE kind = 'key'")
            keys = [(name,) for (name,) in found if name.rpartition("/")[0] == owner]
            self.database.many("DELETE FROM rollup WHERE kind = 'key' AND name = ?", keys)
            self.database.execute(
                "UPDATE rollup SET slowest = NULL WHERE slowest IS NOT NULL "
                "AND NOT EXISTS (SELECT 1 FROM calls WHERE id = slowest)"
            )
        self.database.wipe()
        return removed

    def _whole(self, rows: dict[int, Row]) -> Iterator[Row]:
        """Calls by their numbers, with what belongs to them; a body is read when its call's turn comes."""
        numbers = ", ".join(map(str, rows))
        names, said = list(ATTEMPTS)[1:], list(FEEDBACK)[1:]
        ids = {row["id"]: row for row in rows.values()}
        for row in rows.values():
            row["attempts"], row["feedback"], row["bodies"] = [], None, None
        for number, *values in self.database.execute(
            f"SELECT {', '.join(ATTEMPTS)} FROM attempts WHERE call IN ({numbers}) ORDER BY call, number"  # noqa: S608
        ):
            rows[number]["attempts"].append(dict(zip(names, values, strict=True)))
        for call, *values in self.database.execute(
            f"SELECT {', '.join(FEEDBACK)} FROM feedback WHERE call IN ({', '.join('?' for _ in ids)})",  # noqa: S608
            list(ids),
        ):
            ids[call]["feedback"] = dict(zip(said, values, strict=True))
        kept = self.database.execute(f"SELECT call FROM bodies WHERE call IN ({numbers})")  # noqa: S608
        with_bodies = {call for (call,) in kept}
        for number, row in rows.items():
            if number in with_bodies:
                row["bodies"] = self.body(number)
            yield row

    def body(self, number: int) -> dict[str, Any] | None:
        """What was said in a call, by the number of its row: policy, request and reply; None if not kept."""
        names = list(BODIES)[1:]
        query = f"SELECT {', '.join(names)} FROM bodies WHERE call = ?"  # noqa: S608
        found = self.database.execute(query, (number,))
        return dict(zip(names, found[0], strict=True)) if found else None

    def _add_sums(self, sums: dict[rollup.Key, Sums]) -> None:
        """Add sums by minute; where the minute was folded already, to the larger spans too."""
        if not sums:
            return
        self.database.alone()
        folded = self._folded()
        late = {key: one for key, one in sums.items() if key[1] < folded}
        of_late = [(rollup.larger(late, size), size) for size in rollup.LARGER]
        for own, size in [(sums, MINUTE), *of_late]:
            self._merge(own, size)

    def _merge(self, sums: dict[rollup.Key, Sums], size: int) -> None:
        """Add sums to the table; their histograms become those of the table."""
        if not sums:
            return
        starts = [start for _, start, _ in sums]
        had = dict(self._sums(size, min(starts), max(starts) + 1, rollup.WITH_HISTOGRAMS))
        for key, one in sums.items():
            if key in had:
                for name, histogram in had[key].histograms.items():
                    one.histogram(name).merge(histogram)
        self.database.many(ADD_SUMS, [sums[key].values(key, size) for key in sorted(sums)])

    def _sums(
        self, size: int, since: int, until: int, kinds: tuple[str, ...] = rollup.KINDS
    ) -> Iterator[tuple[rollup.Key, rollup.Sums]]:
        for kind in kinds:
            for row in self.spans(kind, size, since, until):
                yield rollup.read(row)

    def _folded(self) -> int:
        return int(self.database.execute("SELECT value FROM meta WHERE name = 'folded'")[0][0])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)

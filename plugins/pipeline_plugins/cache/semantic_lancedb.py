"""`index=lancedb`: questions in a folder, searched by LanceDB; they outlive the process.

The partition is a prefilter: LanceDB compares the vectors of that partition alone, a small table's
one by one, a larger one's by an inverted file (IVF) over exact vectors. Its filters are text, so all
that ever gets into one is hexadecimal digits and numbers of ours.

Writes are committed in groups: what waits while one is under way goes with the next. A commit is
a rename, so a kill at any moment leaves the last one readable. Several processes may use the
folder; what one has committed, others find within `poll` seconds. Lessons are kept too, and read
when an index opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from pipeline_plugins.cache.semantic_known import (
    Hear,
    Histories,
    Known,
    Lesson,
    described,
    known_from,
    lesson_from,
    taught,
    vector_from,
)

if TYPE_CHECKING:
    from pipeline_plugins.cache.semantic_index import Vector

TIDY = 64
"""Commits after which the table is put in order: each is a file that a search has to open. Or so
many rows as `INDEXED_FROM` says: those that no index has are compared one by one."""

INDEXED_FROM = 2000
"""Questions from which the table gets an index of its vectors, and of its partitions. Measured at
100,000: 12 ms for a search, instead of 180; see `benchmarks/test_semantic.py`."""

GROWTH = 4
"""The vectors' index is made anew when there are so many times more: its cells are too few by then."""

OLD = timedelta(minutes=10)
"""Age from which earlier versions of a table are removed; a search takes far less."""

LESSONS = 10_000
"""Lessons kept."""

FAILURES = (OSError, RuntimeError, ValueError)
"""What LanceDB raises, a full disk and a damaged file included."""

log = structlog.get_logger("pipeline.cache")


def require() -> Any:
    """The library. Raises ImportError, saying what to install, where it is missing."""
    try:
        import lancedb
    except ImportError as error:
        raise ImportError(f"cache.index=lancedb needs llm-pipeline's extra `lancedb` ({error})") from None
    return lancedb


class Appends:
    """Rows on their way into one table, committed in groups. `tidy` runs after every `TIDY` of them.

    size  rows of the table, those of other processes as of the last tidying
    """

    def __init__(self, table: Any, size: int, tidy: Callable[[], Awaitable[None]]) -> None:
        self.size = size
        self._table = table
        self._tidy = tidy
        self._rows: list[dict[str, Any]] = []
        self._writing = asyncio.Lock()
        self._commits = 0
        self._added = 0

    async def add(self, row: dict[str, Any]) -> None:
        """Add a row; it is on disk when this returns."""
        rows = self._rows
        rows.append(row)
        async with self._writing:
            if rows is not self._rows:
                return  # It went with those before.
            self._rows = []
            await self._table.add(await self._table_of(rows))
            self.size += len(rows)
            self._commits += 1
            self._added += len(rows)
            if self._commits >= TIDY or self._added >= INDEXED_FROM:
                self._commits = self._added = 0
                # Another process may be at it, or the disk full: the rows are there all the same.
                with contextlib.suppress(*FAILURES):
                    await self._tidy()
                    self.size = await self._table.count_rows()

    async def delete(self, which: str) -> None:
        """Delete the rows that a filter names."""
        async with self._writing:
            await self._table.delete(which)
            self.size = await self._table.count_rows()
            self._commits += 1

    async def _table_of(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow as arrow  # type: ignore[import-untyped]

        return arrow.Table.from_pylist(rows, schema=await self._table.schema())


class LanceIndex:
    """Questions of one embedding model in a folder.

    poll  seconds after which what other processes have committed is looked for
    hear  takes in what was learned before this process started
    """

    def __init__(
        self, folder: str, *, model: str, dimensions: int, capacity: int, hear: Hear, poll: float = 1.0
    ) -> None:
        self._lancedb = require()
        self._folder = Path(folder).expanduser()
        self._dimensions = dimensions
        self._capacity = capacity
        self._hear = hear
        self._poll = poll
        self._histories = Histories(capacity)
        self._failing = False
        self._indexed = 0
        self._name = hashlib.blake2b(f"{model}\n{dimensions}".encode(), digest_size=8).hexdigest()

    async def open(self) -> None:
        """Open the tables or make them, and read the lessons. Raises OSError or ValueError."""
        import pyarrow as arrow

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        vector = arrow.list_(arrow.float32(), self._dimensions)
        questions = {"name": arrow.string(), "partition": arrow.string(), "known": arrow.binary()}
        questions |= {"context": arrow.binary(), "expires": arrow.float64(), "added": arrow.float64()}
        lessons = {"lesson": arrow.binary(), "added": arrow.float64()}
        try:
            self._database = await self._lancedb.connect_async(
                self._folder, read_consistency_interval=timedelta(seconds=self._poll)
            )
            self._table = await self._made("questions", arrow.schema({**questions, "vector": vector}))
            self._told = await self._made("lessons", arrow.schema(lessons))
            self._questions = Appends(self._table, await self._table.count_rows(), self._tidy)
            self._lessons = Appends(self._told, await self._told.count_rows(), self._forget_lessons)
            if await self._table.list_indices():
                self._indexed = self._questions.size
            await self._recall()
        except FAILURES as error:
            what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ValueError(
                f"{self._folder}: LanceDB can't use this folder ({what}). Remove it, or set cache.index_path."
            ) from None

    async def _made(self, name: str, schema: Any) -> Any:
        name = f"{name}-{self._name}"
        try:
            return await self._database.open_table(name)
        except ValueError:
            try:
                return await self._database.create_table(name, schema=schema)
            except FAILURES:
                return await self._database.open_table(name)  # Another process was first.

    async def _recall(self) -> None:
        rows = (await self._told.query().to_arrow()).sort_by("added")
        for told in rows.column("lesson").to_pylist():
            lesson = lesson_from(told)
            if lesson is not None:
                self._histories.hear(lesson)
                self._hear(lesson)

    async def close(self) -> None:
        """Let go of the files."""
        self._table.close()
        self._told.close()
        self._database.close()

    def __len__(self) -> int:
        return self._questions.size

    async def search(self, partition: bytes, vector: Vector, count: int) -> list[tuple[float, Known]]:
        """The nearest questions of this partition, by LanceDB's own search; none if that fails."""
        which = f"partition = '{partition.hex()}' AND expires > {time.time()!r}"
        query = self._table.vector_search(vector).distance_type("dot").where(which)
        query = query.select(["known", "context", "_distance"]).limit(count)
        try:
            rows = (await query.to_arrow()).to_pylist()
        except FAILURES as error:
            self._failed(error)
            return []
        self._failing = False
        found: dict[bytes, tuple[float, Known]] = {}
        for row in rows:
            context = row["context"] and vector_from(row["context"], self._dimensions)
            known = known_from(row["known"], context, self._histories)
            if known is not None:
                # Two processes may have added the same question: the same distance twice.
                found.setdefault(known.key.digest, (1 - row["_distance"], known))
        return list(found.values())

    async def add(self, partition: bytes, vector: Vector, known: Known) -> None:
        """Add a question; it is on disk when this returns."""
        self._histories.put(known)
        context = known.context_vector
        row = {
            "name": known.key.digest.hex(),
            "partition": partition.hex(),
            "known": described(known),
            "context": None if context is None else context.astype("<f4").tobytes(),
            "expires": known.expires,
            "added": time.time(),
            "vector": vector,
        }
        with self._guarded():
            await self._questions.add(row)

    async def remove(self, known: Known) -> None:
        """Forget a question, for all who use the folder."""
        with self._guarded():
            await self._questions.delete(f"name = '{known.key.digest.hex()}'")

    def touch(self, known: Known) -> None:
        """Not noted: the oldest go first, used or not."""

    async def learned(self, lesson: Lesson) -> None:
        """Keep a lesson for those who open the folder later."""
        with self._guarded():
            await self._lessons.add({"lesson": taught(lesson), "added": time.time()})

    async def _tidy(self) -> None:
        """Remove what has expired or is too much, and put many small files into one."""
        await self._table.delete(f"expires <= {time.time()!r}")
        await self._shrink(self._table, self._capacity)
        size = await self._table.count_rows()
        if size >= max(INDEXED_FROM, GROWTH * self._indexed):
            from lancedb.index import Bitmap, IvfFlat

            await self._table.create_index("partition", config=Bitmap())
            await self._table.create_index("vector", config=IvfFlat(distance_type="dot"))
            self._indexed = size

    async def _forget_lessons(self) -> None:
        await self._shrink(self._told, LESSONS)

    async def _shrink(self, table: Any, most: int) -> None:
        surplus = await table.count_rows() - most
        if surplus > 0:
            added = (await table.query().select(["added"]).to_arrow()).column("added").to_numpy()
            added.sort()
            await table.delete(f"added <= {float(added[surplus - 1])!r}")
        await table.optimize(cleanup_older_than=OLD)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            log.warning("the semantic index fails", error=type(error).__name__, reason=str(error)[:200])

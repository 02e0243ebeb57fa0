"""Tables of LanceDB kept in order: compaction and indexes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from pipeline_plugins.store.lancedb_guard import FAILURES
from pipeline_plugins.store.lancedb_replacing import remove_blanks

VECTORS = 50_000
"""Chunks from which vectors get an index: fewer are compared one by one as fast."""

BRIEF = timedelta(minutes=10)
"""Age up to which versions are kept in any case: a search takes far less."""

INDEXED = ("text", "id", "document", "file")
"""Columns that every table has an index of."""

TRIES = 6
"""How often a table is put in order while other processes commit to it."""

CONFLICT = re.compile("conflict|preempted|concurrent|incompatible transaction", re.IGNORECASE)
"""What LanceDB says where the commit of another process came between."""


async def complete(table: Any) -> None:
    """Give a table the indexes that it lacks: whoever made it may have been killed before it had all."""
    from lancedb.index import BTree

    async def work() -> None:
        present = await _indexed(table)
        for column in INDEXED:
            if column not in present:
                await table.create_index(column, config=_words() if column == "text" else BTree())

    await _insist(table, work)


async def tidy(table: Any, keep: timedelta) -> None:
    """Put many small files into one, and what is new into the indexes; forget versions older than `keep`.

    The last few minutes' are always kept, for searches under way. Large tables get an index of
    their vectors.
    """

    async def work() -> None:
        await remove_blanks(table)
        if "vector" not in await _indexed(table) and await table.count_rows() >= VECTORS:
            await _index_vectors(table)
        await table.optimize(cleanup_older_than=max(keep, BRIEF))

    await _insist(table, work)


async def rebuild(table: Any) -> None:
    """Build all indexes anew; that of vectors only where there are enough for one."""

    async def work() -> None:
        await table.create_index("text", config=_words(), replace=True)
        if await table.count_rows() >= 256:
            await _index_vectors(table)

    await _insist(table, work)


async def _insist(table: Any, work: Callable[[], Awaitable[None]]) -> None:
    """Do work on a table, again where the commit of another process came between."""
    for attempt in range(TRIES):
        try:
            await work()
            return
        except FAILURES as error:
            if attempt == TRIES - 1 or CONFLICT.search(str(error)) is None:
                raise
            await asyncio.sleep(0.05 * 2**attempt)
            await table.checkout_latest()


async def _index_vectors(table: Any) -> None:
    """RaBitQ with 4 bits a number.

    Of 100,000 chunks it found 0.998 of what comparing all does, where product quantisation found
    0.43 (`benchmarks/rag_scale.py`).
    """
    from lancedb.index import IvfRq

    await table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=4), replace=True)


def _words() -> Any:
    from lancedb.index import FTS

    return FTS(with_position=False)


async def _indexed(table: Any) -> set[str]:
    return {column for index in await table.list_indices() for column in index.columns}

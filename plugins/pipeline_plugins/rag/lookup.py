"""Chunks of a collection found again: by their vectors, by their words, by where they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.filters import quote
from pipeline_plugins.rag.store import Store, guarded
from pipeline_plugins.rag.windows import similarities

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

COLUMNS = ("id", "document", "ordinal", "text", "metadata", "source", "page", "heading", "start", "end")


async def near(
    store: Store, owner: str, name: str, vector: Vector, depth: int, where: str | None = None
) -> list[Passage]:
    """The `depth` chunks whose vectors have the highest cosine with this one, best windows first."""
    async with guarded():
        table = await store.table(owner, name, len(vector))
        query = table.query().nearest_to(vector).distance_type("dot").limit(depth)
        if where is not None:
            query = query.where(where)
        found = await query.select([*COLUMNS, "windows", "_distance"]).to_arrow()
    fits = similarities(vector, found.column("windows").to_pylist())
    return _passages(found, fits, fits)


async def matching(
    store: Store,
    owner: str,
    name: str,
    text: str,
    depth: int,
    where: str | None = None,
    vector: Vector | None = None,
) -> list[Passage]:
    """The `depth` chunks that match the words best by BM25; with a `vector`, how near they are, too."""
    from lancedb.query import MatchQuery

    async with guarded():
        table = await store.table(owner, name)
        # A query of its own kind, not one in the query language: signs in the text mean nothing.
        match: Any = MatchQuery
        query = table.query().nearest_to_text(match(text, column="text")).limit(depth)
        if where is not None:
            query = query.where(where)
        columns = [*COLUMNS, "_score", *(["windows"] if vector is not None else [])]
        found = await query.select(columns).to_arrow()
    scores = found.column("_score").to_pylist()
    fits = None if vector is None else similarities(vector, found.column("windows").to_pylist())
    return _passages(found, scores, fits)


async def near_and_matching(
    store: Store, owner: str, name: str, text: str, vector: Vector, depth: int, where: str | None = None
) -> tuple[list[Passage], list[Passage]]:
    """Both searches at the same time."""
    return await asyncio.gather(
        near(store, owner, name, vector, depth, where),
        matching(store, owner, name, text, depth, where, vector),
    )


async def beside(
    store: Store, owner: str, name: str, passages: Sequence[Passage], reach: int
) -> list[Passage]:
    """The chunks up to `reach` before and after each of these in its document, themselves left out."""
    wanted = {
        (one.document, one.ordinal + step) for one in passages for step in range(-reach, reach + 1) if step
    }
    wanted -= {(one.document, one.ordinal) for one in passages}
    ordinals: dict[str, set[int]] = {}
    for document, ordinal in wanted:
        if ordinal >= 0:
            ordinals.setdefault(document, set()).add(ordinal)
    if not ordinals:
        return []
    where = " or ".join(
        f"(document = {quote(document)} and ordinal in ({', '.join(map(str, sorted(those)))}))"
        for document, those in ordinals.items()
    )
    async with guarded():
        table = await store.table(owner, name)
        found = await table.query().where(where).select(list(COLUMNS)).to_arrow()
    return _passages(found, [0.0] * found.num_rows, None)


def _passages(found: Any, scores: Sequence[float], fits: Sequence[float] | None) -> list[Passage]:
    """Best first; what is equal stands in the order of its documents, so that it is always the same."""
    rows = found.select(list(COLUMNS)).to_pylist()
    near: Sequence[float | None] = [None] * len(rows) if fits is None else fits
    passages = [
        Passage(**{**row, "metadata": orjson.loads(row["metadata"])}, score=score, similarity=fit)
        for row, score, fit in zip(rows, scores, near, strict=True)
    ]
    return sorted(passages, key=lambda one: (-one.score, one.document, one.ordinal))

"""Chunks found again in a table of LanceDB: by their vectors, by their words, by where they stand.

A search ranks by row numbers and windows, and reads whole rows only of the passages that are left
in the end. Both happen on one table as it was opened, so the numbers mean the same rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import orjson

from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.ranking import WORDS, Candidate, distinct, fuse
from pipeline_plugins.rag.windows import similarities
from pipeline_plugins.store.lancedb_sql import quote

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

COLUMNS = ("id", "document", "ordinal", "text", "metadata", "source", "page", "heading", "start", "end")


async def near(table: Any, vector: Vector, depth: int, where: str | None = None) -> list[Candidate]:
    """The `depth` chunks whose vectors have the highest cosine with this one, best windows first."""
    query = table.query().nearest_to(vector).distance_type("dot").limit(depth)
    if where is not None:
        query = query.where(where)
    found = await query.select(["windows", "_distance"]).with_row_id().to_arrow()
    found = found.filter(found.column("windows").is_valid())  # what is blank is left out: see `replacing`
    fits = similarities(vector, found.column("windows").to_pylist())
    return _ranked(found, fits, fits)


async def matching(
    table: Any, text: str, depth: int, where: str | None = None, vector: Vector | None = None
) -> list[Candidate]:
    """The `depth` chunks that match the words best by BM25; with a `vector`, how near they are, too."""
    from lancedb.query import MatchQuery

    # A query of its own kind, not one in the query language: signs in the text mean nothing.
    match: Any = MatchQuery
    query = table.query().nearest_to_text(match(text, column="text")).limit(depth)
    if where is not None:
        query = query.where(where)
    columns = ["_score"] if vector is None else ["_score", "windows"]
    found = await query.select(columns).with_row_id().to_arrow()
    fits = None if vector is None else similarities(vector, found.column("windows").to_pylist())
    return _ranked(found, found.column("_score").to_pylist(), fits)


async def ranked(
    table: Any,
    text: str | None,
    vector: Vector | None,
    depth: int,
    where: str | None = None,
    words: float = WORDS,
) -> list[Candidate]:
    """At least `depth` chunks by words, by vectors, or by both at the same time, fused; best first."""
    if vector is None:
        return [] if text is None else await matching(table, text, depth, where)
    if text is None:
        return await near(table, vector, depth, where)
    both = asyncio.gather(near(table, vector, depth, where), matching(table, text, depth, where, vector))
    return fuse(*await both, words)


async def read(table: Any, ranked: Sequence[Candidate], k: int) -> list[Passage]:
    """The first `k` of what was found in this table, in their order, without repeats of a text."""
    found: list[Passage] = []
    at, size = 0, k
    while len(found) < k and at < len(ranked):
        part = {one.row: one for one in ranked[at : at + size]}
        rows = await table.take_row_ids(list(part)).select(list(COLUMNS)).with_row_id().to_arrow()
        order = {row: place for place, row in enumerate(part)}
        passages = [(order[row["_rowid"]], _passage(row, part[row["_rowid"]])) for row in rows.to_pylist()]
        found = distinct([*found, *(passage for _, passage in sorted(passages, key=lambda one: one[0]))])
        at, size = at + size, 2 * size
    return found[:k]


async def at(table: Any, places: Mapping[str, AbstractSet[int]]) -> list[Passage]:
    """The chunks of documents that have these ordinals, document by document, in order."""
    where = " or ".join(
        f"(document = {quote(document)} and ordinal in ({', '.join(map(str, sorted(ordinals)))}))"
        for document, ordinals in places.items()
    )
    found = await table.query().where(where).select(list(COLUMNS)).with_row_id().to_arrow()
    passages = [_passage(row, Candidate(row["_rowid"], 0.0)) for row in found.to_pylist()]
    return sorted(passages, key=lambda one: (one.document, one.ordinal))


def _ranked(found: Any, scores: Sequence[float], fits: Sequence[float] | None) -> list[Candidate]:
    """Best first; what is equal stands in the order of its rows, so that it is always the same."""
    near: Sequence[float | None] = [None] * len(scores) if fits is None else fits
    rows = found.column("_rowid").to_pylist()
    candidates = [Candidate(*one) for one in zip(rows, scores, near, strict=True)]
    return sorted(candidates, key=lambda one: (-one.score, one.row))


def _passage(row: dict[str, Any], found: Candidate) -> Passage:
    kept = {name: row[name] for name in COLUMNS}
    kept["metadata"] = orjson.loads(row["metadata"])
    return Passage(**kept, score=found.score, similarity=found.similarity)

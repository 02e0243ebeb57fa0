"""Documents replaced in a table, at once for all who read, at a cost that follows what changes.

A chunk's id tells its document and its place, so new chunks overwrite the former ones by the index
of ids. To delete others in the same commit LanceDB reads the ids of the whole table; so chunks that a
document has no more become blank, which nothing finds, and a commit after that deletes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from pipeline_plugins.rag.chunk import Chunk
from pipeline_plugins.rag.windows import mean, packed
from pipeline_plugins.store.lancedb_sql import one_of

BLANK = "document = ''"
"""Chunks that are about to be deleted; no document has this id."""


async def replace(table: Any, documents: Mapping[str, Sequence[Chunk]]) -> None:
    """Put these chunks in the place of all that the documents had."""
    import pyarrow as arrow  # type: ignore[import-untyped]

    which = one_of("document", list(documents))
    rows = [_row(chunk, at) for chunks in documents.values() for at, chunk in enumerate(chunks)]
    if not rows:
        await table.delete(which)
        return
    schema, before = await _schema(table), await table.version()
    former = await table.query().where(which).select(["id"]).to_arrow()
    gone = set(former.column("id").to_pylist()) - {row["id"] for row in rows}
    blanks = _blanks(gone, len(rows[0]["vector"]))
    done = await _merge(table).execute(arrow.Table.from_pylist([*rows, *blanks], schema=schema))
    if done.version != before + 1 and await _torn(table, which):
        # Another process has replaced one of them since `former` was read: now at any cost.
        whole = _merge(table).when_not_matched_by_source_delete(which)
        await whole.execute(arrow.Table.from_pylist(rows, schema=schema))
    if gone:
        await table.delete(BLANK)


async def remove_blanks(table: Any) -> None:
    """Delete what a process left that was killed between the two commits."""
    if await table.count_rows(BLANK):
        await table.delete(BLANK)


def id_of(document: str, ordinal: int) -> str:
    """The id of a document's chunk at this place."""
    key = f"{len(document)}:{document}:{ordinal}".encode()
    return hashlib.blake2b(key, digest_size=16, person=b"rag-chunk").hexdigest()


async def _schema(table: Any) -> Any:
    """What rows of a table are made by: JSON is told as it is stored, and is given as text."""
    import pyarrow as arrow

    stored = await table.schema()
    return stored.set(stored.get_field_index("metadata"), arrow.field("metadata", arrow.json_()))


def _merge(table: Any) -> Any:
    return table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()


async def _torn(table: Any, which: str) -> bool:
    """Whether a document has chunks of two writers, some twice, or not its first ones."""
    rows = await table.query().where(which).select(["document", "ordinal", "digest"]).to_arrow()
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["document"], []).append((row["ordinal"], row["digest"]))
    return any(
        sorted(ordinal for ordinal, _ in parts) != list(range(len(parts)))
        or len({digest for _, digest in parts}) > 1
        for parts in found.values()
    )


def _blanks(ids: Iterable[str], dimensions: int) -> list[dict[str, Any]]:
    """Chunks without words and windows. They need a vector, for LanceDB takes none without."""
    return [{"id": id, "document": "", "text": "", "vector": [0.0] * dimensions} for id in ids]


def _row(chunk: Chunk, ordinal: int) -> dict[str, Any]:
    document, piece, text = chunk.document, chunk.piece, chunk.text
    return {
        "id": id_of(document.id, ordinal),
        "document": document.id,
        "ordinal": ordinal,
        "text": text,
        "vector": mean(chunk.windows),
        "windows": packed(chunk.windows),
        "metadata": orjson.dumps(dict(document.metadata)).decode(),
        "source": document.source or document.id,
        "page": chunk.page,
        "heading": " > ".join(piece.headings),
        "start": piece.start,
        "end": piece.end,
        "digest": chunk.digest,
        "file": document.file,
        "hash": hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest(),
    }

"""Searches of large collections: milliseconds, and recall against comparing every vector.

    python -m benchmarks.rag_scale CHUNKS [FOLDER]

Vectors are synthetic: clusters on the unit sphere, as those of texts are, with queries near to
some of them. Texts are words by Zipf's law. Chunks go into the table as they would be ingested,
so that everything but the embedder is as it is served; indexes are built as `tidy` builds them.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pipeline_plugins.rag.windows import packed
from pipeline_plugins.store import lancedb_search
from pipeline_plugins.store.lancedb import DEPTH, LanceDB
from pipeline_plugins.store.store import Search

DIMENSIONS = 384
CLUSTER = 500
SPREAD = 0.8
"""Length of what sets a chunk apart from the centre of its cluster, which has length 1."""

WINDOWS = 4
WORDS = 120
VOCABULARY = 50_000
BATCH = 20_000
QUERIES = 200
K = 10
OWNER, NAME = "bench", "large"
MODES = ("vector", "fulltext", "hybrid")


@dataclass(slots=True)
class Figures:
    """Of one way to search: milliseconds of each query, and recall@10 where it can be told."""

    seconds: list[float]
    recall: float | None = None

    def told(self) -> str:
        """One line."""
        recall = "" if self.recall is None else f", recall@{K} {self.recall:.3f}"
        least, p50, p99 = (self.percentile(share) for share in (0, 50, 99))
        return f"least {least:.1f} ms, p50 {p50:.1f} ms, p99 {p99:.1f} ms{recall}"

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the searches was done."""
        return 1000 * float(np.percentile(self.seconds, share))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Corpus:
    """`size` chunks, made anew from the seed whenever they are read."""

    def __init__(self, size: int) -> None:
        self.size = size
        random = np.random.default_rng(7)
        self._centres = unit(random.normal(size=(max(1, size // CLUSTER), DIMENSIONS)))
        self._words = np.array([f"w{n}" for n in range(VOCABULARY)])

    def vectors(self) -> Iterator[np.ndarray]:
        """Unit vectors of all chunks, some at a time."""
        for start in range(0, self.size, BATCH):
            random = np.random.default_rng((11, start))
            rows = min(BATCH, self.size - start)
            noise = unit(random.normal(size=(rows, DIMENSIONS))) * SPREAD
            yield unit(self._centres[random.integers(len(self._centres), size=rows)] + noise)

    def texts(self, start: int, rows: int) -> list[str]:
        """As many texts."""
        random = np.random.default_rng((13, start))
        found = np.minimum(random.zipf(1.3, size=(rows, WORDS)), VOCABULARY) - 1
        return [" ".join(self._words[row]) for row in found]

    def queries(self) -> list[tuple[str, np.ndarray]]:
        """Words to look for, and vectors near to some chunk's."""
        random = np.random.default_rng(17)
        first = next(self.vectors())
        noise = unit(random.normal(size=(QUERIES, DIMENSIONS))) * SPREAD
        near = unit(first[random.integers(len(first), size=QUERIES)] + noise)
        texts = [" ".join(self._words[random.integers(50, 5000, size=6)]) for _ in range(QUERIES)]
        return list(zip(texts, near, strict=True))

    def nearest(self, queries: Sequence[np.ndarray]) -> list[set[str]]:
        """The ids of the ten nearest of all, by comparing with each."""
        asked = np.stack(queries)
        best = np.full((len(asked), K), -2.0, dtype=np.float32)
        ids = np.zeros((len(asked), K), dtype=np.int64)
        start = 0
        for rows in self.vectors():
            scores = np.concatenate([best, asked @ rows.T], axis=1)
            known = np.concatenate(
                [ids, np.tile(np.arange(start, start + len(rows)), (len(asked), 1))], axis=1
            )
            top = np.argpartition(-scores, K, axis=1)[:, :K]
            best, ids = np.take_along_axis(scores, top, 1), np.take_along_axis(known, top, 1)
            start += len(rows)
        return [{str(id) for id in row} for row in ids]

    def batches(self, schema: Any) -> Iterator[Any]:
        """All chunks as the rows of a collection."""
        import pyarrow as arrow

        start = 0
        random = np.random.default_rng(19)
        for vectors in self.vectors():
            rows = len(vectors)
            windows = unit(vectors[:, None, :] + 0.1 * random.normal(size=(rows, WINDOWS, DIMENSIONS)))
            ids = [str(n) for n in range(start, start + rows)]
            columns = {name: arrow.nulls(rows, type=schema.field(name).type) for name in schema.names}
            columns |= {
                "id": arrow.array(ids),
                "document": arrow.array([f"d{n // 100}" for n in range(start, start + rows)]),
                "ordinal": arrow.array([n % 100 for n in range(start, start + rows)], arrow.int32()),
                "text": arrow.array(self.texts(start, rows)),
                "vector": arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), DIMENSIONS),
                "windows": arrow.array([packed(one) for one in windows], arrow.binary()),
                "metadata": arrow.ExtensionArray.from_storage(arrow.json_(), arrow.array(["{}"] * rows)),
                "source": arrow.array(["source"] * rows),
            }
            yield arrow.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            start += rows


async def filled(folder: Path, corpus: Corpus) -> LanceDB:
    """The corpus as a collection with its indexes; one that is there already is taken as it is."""
    store = LanceDB(LanceDB.Config(path=str(folder)))
    await store.open("synthetic")
    if NAME not in await store.names(OWNER):
        await store.create(OWNER, NAME, DIMENSIONS)
        table = await store.table(OWNER, NAME)
        for batch in corpus.batches(store._schema(DIMENSIONS)):
            await table.add(batch)
        await store.tidy(OWNER, NAME, timedelta(0))
    return store


async def measured(folder: Path, size: int) -> dict[str, Figures]:
    corpus = Corpus(size)
    store = await filled(folder, corpus)
    queries = corpus.queries()
    try:
        recall = await _recall(store, corpus, [vector for _, vector in queries])

        async def index(_: str, vector: np.ndarray) -> None:
            table = await store.table(OWNER, NAME)
            query = table.query().nearest_to(vector).distance_type("dot").limit(DEPTH)
            await query.select(["_distance"]).with_row_id().to_arrow()

        def search(mode: str) -> Callable[[str, np.ndarray], Awaitable[None]]:
            async def one(text: str, vector: np.ndarray) -> None:
                words, meaning = mode != "vector", mode != "fulltext"
                wanted = Search(K, text if words else None, vector if meaning else None)
                await store.search(OWNER, NAME, wanted)

            return one

        figures = {mode: Figures(await _timed(queries, search(mode))) for mode in MODES}
        figures["vector"].recall = recall
        return {**figures, "index alone": Figures(await _timed(queries, index))}
    finally:
        await store.close()


async def _recall(store: LanceDB, corpus: Corpus, queries: Sequence[np.ndarray]) -> float:
    """The share of the ten nearest that are among the candidates, of which the passages are taken."""
    table = await store.table(OWNER, NAME)
    hits = []
    for vector, nearest in zip(queries, corpus.nearest(queries), strict=True):
        found = await lancedb_search.near(table, vector, DEPTH)
        rows = await table.take_row_ids([one.row for one in found]).select(["id"]).to_arrow()
        hits.append(len(nearest & set(rows.column("id").to_pylist())) / K)
    return float(np.mean(hits))


async def _timed(
    queries: Sequence[tuple[str, np.ndarray]], search: Callable[[str, np.ndarray], Awaitable[None]]
) -> list[float]:
    for text, vector in queries[:20]:
        await search(text, vector)
    seconds = []
    for text, vector in queries:
        began = time.perf_counter()
        await search(text, vector)
        seconds.append(time.perf_counter() - began)
    return seconds


def main(arguments: Sequence[str]) -> None:
    """Print a line for each way to search."""
    size = int(arguments[0])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[1]) if len(arguments) > 1 else Path(temporary)
        for name, figures in asyncio.run(measured(folder, size)).items():
            print(f"{size} chunks, {name}: {figures.told()}")
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What it costs to replace documents in a large collection: CPU time, and the process's memory.

    python -m benchmarks.rag_commits CHUNKS [FOLDER]

The chunks are those of `benchmarks.rag_scale`, ten to a document. Each commit gives some documents
nine new ones, so that one goes. A collection that is in FOLDER is used again.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pipeline_plugins.rag.chunk import Chunk, Document, Piece
from pipeline_plugins.store.lancedb import LanceDB
from pipeline_plugins.store.lancedb_replacing import id_of

from benchmarks.rag_scale import DIMENSIONS, NAME, OWNER, WINDOWS, WORDS, Corpus, unit

CHUNKS = 10
COMMITS = 7


def batches(corpus: Corpus, schema: Any) -> Iterator[Any]:
    """The corpus with ids such as those of documents that were ingested."""
    import pyarrow as arrow

    start = 0
    for batch in corpus.batches(schema):
        places = [divmod(at, CHUNKS) for at in range(start, start + len(batch))]
        columns = {
            "id": arrow.array([id_of(f"d{number}", ordinal) for number, ordinal in places]),
            "document": arrow.array([f"d{number}" for number, _ in places]),
            "ordinal": arrow.array([ordinal for _, ordinal in places], arrow.int32()),
        }
        all_columns = [columns.get(name, batch.column(name)) for name in schema.names]
        yield arrow.RecordBatch.from_arrays(all_columns, schema=schema)
        start += len(batch)


async def fill(folder: Path, size: int) -> None:
    """Make the collection, unless it is there, and put it in order."""
    store = LanceDB(LanceDB.Config(path=str(folder)))
    await store.open("synthetic")
    if NAME not in await store.names(OWNER):
        await store.create(OWNER, NAME, DIMENSIONS)
        table = await store.table(OWNER, NAME)
        for batch in batches(Corpus(size), store._schema(DIMENSIONS)):
            await table.add(batch)
    await (await store.table(OWNER, NAME)).optimize(cleanup_older_than=timedelta(days=1))
    await store.close()


def changed(number: int, random: np.random.Generator) -> list[Chunk]:
    """New chunks of a document, one less than it had."""
    words = random.integers(50_000, size=(CHUNKS - 1, WORDS))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    document = Document(f"d{number}", "".join(texts))
    found, start = [], 0
    for text in texts:
        windows = unit(random.normal(size=(WINDOWS, DIMENSIONS)))
        found.append(Chunk(document, Piece(start, start + len(text)), windows, "changed"))
        start += len(text)
    return found


async def cpu(folder: Path, size: int, documents: int) -> list[float]:
    """Milliseconds for each commit."""
    store = LanceDB(LanceDB.Config(path=str(folder)))
    await store.open("synthetic")
    random = np.random.default_rng()
    try:
        found = []
        for _ in range(COMMITS):
            which = random.choice(size // CHUNKS, documents, replace=False)
            new = {f"d{number}": changed(number, random) for number in which}
            began = time.process_time()
            await store.replace(OWNER, NAME, new)
            found.append(1000 * (time.process_time() - began))
        return found
    finally:
        await store.close()


def filling(folder: Path, size: int) -> None:
    """`fill`, as a process of its own does it, whose memory is not counted."""
    asyncio.run(fill(folder, size))


def measuring(folder: Path, size: int, documents: int) -> None:
    """Print a line."""
    found = asyncio.run(cpu(folder, size, documents))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{size} chunks, {documents} replaced: least {min(found):.0f} ms, median "
        f"{statistics.median(found):.0f} ms of CPU; memory {most} MiB",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    """Print a line for one document, and one for a hundred."""
    size = int(arguments[0])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[1]) if len(arguments) > 1 else Path(temporary)
        for work in ((filling, folder, size), (measuring, folder, size, 1), (measuring, folder, size, 100)):
            process = get_context("spawn").Process(target=work[0], args=work[1:])
            process.start()
            process.join()


if __name__ == "__main__":
    main(sys.argv[1:])

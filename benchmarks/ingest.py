"""What ingestion takes beside its embedder, and what memory it takes however much is read.

`python -m benchmarks.ingest MB` ingests rows of so many megabytes in all, and prints the peak of
the process's memory. Its vectors are the echo's: a model would take hours, and no more memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.documents import Cut, Documents, DocumentsConfig
from pipeline_plugins.rag.ingest import EMBEDDING, Ingestion
from pipeline_plugins.rag.sources import source_of

ROW = 4000
"""Characters of a synthetic row."""


@dataclass(slots=True)
class Taken:
    """What some work took: seconds on the clock, and seconds of all cores together."""

    seconds: float
    cpu: float


async def timed(work: Callable[[], object]) -> Taken:
    began, cpu = perf_counter(), process_time()
    await work()  # type: ignore[misc]
    return Taken(perf_counter() - began, process_time() - cpu)


async def ingested(folder: Path, store: Path) -> tuple[Taken, Taken, int, int]:
    """What a folder's ingestion takes, what embedding the same takes, its documents and its chunks."""
    documents = Documents(DocumentsConfig(path=str(store)))
    await documents.open()
    try:
        await documents.embedder.embed(["warm"])
        source = source_of(str(folder), documents.readers, documents.config.max_file_bytes)
        run = Ingestion(documents, "bench", "docs")
        whole = await timed(lambda: run.run([source], lambda _: None))
        found = [one for file in source.files() for one in documents.readers.read(file)]
        cuts = [await documents.cut("bench", "other", found[at : at + 64]) for at in range(0, len(found), 64)]
        alone = await timed(lambda: embedded(documents, cuts))
        return whole, alone, len(found), sum(len(cut.pieces) for cut in cuts)
    finally:
        await documents.close()


async def embedded(documents: Documents, cuts: list[Cut]) -> None:
    """Embed what was cut, as many at the same time as ingestion does."""
    left = iter(cuts)

    async def work() -> None:
        for cut in left:
            await documents.embed("", cut)

    await asyncio.gather(*(work() for _ in range(EMBEDDING)))


def rows(path: Path, megabytes: float) -> int:
    """A file of rows of text, no two alike; how many there are."""
    count = int(megabytes * 1_000_000 / ROW)
    with path.open("w") as file:
        for number in range(count):
            sentence = f"Row {number} says that pump {number * 7919 % 10007} has valve {number % 97}. "
            text = (sentence * (ROW // len(sentence) + 1))[: ROW - 40]
            file.write(json.dumps({"id": f"r{number}", "text": text}) + "\n")
    return count


async def streamed(path: Path, store: Path) -> int:
    """Ingest a file with vectors that cost little; its chunks."""
    config = DocumentsConfig(path=str(store), embed=Choice(plugin="echo"), embed_batch=512)
    documents = Documents(config)
    await documents.open()
    try:
        source = source_of(str(path), documents.readers, config.max_file_bytes)
        return (await Ingestion(documents, "bench", "rows").run([source], lambda _: None)).chunks
    finally:
        await documents.close()


def main(megabytes: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        count = rows(path, megabytes)
        began = perf_counter()
        chunks = asyncio.run(streamed(path, Path(folder, "store")))
        seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"rows": count, "chunks": chunks, "seconds": round(seconds, 1), "peak_mib": round(peak)})
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))

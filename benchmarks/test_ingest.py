"""Documents put in: how many in a second, and how near that is to the embedder's own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")

from benchmarks.ingest import ingested

Note = Callable[..., None]
DOCS = Path(__file__).parent.parent / "docs"
ROUNDS = 3


def test_ingestion(benchmark: Any, note: Note, tmp_path: Path) -> None:
    def rounds() -> list[Any]:
        return [asyncio.run(ingested(DOCS, tmp_path / str(number))) for number in range(ROUNDS)]

    found = benchmark.pedantic(rounds, rounds=1)
    whole = min(one.seconds for one, *_ in found)
    alone = min(one.seconds for _, one, *_ in found)
    cpu = min(one.cpu for one, *_ in found) / min(one.cpu for _, one, *_ in found)
    documents, chunks = found[0][2:]
    beside = f"{alone:.1f} s for embedding alone; CPU {cpu:.2f}"
    note("rag: ingestion's time over its embedder's", whole / alone, "", 1.1, beside=beside)
    note("rag: documents ingested", documents / whole, "1/s", beside=f"{chunks} chunks", more_is_better=True)

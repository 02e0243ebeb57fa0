"""Documents put in and found again: `benchmarks.rag` tells more of what is compared, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("bm25s")
pytest.importorskip("ir_measures")
pytest.importorskip("llama_index.core")

from benchmarks.long import long
from benchmarks.rag import DATA, MEASURES, compared
from benchmarks.rag_scale import measured

Note = Callable[..., None]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")
def test_retrieval(benchmark: Any, note: Note, tmp_path: Path) -> None:
    table = benchmark.pedantic(lambda: compared(tmp_path), rounds=1)
    (scores, found), *others = table.values()
    names = list(table)[1:]
    for at, what in enumerate(MEASURES):
        beside = ", ".join(
            f"{name} {other.mean(axis=0)[at]:.3f}" for name, (other, _) in zip(names, others, strict=True)
        )
        note(f"rag: {what}, hybrid", scores.mean(axis=0)[at], "", beside=beside, more_is_better=True)
    assert found is not None
    beside = f"p99 {found.percentile(99):.1f} ms"
    note(f"rag: search of {len(found.pieces)} chunks, p50, hybrid", found.percentile(50), "ms", beside=beside)


@pytest.mark.parametrize(
    "size", [1000, pytest.param(100_000, marks=long(2)), pytest.param(1_000_000, marks=long(20))]
)
def test_search_of_large_collections(benchmark: Any, note: Note, tmp_path: Path, size: int) -> None:
    figures = benchmark.pedantic(lambda: asyncio.run(measured(tmp_path, size)), rounds=1)
    budget = 10.0 if size == 1_000_000 else None
    for name, one in figures.items():
        limit = budget if name == "vector" else None
        beside = f"p99 {one.percentile(99):.1f} ms"
        note(f"rag: {name} search of {size} chunks, p50", one.percentile(50), "ms", limit, beside=beside)
    recall = figures["vector"].recall
    assert recall is not None
    note(f"rag: recall@10 of {size} chunks", recall, "", 0.95, more_is_better=True)

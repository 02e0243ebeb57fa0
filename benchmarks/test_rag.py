"""Retrieval on five corpora: recall, nDCG and MRR of vectors, words and both, in one run.

A passage is relevant if it shares characters with one of the question's references. The corpora
are in one collection, so that a passage of another one is a mistake, too. `RAG_ROWS` asks fewer
questions. Ranks are measured, not answers.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipeline_plugins.rag.chunk import Document, Passage
from pipeline_plugins.rag.documents import Documents, DocumentsConfig, Mode
from pipeline_plugins.rag.upkeep import tidy

Note = Callable[..., None]
DATA = next(
    (data for parent in Path(__file__).parents if (data := parent / "shared/data/rag").is_dir()),
    Path("shared/data/rag"),
)
ROWS = int(os.environ.get("RAG_ROWS", "1000"))
K = 10
MODES: tuple[Mode, ...] = ("hybrid", "vector", "fulltext")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")


@dataclass(slots=True, frozen=True)
class Question:
    """A question, its corpus, and the spans of characters that answer it."""

    text: str
    corpus: str
    spans: tuple[tuple[int, int], ...]

    def touched(self, passage: Passage) -> set[int]:
        """Which of the spans a passage shares characters with."""
        if passage.document != self.corpus:
            return set()
        return {n for n, (a, b) in enumerate(self.spans) if passage.start < b and a < passage.end}


def questions() -> list[Question]:
    with gzip.open(DATA / "questions.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))[:ROWS]
    return [
        Question(
            row["question"],
            row["corpus_id"],
            tuple((r["start_index"], r["end_index"]) for r in json.loads(row["references"])),
        )
        for row in rows
    ]


def figures(question: Question, found: Sequence[Passage], relevant: int) -> tuple[float, float, float, float]:
    """recall@5 and recall@10 of the references, nDCG@10 with binary gains, reciprocal rank.

    `relevant` is how many chunks of the collection are, for the ideal ranking.
    """
    touched = [question.touched(passage) for passage in found[:K]]
    recalls = [len(set().union(*touched[:k])) / len(question.spans) for k in (5, K)]
    gain = sum(1 / math.log2(rank + 1) for rank, one in enumerate(touched, 1) if one)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(K, relevant) + 1))
    first = next((rank for rank, one in enumerate(touched, 1) if one), None)
    return recalls[0], recalls[1], gain / ideal if ideal else 0.0, 1 / first if first else 0.0


async def measured(folder: Path) -> dict[str, Any]:
    documents = Documents(DocumentsConfig(path=str(folder)))
    await documents.open()
    try:
        corpora = [Document(p.stem, p.read_text("utf-8")) for p in sorted((DATA / "corpora").glob("*.md"))]
        began = time.perf_counter()
        done = await documents.put("bench", "corpora", corpora)
        await tidy(documents.store, "bench", "corpora", timedelta(0))
        ingesting = time.perf_counter() - began
        table = await documents.store.table("bench", "corpora")
        rows = (await table.query().select(["document", "start", "end"]).to_arrow()).to_pylist()
        found: dict[str, Any] = {"chunks": done.chunks, "seconds": ingesting}
        asked = questions()
        for mode in MODES:
            scores, seconds = [], []
            for question in asked:
                relevant = sum(
                    row["document"] == question.corpus
                    and any(row["start"] < b and a < row["end"] for a, b in question.spans)
                    for row in rows
                )
                began = time.perf_counter()
                passages = await documents.search("bench", "corpora", question.text, mode=mode, k=K)
                seconds.append(time.perf_counter() - began)
                scores.append(figures(question, passages, relevant))
            found[mode] = (*np.mean(scores, axis=0), 1000 * float(np.median(seconds)))
        return found
    finally:
        await documents.close()


def test_retrieval(benchmark: Any, note: Note, tmp_path: Path) -> None:
    found = benchmark.pedantic(lambda: asyncio.run(measured(tmp_path)), rounds=1)
    note("rag: chunks ingested", found["chunks"] / found["seconds"], "1/s", more_is_better=True)
    for at, what in enumerate(("recall@5", "recall@10", "nDCG@10", "MRR@10")):
        beside = ", ".join(f"{mode} {found[mode][at]:.3f}" for mode in MODES[1:])
        note(f"rag: {what}, hybrid", found["hybrid"][at], "", beside=beside, more_is_better=True)
    beside = ", ".join(f"{mode} {found[mode][-1]:.1f}" for mode in MODES[1:])
    note(f"rag: search of {found['chunks']} chunks, p50, hybrid", found["hybrid"][-1], "ms", beside=beside)

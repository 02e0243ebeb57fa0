"""Retrieval on five corpora, in one run: this stage's three modes, bm25s, and plain llama-index.

    python -m benchmarks.rag [FOLDER]

All corpora are in one collection, so that a passage of another one is a mistake, too. A passage
is relevant if it shares characters with one of the question's references, or has the same text
as one that does; of equal texts, every system's first alone counts. Ranks are measured, not
answers. The weight of words in `hybrid` is judged on corpora that had no part in choosing it:
for each corpus the best of `WEIGHTS` on the other four. `RAG_ROWS` asks fewer questions.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.documents import Documents, DocumentsConfig, Mode
from pipeline_plugins.rag.ranking import fuse
from pipeline_plugins.store import lancedb_search
from pipeline_plugins.store.lancedb import DEPTH

DATA = next(
    (data for parent in Path(__file__).parents if (data := parent / "shared/data/rag").is_dir()),
    Path("shared/data/rag"),
)
ROWS = int(os.environ.get("RAG_ROWS", "1000"))
K = 10
MODES: tuple[Mode, ...] = ("hybrid", "vector", "fulltext")
WEIGHTS = (0.4, 0.5, 0.6, 0.7)
MEASURES = ("recall@5", "recall@10", "nDCG@10", "MRR@10")


@dataclass(slots=True, frozen=True)
class Question:
    """A question, its corpus, and the spans of characters that answer it."""

    text: str
    corpus: str
    spans: tuple[tuple[int, int], ...]


@dataclass(slots=True, frozen=True)
class Piece:
    """What a system gives back: where it stands, and its text."""

    document: str
    start: int
    end: int
    text: str


@dataclass(slots=True)
class Result:
    """What a system found for each question, best first, of all its pieces, and the seconds each took."""

    pieces: Sequence[Piece]
    found: list[list[str]]
    seconds: list[float]

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the searches was done."""
        return 1000 * float(np.percentile(self.seconds, share))


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


def corpora() -> list[Document]:
    return [Document(p.stem, p.read_text("utf-8")) for p in sorted((DATA / "corpora").glob("*.md"))]


def judged(asked: Sequence[Question], result: Result) -> np.ndarray:
    """A row of `MEASURES` for each question: recall of its references, and of its pieces nDCG and MRR."""
    import ir_measures
    from ir_measures import RR, nDCG

    answers = [_answers(question, result.pieces) for question in asked]
    qrels = {str(at): dict.fromkeys(set().union(*those), 1) for at, those in enumerate(answers)}
    run = {
        str(at): {text: float(K - rank) for rank, text in enumerate(found[:K])}
        for at, found in enumerate(result.found)
    }
    scores = np.zeros((len(asked), len(MEASURES)))
    for at, (those, found) in enumerate(zip(answers, result.found, strict=True)):
        for column, k in enumerate((5, K)):
            scores[at, column] = np.mean([bool(one & set(found[:k])) for one in those])
    for measure, column in ((nDCG @ K, 2), (RR @ K, 3)):
        for metric in ir_measures.iter_calc([measure], qrels, run):
            scores[int(metric.query_id), column] = metric.value
    return scores


def _answers(question: Question, pieces: Sequence[Piece]) -> list[set[str]]:
    """For each of the question's references the texts that share characters with it."""
    own = [piece for piece in pieces if piece.document == question.corpus]
    return [{one.text for one in own if one.start < b and a < one.end} for a, b in question.spans]


def unseen_weights(asked: Sequence[Question], judged_by: Mapping[float, np.ndarray]) -> np.ndarray:
    """Scores with the weight that is best on all corpora but the question's own."""
    corpus = np.array([question.corpus for question in asked])
    scores = np.zeros_like(next(iter(judged_by.values())))
    for name in set(corpus):
        best = max(judged_by, key=lambda weight: float(judged_by[weight][corpus != name, 1:].mean()))
        scores[corpus == name] = judged_by[best][corpus == name]
    return scores


async def own(folder: Path, asked: Sequence[Question]) -> tuple[dict[Mode, Result], dict[float, Result]]:
    """The three modes as they are shipped, and `hybrid` with each of `WEIGHTS`."""
    documents = Documents(DocumentsConfig(path=str(folder)))
    await documents.open()
    try:
        if "corpora" not in await documents.store.names("bench"):
            await documents.put("bench", "corpora", corpora())
            await documents.store.tidy("bench", "corpora", timedelta(0))
        table = await documents.store.table("bench", "corpora")
        rows = await table.query().select(["document", "start", "end", "text"]).to_arrow()
        pieces = [Piece(**row) for row in rows.to_pylist()]
        modes = {mode: Result(pieces, [], []) for mode in MODES}
        weights = {weight: Result(pieces, [], []) for weight in WEIGHTS}
        for question in asked:
            for mode, result in modes.items():
                began = time.perf_counter()
                found = await documents.search("bench", "corpora", question.text, mode=mode, k=K)
                result.seconds.append(time.perf_counter() - began)
                result.found.append([passage.text for passage in found])
            near, matching = await _lists(documents, table, question.text)
            for weight, result in weights.items():
                passages = await lancedb_search.read(table, fuse(near, matching, weight), K)
                result.found.append([one.text for one in passages])
        return modes, weights
    finally:
        await documents.close()


async def _lists(documents: Documents, table: Any, text: str) -> tuple[list[Any], list[Any]]:
    vector = (await documents.embedder.embed([text]))[0]
    return (
        await lancedb_search.near(table, vector, DEPTH),
        await lancedb_search.matching(table, text, DEPTH, None, vector),
    )


def bm25(pieces: Sequence[Piece], asked: Sequence[Question]) -> Result:
    """bm25s, with English stop words and stems, over the same pieces."""
    import bm25s
    import Stemmer

    options: dict[str, Any] = {
        "stopwords": "en",
        "stemmer": Stemmer.Stemmer("english"),
        "show_progress": False,
    }
    index = bm25s.BM25()
    index.index(bm25s.tokenize([piece.text for piece in pieces], **options), show_progress=False)

    def search(text: str) -> list[str]:
        tokens = bm25s.tokenize([text], **options)
        found, _ = index.retrieve(tokens, k=4 * K, show_progress=False)
        return [pieces[at].text for at in found[0]]

    return _asked(pieces, asked, search)


def llama_index(asked: Sequence[Question], tokens: int | None) -> Result:
    """llama-index as it comes, with this project's embedder: chunks of its own size, or of so many tokens."""
    from llama_index.core import Document as Text
    from llama_index.core import VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import SentenceSplitter
    from pipeline_plugins.infer.minilm_embedder import Embedder

    embedder = Embedder()

    class MiniLM(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, row)) for row in embedder.embed(texts, truncate=True)]

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    sizes = {} if tokens is None else {"chunk_size": tokens, "chunk_overlap": 30}
    texts = [Text(text=one.text, id_=one.id) for one in corpora()]
    nodes: list[Any] = SentenceSplitter(**sizes).get_nodes_from_documents(texts)
    index = VectorStoreIndex(nodes, embed_model=MiniLM())
    retriever = index.as_retriever(similarity_top_k=4 * K)
    pieces = [Piece(node.ref_doc_id, node.start_char_idx, node.end_char_idx, node.text) for node in nodes]
    return _asked(pieces, asked, lambda text: [found.text for found in retriever.retrieve(text)])


def _asked(
    pieces: Sequence[Piece], asked: Sequence[Question], search: Callable[[str], Iterable[str]]
) -> Result:
    result = Result(pieces, [], [])
    for question in asked:
        began = time.perf_counter()
        found = list(dict.fromkeys(search(question.text)))
        result.seconds.append(time.perf_counter() - began)
        result.found.append(found[:K])
    return result


def compared(folder: Path) -> dict[str, tuple[np.ndarray, Result | None]]:
    """Each system's scores, a row for each question, and what it found."""
    asked = questions()
    modes, weights = asyncio.run(own(folder, asked))
    by_weight = {weight: judged(asked, result) for weight, result in weights.items()}
    table: dict[str, tuple[np.ndarray, Result | None]] = {
        mode: (judged(asked, result), result) for mode, result in modes.items()
    }
    table["hybrid, weight from the other corpora"] = (unseen_weights(asked, by_weight), None)
    peers = {
        "bm25s": bm25(modes["fulltext"].pieces, asked),
        "llama-index": llama_index(asked, None),
        "llama-index, chunks of 200": llama_index(asked, 200),
    }
    return table | {name: (judged(asked, result), result) for name, result in peers.items()}


def main(arguments: Sequence[str]) -> None:
    """Print the table in Markdown; a folder that is named keeps the collection for the next run."""
    with tempfile.TemporaryDirectory() as temporary:
        table = compared(Path(arguments[0] if arguments else temporary))
    print(f"| | {' | '.join(MEASURES)} | pieces | characters of ten | p50 | p99 |")
    print(f"|---|{'---|' * (len(MEASURES) + 4)}")
    for name, (scores, result) in table.items():
        cells = [f"{value:.3f}" for value in scores.mean(axis=0)]
        if result is not None:
            length = np.mean([sum(map(len, found[:K])) for found in result.found])
            cells += [str(len(result.pieces)), f"{length:.0f}"]
            cells += [f"{result.percentile(share):.1f} ms" for share in (50, 99)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])

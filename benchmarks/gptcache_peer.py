"""GPTCache on a stream of questions with vectors given: run by its own interpreter, see `test_semantic`.

Arguments: a folder with `vectors.npy` and `questions.json` (a list of [text, meaning]), then the
thresholds. Prints a JSON line for each: threshold, hits, wrong hits, seconds of a lookup.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gptcache import Cache, Config  # type: ignore[import-not-found]
from gptcache.adapter.api import get, put  # type: ignore[import-not-found]
from gptcache.manager import CacheBase, VectorBase, get_data_manager  # type: ignore[import-not-found]
from gptcache.similarity_evaluation.distance import (  # type: ignore[import-not-found]
    SearchDistanceEvaluation,
)


def play(folder: Path, questions: list[tuple[str, int]], vectors: Any, threshold: float) -> dict[str, Any]:
    """Ask each question; put in what was not found. SQLite and faiss, its usual set-up."""
    known = {text: vector for (text, _), vector in zip(questions, vectors, strict=True)}
    cache = Cache()
    manager = get_data_manager(
        CacheBase("sqlite", sql_url=f"sqlite:///{folder}/answers.db"),
        VectorBase("faiss", dimension=vectors.shape[1], index_path=str(folder / "faiss.index")),
        max_size=10**6,
    )
    cache.init(
        pre_embedding_func=lambda data, **_: data["prompt"],
        embedding_func=lambda text, **_: known[text],
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=threshold),
    )
    hits = wrong = 0
    spent = 0.0
    for text, meaning in questions:
        started = time.perf_counter()
        answer = get(text, cache_obj=cache)
        spent += time.perf_counter() - started
        if answer is None:
            put(text, str(meaning), cache_obj=cache)
        else:
            hits += 1
            wrong += answer != str(meaning)
    return {"threshold": threshold, "hits": hits, "wrong": wrong, "seconds": spent / len(questions)}


def main(folder: str, *thresholds: str) -> None:
    """Play the stream once for each threshold."""
    questions = [tuple(row) for row in json.loads(Path(folder, "questions.json").read_text())]
    vectors = np.load(Path(folder, "vectors.npy"))
    for threshold in thresholds:
        with tempfile.TemporaryDirectory() as own:
            print(json.dumps(play(Path(own), questions, vectors, float(threshold))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""GPTCache on questions with vectors given: run by its own interpreter, see `test_semantic`.

Arguments: a folder with `questions.json` (`known` and `asked`, lists of texts) and `vectors.npy` (theirs, in
that order), then the thresholds. What is known is put in, then all that is asked is looked up at each
threshold. Prints a JSON line for each: `threshold`, `answers` (the known text found, or null), and
`seconds` of a look-up.
"""

from __future__ import annotations

import json
import sys
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


def make(folder: Path, vectors: dict[str, Any], dimension: int) -> Any:
    """An empty cache on SQLite and faiss, its usual set-up."""
    cache = Cache()
    cache.init(
        pre_embedding_func=lambda data, **_: data["prompt"],
        embedding_func=lambda text, **_: vectors[text],
        data_manager=get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{folder}/answers.db"),
            VectorBase("faiss", dimension=dimension, index_path=str(folder / "faiss.index")),
            max_size=10**6,
        ),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(),
    )
    return cache


def main(folder: str, *thresholds: str) -> None:
    """Put in what is known, and ask at each threshold."""
    texts = json.loads(Path(folder, "questions.json").read_text())
    vectors = np.load(Path(folder, "vectors.npy"))
    by_text = dict(zip([*texts["known"], *texts["asked"]], vectors, strict=True))
    cache = make(Path(folder), by_text, vectors.shape[1])
    for text in texts["known"]:
        put(text, text, cache_obj=cache)
    for threshold in map(float, thresholds):
        cache.config.similarity_threshold = threshold
        started = time.perf_counter()
        answers = [get(text, cache_obj=cache) for text in texts["asked"]]
        seconds = (time.perf_counter() - started) / len(answers)
        print(json.dumps({"threshold": threshold, "answers": answers, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

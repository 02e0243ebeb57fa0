"""Chunks in windows of a few sentences, each with a vector of its own.

One vector of a whole chunk is near to what the chunk is about, and far from a question that one
of its sentences answers. So the model reads windows; the chunk's own vector, by which it is
found among all, is their mean, and how well it fits a question is told by the best of them, too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

TOKENS = 64
"""Of a window, at most. On the five corpora of `benchmarks/rag.py` windows of 32 and of 64 tokens
found more than whole chunks of 200 did, and 64 the most."""

BEST = 2 / 3
"""How much of a chunk's similarity its best window is; the rest is its mean's."""

TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,8}|[^\w\s]")
"""About what a token is, for tokenizers of words and their parts."""

SENTENCE = re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？]|\n+")
"""The end of a sentence, and the white space after it."""


def windows(text: str) -> list[str]:
    """The text in parts of whole sentences, up to `TOKENS` each; a longer sentence is cut."""
    ends = [found.end() for found in TOKEN.finditer(text)]
    stops = [found.end() for found in SENTENCE.finditer(text)]
    parts = []
    start = 0
    while len(ends) > TOKENS:
        most = ends[TOKENS - 1]
        stop = stops[at - 1] if (at := bisect_right(stops, most)) else 0
        end = stop if stop > start else most
        parts.append(text[start:end])
        start, ends, stops = end, ends[bisect_right(ends, end) :], stops[at:]
    return [*parts, text[start:]] if text[start:].strip() or not parts else parts


def mean(rows: Vector) -> Vector:
    """The unit vector of the same direction as the sum of these rows."""
    import numpy as np

    total: Vector = rows.sum(axis=0)
    total /= np.linalg.norm(total) or 1
    return total


def packed(rows: Vector) -> bytes:
    """Rows as they are stored: numbers of 16 bits, which changes a cosine by less than 0.001."""
    return rows.astype("<f2").tobytes()


def similarities(query: Vector, stored: Sequence[bytes]) -> list[float]:
    """How well chunks fit a query: of the cosines with the mean and with the best of their windows."""
    import numpy as np

    if not stored:
        return []
    rows = np.frombuffer(b"".join(stored), dtype="<f2").reshape(-1, len(query)).astype(np.float32)
    counts = np.array([len(one) // (2 * len(query)) for one in stored])
    starts = np.cumsum(counts) - counts
    fits = rows @ query
    sums = rows[starts]
    for step in range(1, counts.max()):  # a fourth of what np.add.reduceat takes along the first axis
        longer = counts > step
        sums[longer] += rows[starts[longer] + step]
    means = np.add.reduceat(fits, starts) / np.maximum(np.linalg.norm(sums, axis=1), 1e-9)
    found: list[float] = (BEST * np.maximum.reduceat(fits, starts) + (1 - BEST) * means).tolist()
    return found

"""Chunks in windows of a few sentences, each with a vector of its own.

One vector of a whole chunk is near to what the chunk is about, and far from a question that one
of its sentences answers. So the model reads windows; the chunk's own vector, by which it is
found among all, is their mean, and how well it fits a question is told by the best of them, too.
"""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

CHARACTERS = 288
"""Of a window, at most: about 64 tokens. On the five corpora of `benchmarks/rag.py` 32 and 64 tokens
found more than the 200 of a whole chunk did."""

BEST = 2 / 3
"""How much of a chunk's similarity its best window is; the rest is its mean's."""

SENTENCE = re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？]|\n+")
"""The end of a sentence, and the white space after it."""


def windows(text: str) -> list[str]:
    """The text in parts of about equal length, cut after sentences where there are some, else at spaces."""
    parts = []
    start = 0
    while (left := len(text) - start) > CHARACTERS:
        least = start + left // ceil(left / CHARACTERS) // 2
        end = _end(text, least, start + CHARACTERS)
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _end(text: str, least: int, most: int) -> int:
    """Where a window ends: after the last sentence between these, else the last space."""
    sentence = max((found.end() for found in SENTENCE.finditer(text, least, most)), default=0)
    return sentence or text.rfind(" ", least, most) + 1 or most


def mean(rows: Vector) -> Vector:
    """The unit vector of the same direction as the sum of these rows."""
    import numpy as np

    total: Vector = rows.sum(axis=0)
    total /= np.linalg.norm(total) or 1
    return total


def packed(rows: Vector) -> bytes:
    """Rows as they are stored: numbers of 16 bits, which changes a cosine by less than 0.001."""
    return rows.astype("<f2").tobytes()


def similarity(query: Vector, vector: Any, stored: bytes) -> float:
    """How well a chunk fits a query: of the cosines with its mean and with the best of its windows."""
    import numpy as np

    rows = np.frombuffer(stored, dtype="<f2").reshape(-1, len(query)).astype(np.float32)
    return float(BEST * (rows @ query).max() + (1 - BEST) * (vector @ query))

"""Rankings put together, and passages put together that say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline_plugins.rag.chunk import Passage

RANK = 60
"""The constant of reciprocal rank fusion, score = sum of weight / (RANK + rank), from Cormack, Clarke and
Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", 2009."""

WORDS = 0.7
"""The weight of words in it, the rest being that of meaning; how it was chosen is told in docs/rag.md."""

GAP = 8
"""Characters of white space that may be between two chunks that follow on each other."""


@dataclass(slots=True, frozen=True)
class Candidate:
    """A chunk that a search has found, by the number of its row, before anything else of it is read.

    score       what it is ranked by: similarity, BM25 or the sum of reciprocal ranks
    similarity  of its vectors with the query's, a cosine, None where no vectors were compared
    """

    row: int
    score: float
    similarity: float | None = None


def fuse(near: Sequence[Candidate], matching: Sequence[Candidate], words: float = WORDS) -> list[Candidate]:
    """One ranking of two, by the weighted sum of reciprocal ranks; what only one has is in it, too.

    Of candidates that have a similarity all are ranked by it, whichever search found them.
    """
    candidates = {one.row: one for one in (*matching, *near)}
    order = sorted(
        (one for one in candidates.values() if one.similarity is not None),
        key=lambda one: (-(one.similarity or 0.0), one.row),
    )
    scores = dict.fromkeys(candidates, 0.0)
    for weight, ranking in ((1 - words, order), (words, matching)):
        for rank, one in enumerate(ranking, 1):
            scores[one.row] += weight / (RANK + rank)
    fused = (replace(one, score=scores[row]) for row, one in candidates.items())
    return sorted(fused, key=lambda one: (-one.score, one.row))


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """The first of those that have the same text, in their order."""
    first: dict[str, Passage] = {}
    for one in passages:
        first.setdefault(one.text, one)
    return list(first.values())


def joined(passages: Sequence[Passage], beside: Sequence[Passage] = ()) -> list[Passage]:
    """Passages of a document that share characters as one, at the place of the best of them.

    `beside` are the chunks around them, which make them longer and get no place of their own.
    """
    left, found = list(passages), []
    while left:
        whole = left.pop(0)
        while True:
            reached = [one for one in left if _near(whole, one, 0)]
            reached += [one for one in beside if _near(whole, one, GAP) and not _within(one, whole)]
            if not reached:
                break
            for one in reached:
                whole = _merged(whole, one)
            left = [one for one in left if one not in reached]
        found.append(whole)
    return found


def _near(one: Passage, other: Passage, gap: int) -> bool:
    apart = max(one.start, other.start) - min(one.end, other.end)
    return one.document == other.document and apart < gap


def _within(one: Passage, other: Passage) -> bool:
    return other.start <= one.start and one.end <= other.end


def _merged(best: Passage, other: Passage) -> Passage:
    """The best one with the other's text, where that goes further."""
    first, second = sorted((best, other), key=lambda one: one.start)
    shared = first.end - second.start
    more = second.text[shared:] if shared >= 0 else "\n" + second.text
    return replace(best, text=first.text + more, start=first.start, end=max(first.end, second.end))

"""Which neighbours of a question are weighed against each other, and what is known about each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline_plugins.cache.semantic_guard import Facts

NEIGHBOURS = 8
"""Nearest questions that are looked at."""

CANDIDATES = 3
"""Of their answers, those that are weighed against each other."""

BEHIND = 0.08
"""An answer whose nearest question is less similar than the nearest of all by more is not weighed."""

AHEAD = 0.2
"""The lead of an answer that has no rival among the neighbours."""


@dataclass(slots=True, eq=False)
class History:
    """What questions near one answer have shown: how often it was right for them, and wrong."""

    right: int = 0
    wrong: int = 0


@dataclass(slots=True)
class Candidate:
    """A neighbour that the guard lets through.

    similarity  cosine of the question and the neighbour
    lead        similarity less that of the best neighbour with another answer; negative if behind
    support     further near neighbours known to have the same answer
    """

    similarity: float
    asked: Facts
    known: Facts
    history: History
    lead: float = 0.2
    support: int = 0


def weigh(
    asked: Facts, near: Sequence[tuple[float, Facts, History]], ruled_out: Callable[[int], object]
) -> tuple[list[int], list[Candidate]]:
    """The nearest question of each answer: its place in `near`, and what is known about it.

    `near` are the similarity, facts and answer's history of questions, nearest first.
    `ruled_out` says whether the guard is against one, by its place.
    """
    answers: dict[History, list[int]] = {}
    for at, (_, _, history) in enumerate(near):
        answers.setdefault(history, []).append(at)
    places: list[int] = []
    candidates: list[Candidate] = []
    for history, same in list(answers.items())[:CANDIDATES]:
        similarity, facts, _ = near[same[0]]
        if similarity < near[0][0] - BEHIND:
            break
        if ruled_out(same[0]):
            continue
        rivals = (other for other, _, whose in near if whose is not history)
        lead = similarity - max(rivals, default=similarity - AHEAD)
        candidates.append(Candidate(similarity, asked, facts, history, lead, len(same) - 1))
        places.append(same[0])
    return places, candidates


def features(candidate: Candidate) -> list[float]:
    """A candidate as numbers, each about 1 in size and 0 where it says nothing."""
    asked, known, history = candidate.asked, candidate.known, candidate.history
    either = len(asked.words | known.words) or 1
    return [
        1.0,
        (candidate.similarity - 0.9) * 10,
        -math.log(1.003 - min(candidate.similarity, 1.0)) - 3,
        len(asked.words & known.words) / either - 0.5,
        math.log1p(history.right),
        math.log1p(history.wrong),
        math.log1p(candidate.support),
        max(-0.2, min(candidate.lead, 0.2)) * 5,
        float(asked.first != known.first),
        abs(math.log((asked.length + 1) / (known.length + 1))),
    ]

"""A stream of labelled questions played through the semantic cache's own index, guard and decisions.

The answer's text is the question's meaning, so the label that exploring gives is the data's.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pipeline_plugins.cache.semantic_candidates import NEIGHBOURS, Candidate, History, weigh
from pipeline_plugins.cache.semantic_decision import Decision, Threshold
from pipeline_plugins.cache.semantic_guard import Facts, difference, facts_of
from pipeline_plugins.cache.semantic_index import Neighbours

_FILE = "shared/data/semantic-cache/stream.csv.gz"
DATA = next(
    (path for folder in Path(__file__).parents if (path := folder / _FILE).is_file()),
    Path(__file__).parents[2] / _FILE,
)
"""The stream, in a folder beside the project's or beside one that holds it."""

DEPTH = 48
"""Nearest neighbours of each text that are looked at, among all texts, of which a stream may ask few."""


@dataclass(slots=True)
class Known:
    """A question in the cache: its meaning, and the answers it shares."""

    at: int
    history: History


@dataclass(slots=True)
class Played:
    """Hits and wrong hits per request, in per cent."""

    hits: float
    wrong: float


def read(limit: int) -> tuple[list[str], Any]:
    """The first texts of the stream and their meanings, without those that `PRIOR` was fitted to."""
    with gzip.open(DATA, "rt", newline="") as file:
        kept = (row for row in csv.DictReader(file) if int(row["meaning"]) % 2)
        rows = list(islice(kept, limit))
    return [row["text"] for row in rows], np.array([int(row["meaning"]) for row in rows])


def read_pairs(limit: int) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Pairs of texts, no text twice, and the meaning of each text; none that `PRIOR` was fitted to."""
    texts, of = read(10**6)
    meanings = dict(zip(texts, map(int, of), strict=True))
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    with gzip.open(DATA.with_name("pairs.csv.gz"), "rt", newline="") as file:
        for row in csv.DictReader(file):
            pair = row["text_a"], row["text_b"]
            if len(pairs) < limit and meanings.keys() >= set(pair) and seen.isdisjoint(pair):
                pairs.append(pair)
                seen.update(pair)
    return pairs, meanings


def possible(meanings: Sequence[int]) -> float:
    """Per cent of requests whose meaning came before."""
    return 100 * (1 - len(set(meanings)) / len(meanings))


def zipf(count: int, texts: int, random: np.random.Generator, exponent: float = 1.0) -> Any:
    """Requests for texts whose frequencies fall as their rank's power."""
    weights = 1 / np.arange(1, texts + 1) ** exponent
    return random.permutation(texts)[random.choice(texts, count, p=weights / weights.sum())]


class Corpus:
    """Labelled texts with what does not depend on their order computed once: facts, and near ones."""

    def __init__(self, texts: Sequence[str], meanings: Any, vectors: Any) -> None:
        size = len(texts)
        depth = min(DEPTH, size - 1)
        self.meanings = meanings
        self.facts: list[Facts] = [facts_of(text) for text in texts]
        self.near: Any = np.empty((size, depth), dtype=np.int64)
        self.similarity: Any = np.empty((size, depth), dtype=np.float32)
        for start in range(0, size, 1000):
            block = vectors[start : start + 1000] @ vectors.T
            block[np.arange(len(block)), np.arange(start, start + len(block))] = -2
            best = np.argpartition(-block, depth - 1, axis=1)[:, :depth]
            values = np.take_along_axis(block, best, 1)
            by = np.argsort(-values, axis=1)
            self.near[start : start + 1000] = np.take_along_axis(best, by, 1)
            self.similarity[start : start + 1000] = np.take_along_axis(values, by, 1)


class Stream:
    """Requests, each the number of a text in a corpus."""

    def __init__(self, corpus: Corpus, order: Any) -> None:
        self.corpus = corpus
        self.order = order

    def play(self, decision: Decision, *, guard: bool = True, floor: float = 0.7) -> Played:
        """Every request in turn, as `Semantic` does: known text, else neighbours, else afresh."""
        known: dict[int, Known] = {}
        hits = wrong = 0
        for at in map(int, self.order):
            if at in known:
                decision.hit()
                hits += 1
                continue
            found, candidates = self._weigh(at, known, guard, floor)
            verdict = decision.decide(at.to_bytes(8, "little"), candidates)
            history = History()
            if verdict.candidate >= 0:
                other = found[verdict.candidate]
                right = bool(self.corpus.meanings[at] == self.corpus.meanings[other.at])
                if verdict.action == "serve":
                    hits += 1
                    wrong += not right
                    continue
                decision.learn(verdict, candidates[verdict.candidate], right)
                history = other.history if right else history
            known[at] = Known(at, history)
        return Played(100 * hits / len(self.order), 100 * wrong / len(self.order))

    def _weigh(
        self, at: int, known: dict[int, Known], guard: bool, floor: float
    ) -> tuple[list[Known], list[Candidate]]:
        corpus = self.corpus
        near = [
            (similarity, corpus.facts[other], known[other])
            for similarity, other in zip(
                corpus.similarity[at].tolist(), corpus.near[at].tolist(), strict=True
            )
            if similarity >= floor and other in known
        ][:NEIGHBOURS]
        asked = corpus.facts[at]
        places, candidates = weigh(
            asked,
            [(similarity, facts, item.history) for similarity, facts, item in near],
            lambda place: guard and difference(asked, near[place][1]),
        )
        return [near[place][2] for place in places], candidates


class Lookups:
    """Questions asked of others that are known, by the cache's own index and guard."""

    def __init__(self, known: Sequence[str], asked: Sequence[str], vectors: Any) -> None:
        self._known = [(text, facts_of(text)) for text in known]
        self._asked = asked
        self._vectors = vectors[len(known) :]
        self._index: Neighbours[int] = Neighbours(vectors.shape[1], len(known))
        for at, vector in enumerate(vectors[: len(known)]):
            self._index.add(b"", vector, at)

    def at(self, threshold: float) -> list[str | None]:
        """For each, the nearest known text that the guard lets through and that is so near, or None."""
        return [self._nearest(*one, threshold) for one in zip(self._asked, self._vectors, strict=True)]

    def _nearest(self, text: str, vector: Any, threshold: float) -> str | None:
        asked = facts_of(text)
        found = self._index.search(b"", vector, NEIGHBOURS)
        near = [(similarity, self._known[at][1], History()) for _, similarity, at in found]
        places, candidates = weigh(asked, near, lambda place: difference(asked, near[place][1]))
        verdict = Threshold(threshold).decide(b"", candidates)
        return self._known[found[places[verdict.candidate]][2]][0] if verdict.action == "serve" else None


def scored(found: Sequence[str | None], asked: Sequence[str], meanings: dict[str, int]) -> Played:
    """Hits and wrong hits of what was found for each question."""
    hits = [meanings[text] == meanings[other] for text, other in zip(asked, found, strict=True) if other]
    return Played(100 * len(hits) / len(asked), 100 * hits.count(False) / len(asked))


class Static:
    """A threshold and nothing else, to compare with: counts nothing, explores nothing."""

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity

    def play(self, stream: Stream) -> Played:
        """What a cache with this threshold and no guard does."""
        known: set[int] = set()
        hits = wrong = 0
        corpus = stream.corpus
        for at in map(int, stream.order):
            if at in known:
                hits += 1
                continue
            for similarity, other in zip(
                corpus.similarity[at].tolist(), corpus.near[at].tolist(), strict=True
            ):
                if similarity < self.similarity:
                    known.add(at)
                    break
                if other in known:
                    hits += 1
                    wrong += bool(corpus.meanings[at] != corpus.meanings[other])
                    break
            else:
                known.add(at)
        return Played(100 * hits / len(stream.order), 100 * wrong / len(stream.order))


def at_same_error(curve: Sequence[Played], wrong: float) -> float:
    """The hits of a curve where it has this many wrong hits, between its points."""
    points = sorted((one.wrong, one.hits) for one in curve)
    return float(np.interp(wrong, [x for x, _ in points], [y for _, y in points]))

"""What a semantic cache knows of each question, and the contract of an index that keeps it.

An index keeps questions apart by partition, finds the nearest of one, and tells its other users,
if it has any, of what is added, removed and learned. What two questions must agree in to share an
answer is decided elsewhere; an index only never mixes partitions, and never gives what has expired.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from pipeline_plugins.cache.semantic_candidates import History
from pipeline_plugins.cache.semantic_decision import Verdict
from pipeline_plugins.cache.semantic_guard import Facts
from pipeline_plugins.cache.semantic_index import Neighbours
from pipeline_plugins.cache.semantic_opposites import RIVALS
from pipeline_plugins.cache.store import Key

if TYPE_CHECKING:
    from pipeline_plugins.cache.semantic_index import Vector


@dataclass(slots=True, eq=False)
class Known:
    """A question that has an answer in the store, by whose key's digest it is named.

    answer   names what it shares with the questions that were found to have the same answer: the
             digest of the first of them, and their `history`
    expires  Unix time from which the answer is no longer given
    """

    key: Key
    facts: Facts
    context: Facts | None
    context_vector: Vector | None
    history: History
    answer: bytes
    expires: float = float("inf")


@dataclass(slots=True, frozen=True)
class Lesson:
    """What a fresh answer showed: whether the known one would have been right, and what was expected."""

    answer: bytes
    right: bool
    verdict: Verdict


Hear = Callable[[Lesson], None]
"""Takes in a lesson of another process, or of one before this."""


class Index(Protocol):
    """Keeps questions. Methods raise nothing for an index that is away: it has found nothing then."""

    async def open(self) -> None:
        """Make ready. Raises OSError or ValueError if it can never work."""
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...

    def __len__(self) -> int:
        """Questions known now, expired ones among them until they are met."""
        ...

    async def search(self, partition: bytes, vector: Vector, count: int) -> list[tuple[float, Known]]:
        """The nearest questions of this partition and no other with their cosines, nearest first."""
        ...

    async def add(self, partition: bytes, vector: Vector, known: Known) -> None:
        """Add a question, in place of what was known under its name. Makes room if need be."""
        ...

    async def remove(self, known: Known) -> None:
        """Forget a question."""
        ...

    def touch(self, known: Known) -> None:
        """Note that a question was of use."""
        ...

    async def learned(self, lesson: Lesson) -> None:
        """Tell others what the decision has learned here."""
        ...


class Histories:
    """The histories by answer; at most `capacity`, those unused for longest go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[bytes, History] = OrderedDict()

    def of(self, answer: bytes) -> History:
        """The history of an answer: the same object each time."""
        history = self._known.setdefault(answer, History())
        self._known.move_to_end(answer)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return history

    def put(self, known: Known) -> None:
        """Take a question's history for that of its answer."""
        self._known[known.answer] = known.history
        self.of(known.answer)

    def hear(self, lesson: Lesson) -> None:
        """Count what was found about an answer."""
        history = self.of(lesson.answer)
        if lesson.right:
            history.right += 1
        else:
            history.wrong += 1


class MemoryIndex:
    """Questions in this process, gone with it."""

    def __init__(self, dimensions: int, capacity: int) -> None:
        self._near: Neighbours[Known] = Neighbours(dimensions, capacity)
        self._capacity = capacity
        self._labels: dict[bytes, int] = {}

    async def open(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def __len__(self) -> int:
        return len(self._near)

    async def search(self, partition: bytes, vector: Vector, count: int) -> list[tuple[float, Known]]:
        """The nearest questions of this partition; those met that have expired are forgotten."""
        now = time.time()
        while True:
            found = self._near.search(partition, vector, count)
            expired = [known for _, _, known in found if known.expires <= now]
            if not expired:
                return [(similarity, known) for _, similarity, known in found]
            for known in expired:
                self.drop(known.key.digest)

    async def add(self, partition: bytes, vector: Vector, known: Known) -> None:
        """Add a question."""
        self.put(partition, vector, known)

    async def remove(self, known: Known) -> None:
        """Forget a question."""
        self.drop(known.key.digest)

    def touch(self, known: Known) -> None:
        """Those used last are forgotten last."""
        label = self._labels.get(known.key.digest)
        if label is not None:
            self._near.touch(label)

    async def learned(self, lesson: Lesson) -> None:
        """Nobody to tell."""

    def put(self, partition: bytes, vector: Vector, known: Known) -> None:
        """Add a question at once."""
        self.drop(known.key.digest)
        while len(self._near) >= self._capacity:
            self.drop(self._near.oldest().key.digest)
        self._labels[known.key.digest] = self._near.add(partition, vector, known)

    def drop(self, name: bytes) -> None:
        """Forget the question with this name at once."""
        label = self._labels.pop(name, None)
        if label is not None:
            self._near.remove(label)


def described(known: Known) -> bytes:
    """All of a question but its vectors, as JSON."""
    return orjson.dumps(
        [
            known.key.digest.hex(),
            known.key.scope.hex(),
            known.answer.hex(),
            known.expires,
            _listed(known.facts),
            None if known.context is None else _listed(known.context),
        ]
    )


def known_from(data: Any, context_vector: Vector | None, histories: Histories) -> Known | None:
    """The question that `described` these bytes; None if they are not whole."""
    try:
        digest, scope, answer, expires, facts, context = orjson.loads(data)
        named = bytes.fromhex(answer)
        key = Key(bytes.fromhex(digest), bytes.fromhex(scope))
        spoken = None if context is None else _facts(context)
        if (spoken is None) != (context_vector is None):
            return None
        return Known(key, _facts(facts), spoken, context_vector, histories.of(named), named, float(expires))
    except (ValueError, TypeError):
        return None


def _listed(facts: Facts) -> list[Any]:
    return [
        sorted(facts.words),
        facts.numbers,
        facts.negations,
        sorted(facts.names),
        sorted(facts.ways),
        sorted(facts.sides),
        facts.length,
        facts.first,
    ]


def _facts(listed: list[Any]) -> Facts:
    words, numbers, negations, names, ways, sides, length, first = listed
    return Facts(
        frozenset(words),
        tuple(numbers),
        bool(negations),
        frozenset(names),
        frozenset(ways),
        frozenset(side for side in sides if side in RIVALS),
        max(0, int(length)),
        str(first),
    )


def vector_from(data: Any, dimensions: int) -> Vector | None:
    """The unit vector in these bytes, little-endian floats of 4 bytes; None if it is none."""
    import numpy as np

    if not isinstance(data, bytes) or len(data) != 4 * dimensions:
        return None
    vector = np.frombuffer(data, dtype="<f4")
    return vector if abs(float(vector @ vector) - 1) < 0.01 else None


def taught(lesson: Lesson) -> bytes:
    """A lesson as JSON."""
    verdict = lesson.verdict
    seen = None if verdict.features is None else [round(float(value), 6) for value in verdict.features]
    return orjson.dumps([lesson.answer.hex(), lesson.right, verdict.action, verdict.confidence, seen])


def lesson_from(data: Any) -> Lesson | None:
    """The lesson that was `taught` by these bytes; None if they are not whole."""
    import numpy as np

    try:
        answer, right, action, confidence, seen = orjson.loads(data)
        if action not in ("explore", "miss") or not 0 <= confidence <= 1.01:
            return None
        features = None if seen is None else np.array(seen, dtype=np.float64)
        if features is not None and (features.ndim != 1 or np.abs(features).max(initial=0.0) > 100):
            return None
        return Lesson(bytes.fromhex(answer), bool(right), Verdict(action, 0, float(confidence), features))
    except (ValueError, TypeError):
        return None

"""Near neighbours among the questions of one partition, in memory.

A partition is what may share answers at all: its tenant scope, model, system prompt, tools and
parameters. Each has an index of its own, so a search can't meet another's vectors, and no filter
has to be right. A partition is searched exactly while it is small, which most are. What exceeds
that moves, vector by vector, into an HNSW graph (usearch, 16-bit floats), and both are searched:
no call ever waits for a graph to be built.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

T = TypeVar("T")

EXACT_UP_TO = 2048
"""Vectors of a partition that are compared one by one, in about 0.05 ms."""

CONNECTIVITY = 16
BUILD_WIDTH = 64
SEARCH_WIDTH = 64
"""The graph's links per vector, and candidates looked at on adding and searching: recall of the
nearest neighbour 0.99 or better at 100,000 clustered vectors; see `benchmarks/test_semantic.py`."""

WIDE_FROM = 100_000
WIDER = 0.6
"""Beyond so many vectors the candidates grow with the size to this power: of 250,000, 500,000 and
1,000,000 vectors 64 candidates found 0.89, 0.87 and 0.83 of the nearest; 128, 192 and 256 found 0.96, 0.97
and 0.96."""

LOOK = 4096
"""Additions after which the number of candidates is set anew."""


class Flat:
    """Exact search: all vectors in one array."""

    def __init__(self, dimensions: int) -> None:
        import numpy as np

        self._np = np
        self._vectors = np.empty((64, dimensions), dtype=np.float32)
        self._labels: list[int] = []
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, label: int) -> bool:
        return label in self._rows

    def add(self, label: int, vector: Vector) -> None:
        """Add a vector of length 1 under a new label."""
        row = len(self._labels)
        if row == len(self._vectors):
            self._vectors = self._np.concatenate([self._vectors, self._np.empty_like(self._vectors)])
        self._vectors[row] = vector
        self._labels.append(label)
        self._rows[label] = row

    def remove(self, label: int) -> None:
        """Remove a label: the last vector takes its row."""
        row = self._rows.pop(label)
        last = self._labels.pop()
        if last != label:
            self._labels[row] = last
            self._rows[last] = row
            self._vectors[row] = self._vectors[len(self._labels)]

    def search(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        """The labels nearest by cosine with their similarities, nearest first."""
        size = len(self._labels)
        # Row by row: a product of matrix and vector would wake BLAS's threads, and wait for them.
        similarities = self._np.vecdot(self._vectors[:size], vector)
        if count < size:
            rows = self._np.argpartition(similarities, size - count)[size - count :]
        else:
            rows = self._np.arange(size)
        rows = rows[self._np.argsort(-similarities[rows])]
        return [(self._labels[row], float(similarities[row])) for row in rows]

    def pop(self) -> tuple[int, Vector]:
        """Remove one vector, and return it with its label."""
        label = self._labels[0]
        vector = self._vectors[0].copy()
        self.remove(label)
        return label, vector


def require() -> Any:
    """usearch's index class. Raises ImportError, saying what to install, where a library is missing."""
    try:
        # First: onnxruntime 1.32 crashes the process when it is loaded after usearch 2.26.
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        from usearch.index import Index
    except ImportError as error:
        raise ImportError(f"cache=semantic needs the extra `semantic` of llm-pipeline ({error})") from None
    return Index


def width(size: int) -> int:
    """How many candidates a search in a graph of this size looks at."""
    return round(SEARCH_WIDTH * float(max(1.0, size / WIDE_FROM) ** WIDER))


class Hnsw:
    """Approximate search in a graph of near neighbours."""

    def __init__(self, dimensions: int) -> None:
        self._index: Any = require()(
            ndim=dimensions,
            metric="ip",
            dtype="f16",
            connectivity=CONNECTIVITY,
            expansion_add=BUILD_WIDTH,
            expansion_search=SEARCH_WIDTH,
        )

    def __len__(self) -> int:
        return len(self._index)

    def add(self, label: int, vector: Vector) -> None:
        """Add a vector of length 1 under a new label."""
        self._index.add(label, vector, threads=1)
        if len(self._index) % LOOK == 0:
            self._index.expansion_search = width(len(self._index))

    def remove(self, label: int) -> None:
        """Remove a label."""
        self._index.remove(label)

    def search(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        """The labels nearest by cosine with their similarities, nearest first."""
        found = self._index.search(vector, count, threads=1)
        return [
            (int(label), 1 - float(distance))
            for label, distance in zip(found.keys, found.distances, strict=True)
        ]


class Partition:
    """The vectors of one partition: some exactly, the rest in a graph."""

    def __init__(self, dimensions: int) -> None:
        self._flat = Flat(dimensions)
        self._graph: Hnsw | None = None
        self._dimensions = dimensions

    def __len__(self) -> int:
        return len(self._flat) + (len(self._graph) if self._graph is not None else 0)

    def add(self, label: int, vector: Vector) -> None:
        """Add a vector of length 1 under a new label."""
        if len(self._flat) >= EXACT_UP_TO:
            if self._graph is None:
                self._graph = Hnsw(self._dimensions)
            self._graph.add(*self._flat.pop())
        self._flat.add(label, vector)

    def remove(self, label: int) -> None:
        """Remove a label."""
        if label in self._flat:
            self._flat.remove(label)
        elif self._graph is not None:
            self._graph.remove(label)

    def search(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        """The labels nearest by cosine with their similarities, nearest first."""
        found = self._flat.search(vector, count)
        if self._graph is not None and len(self._graph):
            found += self._graph.search(vector, count)
            found.sort(key=lambda pair: -pair[1])
        return found[:count]


class Neighbours(Generic[T]):
    """Items by vector, kept apart by partition; at most `capacity`, the oldest unused go first.

    Not for several threads at once.
    """

    def __init__(self, dimensions: int, capacity: int) -> None:
        self._dimensions = dimensions
        self._capacity = capacity
        self._partitions: dict[bytes, Partition] = {}
        self._items: OrderedDict[int, tuple[bytes, T]] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, partition: bytes, vector: Vector, item: T) -> int:
        """Add an item; its label is returned. Makes room if need be."""
        while len(self._items) >= self._capacity:
            self.remove(next(iter(self._items)))
        index = self._partitions.get(partition)
        if index is None:
            index = self._partitions[partition] = Partition(self._dimensions)
        label = self._next
        self._next += 1
        index.add(label, vector)
        self._items[label] = (partition, item)
        return label

    def search(self, partition: bytes, vector: Vector, count: int) -> list[tuple[int, float, T]]:
        """The nearest items of this partition and no other: label, cosine and item, nearest first."""
        index = self._partitions.get(partition)
        if index is None:
            return []
        return [
            (label, similarity, self._items[label][1]) for label, similarity in index.search(vector, count)
        ]

    def touch(self, label: int) -> None:
        """Note that an item was used."""
        if label in self._items:
            self._items.move_to_end(label)

    def oldest(self) -> T:
        """The item that was added or used longest ago. Raises StopIteration if there is none."""
        return next(iter(self._items.values()))[1]

    def remove(self, label: int) -> None:
        """Forget an item."""
        found = self._items.pop(label, None)
        if found is None:
            return
        index = self._partitions[found[0]]
        index.remove(label)
        if not len(index):
            del self._partitions[found[0]]

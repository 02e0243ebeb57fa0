"""Sources read into batches of documents; what can't be read is noted, and stops nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.sources import read
from pipeline_plugins.read.reader import File, Readers

BATCH = 64
BATCH_CHARACTERS = 256 * 1024
"""Documents and characters that are cut and embedded at once."""


@dataclass(slots=True, frozen=True)
class Batch:
    """Documents that are cut at once, and the bytes of files that are behind them."""

    documents: list[Document]
    bytes: float


@dataclass(slots=True, frozen=True)
class Fault:
    """What could not be read, and why."""

    what: str
    reason: str


class Seen:
    """The ids that came in a run. There may be millions of them, so each takes 16 bytes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __contains__(self, id: str) -> bool:
        return _digest(id) in self._digests

    def add(self, id: str) -> bool:
        """Whether the id comes for the first time."""
        before = len(self._digests)
        self._digests.add(_digest(id))
        return len(self._digests) > before


class Reading:
    """What is read, and what became of it.

    faults  what could not be read so far
    unread  files that could not be read to their ends, and folders that could not be listed
    rows    files that were, and hold several documents, or none
    seen    ids of the documents
    """

    def __init__(self, readers: Readers, *, private: bool) -> None:
        self.faults: list[Fault] = []
        self.unread: set[str] = set()
        self.rows: list[str] = []
        self.seen = Seen()
        self._readers = readers
        self._private = private

    def batches(self, files: Iterator[File]) -> Iterator[Batch]:
        """Documents to be cut at once. Blocks."""
        batch: list[Document] = []
        characters = 0
        amount = 0.0
        for document, part in self._all(files):
            amount += part
            if document is not None:
                batch.append(document)
                characters += len(document.text)
            if len(batch) >= BATCH or characters >= BATCH_CHARACTERS:
                yield Batch(batch, amount)
                batch, characters, amount = [], 0, 0.0
        if batch or amount:
            yield Batch(batch, amount)

    def missed(self, file: str) -> bool:
        """Whether a file was not read to its end, or is below a folder that was not listed."""
        return any(part in self.unread for part in (file, *map(str, PurePosixPath(file).parents)))

    def _all(self, files: Iterator[File]) -> Iterator[tuple[Document | None, float]]:
        """Documents, each with the bytes of its file that are behind it; None for the rest of a file."""
        for file in files:
            left = float(file.size)
            whole: bool | None = None  # whether its only document is the file itself
            try:
                for document in read(file, self._readers, private=self._private):
                    part = min(left, len(document.text))
                    left -= part
                    whole = whole is None and document.id == file.id
                    yield self._first(document, file), part
                if not whole:
                    self.rows.append(file.id)
            except (OSError, ValueError) as error:
                self.unread.add(file.id)
                self.faults.append(Fault(file.id, getattr(error, "strerror", None) or str(error)))
            yield None, left

    def _first(self, document: Document, file: File) -> Document | None:
        """A document, unless its id came before in this run: that is a fault."""
        if not self.seen.add(document.id):
            self.faults.append(twice(document.id, file.id))
            return None
        return replace(document, file=file.id)


def twice(id: str, file: str) -> Fault:
    """That a document's id came before."""
    return Fault(file, f"the id `{id[:200]}` came before in this run")


def _digest(id: str) -> bytes:
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()

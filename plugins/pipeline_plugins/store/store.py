"""What a store of collections is: chunks of documents, apart by owner, found by meaning and by words."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from pipeline.errors import InvalidRequest, NotFound, Overloaded
from pipeline_plugins.rag.chunk import Chunk, Passage
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.ranking import WORDS

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""What a collection may be called."""


class NoSuchCollection(NotFound):
    """The owner has no collection of this name (404)."""

    code = "collection_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no collection `{name[:64]}`.", param="collection")


class StoreFails(Overloaded):
    """What the store stands on fails (503). `reason` is for the operator, not for clients."""

    code = "documents_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__("The store of documents does not answer.", headers=((b"retry-after", b"1"),))
        self.reason = reason


class NoSuchVersion(NotFound):
    """The collection has no such version, or has it no more (404)."""

    code = "version_not_found"

    def __init__(self, name: str, version: int) -> None:
        super().__init__(f"The collection `{name}` has no version {version}.", param="version")


def check_name(name: str) -> None:
    """Refuse what can't be the name of a collection. Raises `InvalidRequest`."""
    if re.fullmatch(NAME, name) is None:
        raise InvalidRequest(
            f"`{name[:64]}` can't be the name of a collection: up to 64 letters, digits, `_` and `-`.",
            param="collection",
            code="invalid_value",
        )


def other_embedding(name: str, kept: str, own: str) -> InvalidRequest:
    """What to raise where vectors of the model `own` meet a collection of vectors of `kept`."""
    return InvalidRequest(
        f"The collection `{name}` was made with the embedding model `{kept}`, and this server has `{own}`: "
        "ingest its documents into a new one.",
        param="collection",
        code="embedding_mismatch",
    )


@dataclass(slots=True, frozen=True)
class Collection:
    """What is known of a collection. `version` grows with every commit; `created` is a Unix time."""

    name: str
    documents: int
    chunks: int
    version: int
    embedding: str
    created: int = 0
    bytes: int = 0

    def shown(self) -> dict[str, Any]:
        """As clients read it."""
        return {"object": "rag.collection", **asdict(self)}


@dataclass(slots=True, frozen=True)
class Version:
    """A commit to a collection."""

    version: int
    at: datetime

    def shown(self) -> dict[str, Any]:
        """As clients read it."""
        return {"version": self.version, "at": self.at.astimezone().isoformat(timespec="seconds")}


@dataclass(slots=True, frozen=True)
class Search:
    """What to look for: by `text` alone, by `vector` alone, or by both, fused.

    k       passages, at most
    text    the words of the question; None: no search by words
    vector  the unit vector of the question; None: no search by meaning
    least   similarity that a passage needs; without a vector there is none
    words   how much the search by words weighs where there are both, from 0 to 1
    """

    k: int
    text: str | None = None
    vector: Vector | None = None
    filter: Filter | None = None
    least: float = -1.0
    words: float = WORDS


class Store(Protocol):
    """The contract of a plugin `store.NAME`.

    Each owner's collections are apart: no name and no filter leads to another owner's. A write is one
    commit: searches see all of it or nothing, and a kill at any moment leaves the commit before. Several
    processes may use one store. All raise `NoSuchCollection`, but for `names`, `create` and `version`,
    and `StoreFails` where what they stand on fails; those by which documents come in or are searched
    raise `InvalidRequest` for a collection of another model.
    """

    Config: ClassVar[type[BaseModel]]

    async def open(self, embedding: str | None) -> None:
        """Get ready for vectors of this model; None: none are put in or compared. Raises `ConfigError`."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...

    async def names(self, owner: str) -> list[str]:
        """The collections of an owner, in alphabetical order."""
        ...

    async def describe(self, owner: str, name: str) -> Collection:
        """What is known of a collection."""
        ...

    async def create(self, owner: str, name: str, dimensions: int) -> None:
        """Make a collection for vectors of so many numbers, unless there is one.

        Raises `InvalidRequest` for a name that can't be one, or where there is one of another model.
        """
        ...

    async def drop(self, owner: str, name: str) -> None:
        """Delete a collection with all of its versions."""
        ...

    async def digests(self, owner: str, name: str, documents: Sequence[str]) -> dict[str, str]:
        """The digest of each of these documents that the collection has."""
        ...

    def all_digests(self, owner: str, name: str) -> AsyncIterator[list[tuple[str, str]]]:
        """All documents and their digests, some at a time."""
        ...

    async def replace(self, owner: str, name: str, documents: Mapping[str, Sequence[Chunk]]) -> None:
        """Put these chunks in the place of all that the documents had, in one commit."""
        ...

    async def delete(self, owner: str, name: str, documents: Sequence[str]) -> int:
        """Delete documents; how many there were."""
        ...

    def read_from(self, owner: str, name: str, root: str) -> AsyncIterator[list[tuple[str, str]]]:
        """The documents that were read from this file or from files below this folder: ids, and files."""
        ...

    async def search(self, owner: str, name: str, search: Search) -> list[Passage]:
        """The passages that fit best, best first, without repeats of a text."""
        ...

    async def at(self, owner: str, name: str, places: Mapping[str, AbstractSet[int]]) -> list[Passage]:
        """The chunks of documents that have these ordinals, document by document, in order."""
        ...

    async def version(self, owner: str, name: str) -> str:
        """What changes with every commit to a collection, and is never the same again.

        Empty where there is no such collection.
        """
        ...

    async def versions(self, owner: str, name: str) -> list[Version]:
        """The versions that can be gone back to, the latest first."""
        ...

    async def restore(self, owner: str, name: str, version: int) -> None:
        """Make a collection what it was; that is a new version. Raises `NoSuchVersion`."""
        ...

    async def tidy(self, owner: str, name: str, keep: timedelta) -> None:
        """Put what was written in order for searches, and forget versions older than `keep`.

        Those of the last few minutes stay, for searches under way.
        """
        ...

    async def rebuild(self, owner: str, name: str) -> None:
        """Build the indexes of a collection anew."""
        ...


async def all_of(store: Store, owner: str) -> list[Collection]:
    """What is known of an owner's collections, in alphabetical order."""
    found = []
    for name in await store.names(owner):
        with suppress(NoSuchCollection):  # it is being made, or was deleted just now
            found.append(await store.describe(owner, name))
    return found

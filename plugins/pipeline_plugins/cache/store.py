"""What every store of a cache keeps, and the contract of a store.

An entry belongs to one key, and says so: a store gives out an entry only if its bytes are
whole and it names the very key that was asked for. Anything else is a miss.

Entries are invalidated by label: `all`, `owner:NAME`, `model:NAME`, `tag:NAME`. A store
keeps one stamp for each label that was ever invalidated, and an entry has the stamps of its
labels at the time when its call began. Invalidating a label changes its stamp, so that its
entries are misses from then on, those that are still being made included.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import orjson

from pipeline import Usage

Form = Literal["json", "sse", "sse+usage", "f4", "f8"]
"""What an entry's content is: a JSON body; server-sent events, with usage in them or not; a
vector of little-endian floats of 4 or 8 bytes."""

MAX_TTL = 30 * 86_400
"""Seconds that an entry may be kept at most. Stores rely on it to forget old stamps."""

SKEW = 300
"""Seconds by which the clocks of processes that share a store may differ."""

_MAGIC = b"LPC2"
_HASH = 16
_HEAD = len(_MAGIC) + _HASH + 4


class StoreDown(Exception):
    """The store can't be reached now; go on without it."""


@dataclass(slots=True, frozen=True)
class Key:
    """What an entry is found by.

    digest  32 bytes over all that changes the answer, the scope included
    scope   16 bytes over who may share the answer
    labels  what entries of this key may be invalidated by, besides their tags
    """

    digest: bytes
    scope: bytes
    labels: tuple[str, ...] = ("all",)


@dataclass(slots=True)
class Entry:
    """An answer as it is kept; not to be changed from then on.

    content  the bytes, in the form that `form` names
    model    the model that answered, where it is known
    usage    tokens of the original call; of one text for a vector
    usd      what the original call cost, so what a hit saves
    created  Unix time at which the answer was complete
    expires  Unix time from which it is no longer given
    labels   what it is invalidated by
    stamps   the labels' stamps when the call began, in their order
    status   HTTP status; other than 200 for a refusal that is remembered
    sources  what the answer was made of, with the versions of that: see `cache.sources`
    """

    form: Form
    content: bytes
    created: float
    expires: float
    model: str | None = None
    usage: Usage | None = None
    usd: float = 0.0
    labels: tuple[str, ...] = ("all",)
    stamps: tuple[str, ...] = ("",)
    status: int = 200
    sources: tuple[tuple[str, str], ...] = ()

    def age(self) -> float:
        """Seconds since the answer was complete."""
        return max(0.0, time.time() - self.created)

    def fresh(self) -> bool:
        """Whether it may still be given, by the wall clock."""
        return self.created - SKEW <= time.time() < self.expires


@dataclass(slots=True)
class Stats:
    """What a store counts. `entries` and `bytes` are as of now, the others since the start."""

    entries: int = 0
    bytes: int = 0
    stores: int = 0
    evictions: int = 0
    errors: int = field(default=0)


class Store(Protocol):
    """Keeps entries within bounds. All methods may raise `StoreDown`, and nothing else.

    `get_many` and `put_many` are for the texts of a batch; one entry is a batch of one.
    """

    stats: Stats

    async def open(self) -> None:
        """Make ready. Raises OSError or ValueError if the store can never work."""
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...

    async def get(self, key: Key) -> Entry | None:
        """The entry of a key: whole, fresh, not invalidated. None otherwise."""
        ...

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """`get` for each of the keys."""
        ...

    async def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry, in place of an earlier one."""
        ...

    async def put_many(self, entries: Mapping[Key, Entry]) -> None:
        """`put` for each of the entries."""
        ...

    async def delete(self, key: Key) -> None:
        """Forget one entry."""
        ...

    async def stamps(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels' stamps now: to be asked for before an answer is made, and put in its entry."""
        ...

    async def invalidate(self, label: str) -> None:
        """Make every entry with this label a miss."""
        ...


def pack(key: Key, entry: Entry) -> bytes:
    """An entry as bytes that name their key and can be checked."""
    usage = entry.usage
    head = orjson.dumps(
        [
            key.digest.hex(),
            key.scope.hex(),
            entry.form,
            entry.created,
            entry.expires,
            entry.model,
            None if usage is None else [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens],
            entry.usd,
            entry.labels,
            entry.stamps,
            entry.status,
            entry.sources,
        ]
    )
    rest = b"".join((len(head).to_bytes(4, "little"), head, entry.content))
    return b"".join((_MAGIC, _checksum(rest), rest))


def unpack(key: Key, data: bytes) -> Entry | None:
    """The entry in these bytes; None if they are not whole, or another key's."""
    if len(data) < _HEAD or data[:4] != _MAGIC:
        return None
    rest = memoryview(data)[4 + _HASH :]
    if _checksum(rest) != data[4 : 4 + _HASH]:
        return None
    length = int.from_bytes(rest[:4], "little")
    try:
        head = orjson.loads(rest[4 : 4 + length])
        digest, scope, form, created, expires, model, usage, usd, labels, stamps, status, sources = head
    except ValueError:
        return None
    if digest != key.digest.hex() or scope != key.scope.hex():
        return None
    return Entry(
        form=form,
        content=bytes(rest[4 + length :]),
        created=created,
        expires=expires,
        model=model,
        usage=None if usage is None else Usage(*usage),
        usd=usd,
        labels=tuple(labels),
        stamps=tuple(stamps),
        status=status,
        sources=tuple((source, version) for source, version in sources),
    )


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()


def labelled(entry: Entry, labels: Iterable[str], stamps: Iterable[str], sources: Mapping[str, str]) -> Entry:
    """The same entry, which is not kept yet, with these labels and their stamps, and what it was made of."""
    entry.labels, entry.stamps, entry.sources = tuple(labels), tuple(stamps), tuple(sources.items())
    return entry

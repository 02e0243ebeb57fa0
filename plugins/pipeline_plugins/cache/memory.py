"""Entries in the process's own memory: bounded by bytes, the least recently used go first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from secrets import token_hex

from pipeline_plugins.cache.store import Entry, Key, Stats

OVERHEAD = 1024
"""Bytes that an entry takes besides its content: measured at 940 with labels of its own, rounded up."""


class MemoryStore:
    """A store that lives and ends with one process. All operations are O(1) and never wait."""

    def __init__(self, max_bytes: int) -> None:
        self.stats = Stats()
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[bytes, Entry, float]] = OrderedDict()
        self._stamps: dict[str, str] = {}

    async def open(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.stats.bytes = self.stats.entries = 0

    async def get(self, key: Key) -> Entry | None:
        """The entry of a key, if it is fresh and not invalidated."""
        found = self._entries.get(key.digest)
        if found is None:
            return None
        scope, entry, until = found
        if scope != key.scope:
            return None
        if time.monotonic() >= until or (self._stamps and not self._valid(entry)):
            self._drop(key.digest)
            return None
        self._entries.move_to_end(key.digest)
        return entry

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """`get` for each of the keys."""
        return [await self.get(key) for key in keys]

    async def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry; others go to make room. One larger than the store is not kept."""
        self._drop(key.digest)
        size = len(entry.content) + OVERHEAD
        if size > self._max_bytes:
            return
        # The monotonic clock from here on: a step of the wall clock must not revive or end entries.
        until = time.monotonic() + (entry.expires - time.time())
        self._entries[key.digest] = (key.scope, entry, until)
        self.stats.bytes += size
        self.stats.entries += 1
        self.stats.stores += 1
        while self.stats.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self.stats.evictions += 1

    async def put_many(self, entries: Mapping[Key, Entry]) -> None:
        """`put` for each of the entries."""
        for key, entry in entries.items():
            await self.put(key, entry)

    async def delete(self, key: Key) -> None:
        """Forget one entry."""
        self._drop(key.digest)

    async def stamps(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels' stamps now."""
        return tuple(self._stamps.get(label, "") for label in labels)

    async def invalidate(self, label: str) -> None:
        """Make every entry with this label a miss."""
        self._stamps[label] = token_hex(8)

    def _valid(self, entry: Entry) -> bool:
        stamps = self._stamps
        return all(
            stamps.get(label, "") == stamp for label, stamp in zip(entry.labels, entry.stamps, strict=True)
        )

    def _drop(self, digest: bytes) -> None:
        found = self._entries.pop(digest, None)
        if found is not None:
            self.stats.bytes -= len(found[1].content) + OVERHEAD
            self.stats.entries -= 1

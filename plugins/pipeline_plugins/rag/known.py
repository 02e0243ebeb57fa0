"""Vectors of texts that were embedded before, in a store such as caches have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BeforeValidator

from pipeline import Record
from pipeline_plugins.cache.embeddings import EmbeddingCache, Vector
from pipeline_plugins.cache.store import Key, StoreDown
from pipeline_plugins.cache.stores import StoreConfig, make_store
from pipeline_plugins.rag.embedder import Embedder

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector as Rows

EmbedCache = Annotated[
    StoreConfig | None, BeforeValidator(lambda given: {"store": given} if isinstance(given, str) else given)
]
"""A store by its name alone, or with what it is told; None for none."""


class KnownVectors:
    """Asks the embedder only for texts that are new to their owner; each owner's are apart.

    `embedded_by` is all that decides a text's vector besides the text. A store that is down
    is done without.
    """

    def __init__(self, config: StoreConfig, embedder: Embedder, embedded_by: Any) -> None:
        self._embedder = embedder
        self._by = orjson.dumps(embedded_by, option=orjson.OPT_SORT_KEYS)
        self._store = make_store(config)
        self._cache = EmbeddingCache(self._store)
        self._ttl = config.ttl

    async def open(self) -> None:
        """Get the store ready. Raises OSError or ValueError if it can never work."""
        await self._store.open()

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()

    async def embed(
        self, owner: str, texts: Sequence[str], *, patient: bool = False, record: Record | None = None
    ) -> Rows:
        """A unit vector for each text, as rows; see `Embedder.embed`. Raises what the embedder does."""
        import numpy as np

        async def ask(positions: list[int]) -> list[Vector]:
            rows = await self._embedder.embed([texts[at] for at in positions], patient=patient, record=record)
            return [Vector("f4", row.astype("<f4").tobytes(), 0) for row in rows]

        keys = self._cache.keys(self._key(owner), texts)
        try:
            known = await self._cache.known(keys)
        except StoreDown:
            known = [None] * len(keys)
        found = await self._cache.complete(keys, known, ask, ttl=self._ttl)
        return np.stack([np.frombuffer(vector.single(), dtype="<f4") for vector in found])

    def _key(self, owner: str) -> Key:
        scope = hashlib.blake2b(owner.encode(), digest_size=16, person=b"rag-embed").digest()
        digest = hashlib.blake2b(scope + self._by, digest_size=32, person=b"rag-embed").digest()
        return Key(digest, scope, ("all", f"owner:{owner}"))

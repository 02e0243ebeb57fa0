"""Embeddings, known text by text: a batch asks the model only for the texts that are new.

`EmbeddingCache` is for whoever embeds: the stage for `/v1/embeddings`, and ingestion.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from pipeline import Call, Reply, Usage
from pipeline_plugins.cache.key import PERSON, canonical
from pipeline_plugins.cache.store import Entry, Key, Store, StoreDown

Text = str | list[int]
"""An input of an embedding: text or token ids."""


@dataclass(slots=True, frozen=True)
class Vector:
    """One text's embedding: little-endian floats of 4 or 8 bytes, and the text's tokens.

    `f8` is for numbers that a model server sent as JSON and that 4 bytes can't hold.
    """

    form: Literal["f4", "f8"]
    content: bytes
    tokens: int
    model: str | None = None
    usd: float = 0.0

    def numbers(self) -> list[float]:
        """The vector as numbers."""
        return array("f" if self.form == "f4" else "d", self.content).tolist()

    def single(self) -> bytes:
        """The vector in single precision."""
        return self.content if self.form == "f4" else array("f", self.numbers()).tobytes()


AskVectors = Callable[[list[int]], Awaitable[list[Vector]]]
"""Embeds the inputs at these positions, in their order."""


class EmbeddingCache:
    """Vectors in a store, one entry for each text.

    `key` must come from everything but the text that changes a vector: the model, its
    dimensions, the tenant's scope.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @staticmethod
    def keys(key: Key, texts: Sequence[Text]) -> list[Key]:
        """The key of each text, under the key of what they share."""
        return [
            Key(
                hashlib.blake2b(key.digest + canonical(text), digest_size=32, person=PERSON).digest(),
                key.scope,
                key.labels,
            )
            for text in texts
        ]

    async def known(self, keys: Sequence[Key], max_age: float | None = None) -> list[Vector | None]:
        """The vectors that are known. Raises `StoreDown`."""
        found = await self._store.get_many(keys)
        return [
            None if entry is None or (max_age is not None and entry.age() > max_age) else _vector(entry)
            for entry in found
        ]

    async def complete(
        self,
        keys: Sequence[Key],
        known: Sequence[Vector | None],
        ask: AskVectors,
        *,
        ttl: float,
        tags: Sequence[str] = (),
    ) -> list[Vector]:
        """All vectors, those that are not `known` from `ask`, which gets each text once, and kept.

        Raises what `ask` raises; a store that is down keeps nothing.
        """
        first: dict[bytes, int] = {}
        for position, vector in enumerate(known):
            if vector is None:
                first.setdefault(keys[position].digest, position)
        if not first:
            return [vector for vector in known if vector is not None]
        labels = (*keys[0].labels, *(f"tag:{tag}" for tag in tags))
        stamps: tuple[str, ...] | None = None
        with contextlib.suppress(StoreDown):
            stamps = await self._store.stamps(labels)
        positions = list(first.values())
        made = dict(zip(first, await ask(positions), strict=True))
        if stamps is not None:
            entries = {keys[at]: _entry(made[digest], ttl, labels, stamps) for digest, at in first.items()}
            with contextlib.suppress(StoreDown):
                await self._store.put_many(entries)
        return [vector if vector is not None else made[keys[at].digest] for at, vector in enumerate(known)]


def _entry(vector: Vector, ttl: float, labels: tuple[str, ...], stamps: tuple[str, ...]) -> Entry:
    now = time.time()
    return Entry(
        form=vector.form,
        content=vector.content,
        created=now,
        expires=now + ttl,
        model=vector.model,
        usage=Usage(vector.tokens),
        usd=vector.usd,
        labels=labels,
        stamps=stamps,
    )


def _vector(entry: Entry) -> Vector | None:
    if entry.form == "f4" or entry.form == "f8":
        tokens = 0 if entry.usage is None else entry.usage.prompt_tokens
        return Vector(entry.form, entry.content, tokens, entry.model, entry.usd)
    return None


def texts_of(given: Any) -> list[Text]:
    """The inputs of a request, one or many, text or tokens, as a list."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return list(given)


def read_vectors(reply: Reply, texts: Sequence[Text], usd: float = 0.0) -> list[Vector] | None:
    """The vectors in a model's reply, in the order of the texts; None if they are not all there.

    Tokens and cost are counted for the whole reply; each text gets its share by its length.
    """
    if reply.body is None or reply.status != 200:
        return None
    try:
        body = reply.json
        data = sorted(body["data"], key=lambda item: item["index"])
        if [item["index"] for item in data] != list(range(len(texts))):
            return None
        packed = [_pack(item["embedding"]) for item in data]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    total = 0 if reply.usage is None else reply.usage.prompt_tokens
    sizes = [len(text) or 1 for text in texts]
    model = body.get("model")
    vectors, spent, length = [], 0, 0
    for size, (form, content) in zip(sizes, packed, strict=True):
        length += size
        upto = total * length // sum(sizes)
        vectors.append(
            Vector(
                form,
                content,
                upto - spent,
                model if isinstance(model, str) else None,
                usd * size / sum(sizes),
            )
        )
        spent = upto
    return vectors


def _pack(value: Any) -> tuple[Literal["f4", "f8"], bytes]:
    if isinstance(value, str):
        try:
            content = base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
        if not content or len(content) % 4:
            raise ValueError("not single-precision numbers")
        return "f4", content
    if not value:
        raise ValueError("an empty vector")
    double = array("d", value)
    single = array("f", value)
    return ("f4", single.tobytes()) if array("d", single) == double else ("f8", double.tobytes())


def reply_with(vectors: Sequence[Vector], call: Call) -> Reply:
    """An embeddings response with these vectors, in the encoding that the call asks for."""
    coded = call.body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.single()).decode() if coded else vector.numbers(),
        }
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(vector.tokens for vector in vectors)
    model = next((vector.model for vector in vectors if vector.model), call.model)
    body = {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply(body=orjson.dumps(body), usage=Usage(tokens), model=model)

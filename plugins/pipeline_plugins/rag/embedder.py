"""Texts to unit vectors, by any plugin `infer.NAME` that serves embeddings."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from pipeline import Call, Model, Record, Usage
from pipeline.errors import (
    APIError,
    ContextTooLong,
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    UpstreamFailed,
)
from pipeline.price import Charge, Price, charge
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.choice import Choice, below, make
from pipeline_plugins.tokens import of_text

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

PASSING = (DeadlineExceeded, Overloaded, RateLimited, UpstreamFailed)
"""Failures that may be over when the same is asked again."""

TRIES = 6
"""How often a patient caller asks; between the first and the last there are about 31 s."""

WIDEST = 64
"""Characters that count as a token at least: a word of any length is one to WordPiece, if it is not known."""


class Refused(UpstreamFailed):
    """The model refuses what it is asked, and will refuse it again (502)."""


log = structlog.get_logger("pipeline.rag")


class Embedder:
    """The model that a collection's vectors are of.

    It is a stage of its own, opened and closed with the documents. `batch` is how many texts
    go into one call, `timeout` how many seconds that may take. `price` is the model's, once it is
    known: what is embedded on the way of a client's call is charged to that.
    """

    def __init__(self, choice: Choice, *, batch: int, timeout: float) -> None:
        self._stage = make("infer", choice, "embed", operations=["embedding"])
        self._batch = batch
        self._timeout = timeout
        self._frame = 0
        self._counter: Callable[[Call], int] | None = None
        configured = getattr(self._stage.config, "model", None)
        self._model: str | None = configured if isinstance(configured, str) else None
        self._dimensions = 0
        self.price: Price | None = None
        self.max_tokens: int | None = None

    async def open(self) -> None:
        """Load the model, or get ready to connect. Raises `ConfigError` for one that embeds nothing."""
        if (opening := getattr(self._stage, "open", None)) is not None:
            with below("embed"):
                await opening()
        models = [model for model in self._stage.models if "embedding" in model.operations]
        if not models:
            raise ConfigError([Problem("embed", "this plugin serves no embeddings, as it is configured.")])
        model: Model = models[0]
        self._model = self._model or model.id or "default"
        self._counter = model.count
        self.max_tokens = model.context_window
        self._frame = self.count(["a"])[0] - 1 if self._counter is not None else 0

    async def close(self) -> None:
        """Free it."""
        if (closing := getattr(self._stage, "close", None)) is not None:
            await closing()

    @property
    def model(self) -> str:
        """What it is called in the collections that are made with it."""
        if self._model is None:
            raise RuntimeError("the embedder is not open")
        return self._model

    async def dimensions(self) -> int:
        """How many numbers a vector has. Raises what `embed` does."""
        if not self._dimensions:
            await self.embed(["a"])
        return self._dimensions

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, by the model's own tokenizer where it has one at hand. Blocks."""
        if self._counter is None:
            return [of_text(text) for text in texts]
        return [self._count(text) if text else 0 for text in texts]

    def _count(self, text: str) -> int:
        if self._counter is None:
            return of_text(text)
        try:
            call = Call(id="", operation="embedding", body={"input": [text]}, deadline=0, received=0)
            return max(1, self._counter(call) - self._frame, len(text) // WIDEST)
        except ContextTooLong:
            return sys.maxsize

    async def embed(
        self, texts: Sequence[str], *, patient: bool = False, record: Record | None = None
    ) -> Vector:
        """A unit vector for each text, as rows; a text that the model can't read whole is cut off.

        With `patient` what may pass is tried again; what it costs goes into `record`. Raises what the
        model does, and `UpstreamFailed` for an answer that holds no vectors.
        """
        import numpy as np

        found = []
        for start in range(0, len(texts), self._batch):
            part = texts[start : start + self._batch]
            found.append(await (self._patiently if patient else self._fitting)(part, record))
        sizes = {self._dimensions or found[0].shape[1], *(part.shape[1] for part in found)}
        if len(sizes) > 1:
            told = " and ".join(map(str, sorted(sizes)))
            raise UpstreamFailed(f"The embedding model answers with vectors of {told} numbers by turns.")
        vectors = np.concatenate(found)
        self._dimensions = vectors.shape[1]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(lengths == 0, 1, lengths)
        return vectors

    async def _patiently(self, texts: Sequence[str], record: Record | None) -> Vector:
        for attempt in range(TRIES - 1):
            try:
                return await self._fitting(texts, record)
            except Refused:
                raise
            except PASSING as error:
                log.warning("embedding is tried again", seconds=2**attempt, reason=error.message[:200])
                await asyncio.sleep(2**attempt)
        return await self._fitting(texts, record)

    async def _fitting(self, texts: Sequence[str], record: Record | None) -> Vector:
        """Embed; where one of the texts is too long, each alone, and that one's first half."""
        import numpy as np

        try:
            return await self._ask(texts, record)
        except ContextTooLong:
            if len(texts) > 1:
                return np.concatenate([await self._fitting([text], record) for text in texts])
            if len(texts[0]) < 2:
                raise
            return await self._fitting([texts[0][: len(texts[0]) // 2]], record)

    async def _ask(self, texts: Sequence[str], record: Record | None) -> Vector:
        call = Call(
            id=f"emb_{os.urandom(12).hex()}",
            operation="embedding",
            body={"model": "default", "input": list(texts), "encoding_format": "base64"},
            deadline=asyncio.get_running_loop().time() + self._timeout,
            received=perf_counter(),
        )
        reply = await self._stage(call)
        if reply.status != 200:
            raise _refused(reply.status, reply.body or b"")
        if record is not None and self.price is not None:
            seconds, usage = perf_counter() - call.received, reply.usage
            counted = usage or Usage(sum(map(of_text, texts)))
            usd = self.price.cost(counted, seconds)
            charge(record, Charge("rag.embed", self.model, counted, usd, estimated=usage is None, aside=True))
        return _vectors(reply.body or b"", len(texts))


def _refused(status: int, body: bytes) -> APIError:
    try:
        told = orjson.loads(body)["error"]
        message, code = str(told["message"])[:500], told.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code = "", None
    if code == ContextTooLong.code or (status == 413):
        return ContextTooLong(message)
    for_good = 400 <= status < 500 and status != 408
    kind = RateLimited if status == 429 else Refused if for_good else UpstreamFailed
    return kind(f"The embedding model refuses with status {status}: {message}")


def _vectors(body: bytes, count: int) -> Vector:
    """The rows of a reply, in whichever form they came."""
    import numpy as np

    try:
        data = sorted(orjson.loads(body)["data"], key=lambda one: one["index"])
        rows = [_row(one["embedding"]) for one in data]
        found = np.stack(rows)
        if len(rows) == count and np.isfinite(found).all():
            return found
    except (ValueError, LookupError, TypeError):
        pass
    raise UpstreamFailed("The embedding model did not answer with a vector for each text.")


def _row(given: Any) -> Any:
    import numpy as np

    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
    return np.asarray(given, dtype=np.float32)

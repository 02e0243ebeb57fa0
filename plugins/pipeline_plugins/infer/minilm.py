"""`infer=minilm`: embeddings by all-MiniLM-L6-v2, run by onnxruntime on the CPU or a GPU."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply, Usage
from pipeline.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded
from pipeline.progress import track
from pipeline_plugins.infer.minilm_device import Device
from pipeline_plugins.infer.minilm_embedder import PACKAGED, Batches, Embedder, TooLong, cores

__all__ = ["Embedder", "MiniLM", "TooLong"]

MAX_INPUTS = 2048
INLINE_CHARACTERS = 2000
INLINE_ROWS = 64
"""Up to so much is tokenized and put together on the event loop, in half a millisecond each."""

R = TypeVar("R")


class MiniLM:
    """Embeds texts with a MiniLM model: 384 numbers each, a unit vector.

    Calls share the encoder in passes of at most 512 tokens, so a large one does not hold
    up a small one for long, and small ones are batched while they wait.
    """

    class Config(BaseModel):
        """Which model, and how it runs."""

        model_config = ConfigDict(extra="forbid")

        model: str = Field(
            PACKAGED,
            min_length=1,
            max_length=1024,
            description="A folder with `model.safetensors`, `package:NAME`, or a hub id `org/name`.",
        )
        name: str = Field(
            "all-MiniLM-L6-v2", min_length=1, max_length=256, description="Name it is served under."
        )
        aliases: list[str] = Field(default_factory=list, description="Further names to answer to.")
        max_tokens: int | None = Field(
            None, ge=3, le=65_536, description="Most tokens of one input; null: what the model was made for."
        )
        truncate: bool = Field(False, description="Cut longer inputs off instead of refusing them.")
        passes: int | None = Field(
            None,
            ge=1,
            le=256,
            description="Passes at the same time; null: the cores of this process, 2 on a GPU.",
        )
        threads: int = Field(1, ge=1, le=256, description="Cores for each pass.")
        device: Device = Field(
            "auto", description="`cpu`; `cuda`, which needs onnxruntime-gpu; or the GPU where there is one."
        )
        queue: int = Field(16_384, ge=1, le=10_000_000, description="Inputs that may wait at a time.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.models = (
            Model(
                id=config.name,
                operations=frozenset({"embedding"}),
                aliases=tuple(config.aliases),
                context_window=config.max_tokens,
                owned_by="minilm",
                count=self._count,
            ),
        )
        self._names = {config.name, *config.aliases, *DEFAULT_NAMES}
        self._executor: ThreadPoolExecutor | None = None
        self._embedder: Embedder | None = None
        self._batches: Batches | None = None
        self._waiting = 0

    async def open(self) -> None:
        """Load the model. Raises `ConfigError` when it, or a library, is not there."""
        threads = self.config.passes or cores()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="minilm")
        embedder = await asyncio.get_running_loop().run_in_executor(self._executor, self._load)
        self._embedder = embedder
        self.files = (embedder.file,)
        passes = self.config.passes or embedder.passes
        self._batches = Batches(embedder.run, self._executor, passes, embedder.pass_tokens)
        self.models = (replace(self.models[0], context_window=embedder.max_tokens),)

    def _load(self) -> Embedder:
        config = self.config
        with track(f"loading {config.name}"):
            return Embedder(
                config.model, threads=config.threads, max_tokens=config.max_tokens, device=config.device
            )

    async def close(self) -> None:
        """Free the model and its threads. May be called again."""
        batches, self._batches = self._batches, None
        executor, self._executor = self._executor, None
        if batches is not None:
            batches.close()
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        self._embedder = None

    async def __call__(self, call: Call) -> Reply:
        """Answer an embedding call.

        Raises `ModelNotFound`, `InvalidRequest` (or `ContextTooLong`) for what the model
        can't do, `Overloaded` when too many inputs wait, and `DeadlineExceeded`.
        """
        name = self.config.name
        if call.model not in self._names:
            known = ", ".join(f"`{known}`" for known in (name, *self.config.aliases, "default"))
            raise ModelNotFound(
                f"The model `{call.model[:200]}` does not exist; there is {known}.", param="model"
            )
        if call.operation != "embedding":
            raise InvalidRequest(f"This model embeds; it does not answer `{call.operation}`.", param="model")
        embedder, batches = self._embedder, self._batches
        if embedder is None or batches is None:
            raise Overloaded("The model is not loaded.")
        inputs = _inputs(call.body.get("input"))
        finish = _form(call.body, embedder.dimensions)
        if self._waiting and self._waiting + len(inputs) > self.config.queue:
            raise Overloaded("Too many inputs wait to be embedded.", headers=((b"retry-after", b"1"),))
        self._waiting += len(inputs)
        try:
            async with asyncio.timeout_at(call.deadline):
                large = sum(map(len, inputs)) > INLINE_CHARACTERS
                rows = await self._off_loop(large, self._rows, embedder, inputs)
                vectors = await batches.answer(rows, finish)
                tokens = sum(len(row) for row in rows)
                body = await self._off_loop(len(rows) > INLINE_ROWS, _body, vectors, tokens, name)
        except TimeoutError:
            raise DeadlineExceeded("The call's time ran out while its inputs were embedded.") from None
        finally:
            self._waiting -= len(inputs)
        return Reply(body=body, usage=Usage(tokens), model=name)

    def _count(self, call: Call) -> int:
        """Tokens of a call's inputs. Raises what the call itself would for inputs that don't fit."""
        if self._embedder is None:
            raise Overloaded("The model is not loaded.")
        return sum(map(len, self._rows(self._embedder, _inputs(call.body.get("input")))))

    async def _off_loop(self, large: bool, work: Callable[..., R], *arguments: Any) -> R:
        """Do work that is short unless it is large: then in a thread."""
        if not large:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def _rows(self, embedder: Embedder, inputs: Sequence[Any]) -> list[list[int]]:
        truncate = self.config.truncate
        try:
            if isinstance(inputs[0], str):
                return embedder.tokenize(inputs, truncate=truncate)
            for index, row in enumerate(inputs):
                if not all(isinstance(id, int) and 0 <= id < embedder.vocabulary for id in row):
                    raise InvalidRequest(
                        f"`input[{index}]` has a token id that this model does not know: it has "
                        f"{embedder.vocabulary}.",
                        param="input",
                    )
            return embedder.frame(inputs, truncate=truncate)
        except TooLong as error:
            raise ContextTooLong(
                f"This model reads at most {error.limit} tokens, and `input[{error.index}]` has "
                f"{error.tokens}. Shorten it or split it up.",
                param="input",
            ) from None


def _inputs(given: Any) -> list[Any]:
    """The inputs as a list of texts or of lists of token ids. Raises `InvalidRequest`."""
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("`input` must be a text, texts, or token ids.", param="input")
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(
            f"`input` has {len(given)} items; one request can have {MAX_INPUTS}.", param="input"
        )
    kind = str if isinstance(given[0], str) else list
    for index, one in enumerate(given):
        if not isinstance(one, kind):
            raise InvalidRequest(f"`input[{index}]` must be a text or token ids.", param="input")
        if not one:
            raise InvalidRequest(f"`input[{index}]` must not be empty.", param="input")
    return given


def _form(body: dict[str, Any], dimensions: int) -> Callable[[Any], bytes]:
    """What makes a vector JSON, in the form that the request asks for."""
    wanted = body.get("dimensions")
    if wanted is not None and wanted != dimensions:
        raise InvalidRequest(
            f"This model's vectors have {dimensions} dimensions and can't be shortened: it was not trained "
            "for that. Leave `dimensions` out.",
            param="dimensions",
        )
    form = body.get("encoding_format") or "float"
    if form not in _FORMS:
        raise InvalidRequest("`encoding_format` must be `float` or `base64`.", param="encoding_format")
    return _FORMS[form]


def _floats(vector: Any) -> bytes:
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64(vector: Any) -> bytes:
    return b'"%b"' % base64.b64encode(vector.astype("<f4", copy=False).tobytes())


_FORMS: dict[str, Callable[[Any], bytes]] = {"float": _floats, "base64": _base64}


def _body(vectors: list[bytes], tokens: int, name: str) -> bytes:
    """The response, of vectors already encoded by the threads that made them."""
    parts = []
    for index, vector in enumerate(vectors):
        parts.append(b'},{"object":"embedding","index":%d,"embedding":' % index)
        parts.append(vector)
    parts[0] = b'{"object":"list","data":[' + parts[0].removeprefix(b"},")
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    parts.append(b'}],"model":%b,"usage":%b}' % (orjson.dumps(name), usage))
    return b"".join(parts)

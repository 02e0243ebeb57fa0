"""Continuous batching: sequences join and leave between two decoding steps.

One thread owns the model. In each round it reads so many tokens of waiting prompts, then
takes one step on all running sequences, and hands their new text to the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
import torch

from pipeline.errors import DeadlineExceeded, InternalError, Overloaded
from pipeline_plugins.infer.transformers_cache import Network
from pipeline_plugins.infer.transformers_request import Sampling
from pipeline_plugins.infer.transformers_sampling import Sampler, choose
from pipeline_plugins.infer.transformers_text import Piece, Writer

PROMPT_PART = 128
"""Prompt tokens read per round: running sequences wait no longer than that takes."""

log = structlog.get_logger(__name__)


class Wanted:
    """One choice of a request on its way through the engine.

    `prompt` is the very same list for all choices of one prompt, which is then read once.
    """

    __slots__ = ("answer", "cancelled", "index", "last", "place", "prompt", "sampler", "tokens", "writer")

    def __init__(self, index: int, prompt: list[int], sampler: Sampler, writer: Writer) -> None:
        self.index = index
        self.prompt = prompt
        self.sampler = sampler
        self.writer = writer
        self.answer: Answer | None = None
        self.cancelled = False
        self.tokens = 0
        self.last = 0
        self.place = len(prompt)


class Answer:
    """What the event loop sees of one call: pieces of its choices as they come."""

    def __init__(self, wanted: Sequence[Wanted], deadline: float) -> None:
        self._wanted = wanted
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.left = len(wanted)

    async def read(self) -> list[tuple[int, Piece]]:
        """The pieces that came since, each with its choice's index; empty after the last.

        Raises `DeadlineExceeded`, and what the generation failed with.
        """
        while not self._pieces and self.left and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._waiter
            except TimeoutError:
                self.cancel()
                raise DeadlineExceeded("The call's time ran out while the model was answering.") from None
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        pieces = list(self._pieces)
        self._pieces.clear()
        self.left -= sum(piece.reason is not None for _, piece in pieces)
        return pieces

    def cancel(self) -> None:
        """Stop all its choices; their rows are free at the next step."""
        for wanted in self._wanted:
            wanted.cancelled = True

    def take(self, index: int, piece: Piece) -> None:
        """Called in the event loop with each new piece."""
        self._pieces.append((index, piece))
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Called in the event loop when there will be no more pieces."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Loaded(Protocol):
    """What an engine needs of a model: `ends` are the tokens that end an answer."""

    network: Network
    ends: frozenset[int]

    def decode(self, ids: list[int]) -> str:
        """The text of these tokens."""
        ...


class Engine:
    """A model, its thread, and `slots` rows. `queue` is how many choices may wait for a row.

    `prepare` is called in the thread first and loads the model; what it raises,
    `open` raises.
    """

    def __init__(self, prepare: Callable[[], Loaded], slots: int, queue: int) -> None:
        self._prepare = prepare
        self._slots = slots
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._condition = threading.Condition()
        self._waiting: deque[Wanted] = deque()
        self._rows: list[Wanted] = []
        self._reading: Wanted | None = None
        self._staged: list[int] | None = None
        self._staged_logits: Any = None
        self._read = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)

    async def open(self) -> None:
        """Start the thread and wait until the model is loaded."""
        self._thread.start()
        await self._opened

    async def close(self) -> None:
        """Stop at the next step and free the model. What still runs fails with `Overloaded`."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def running(self) -> int:
        """Sequences that occupy a row now."""
        return len(self._rows)

    def start(self, prompts: Sequence[tuple[list[int], Sampler, Sampling]], deadline: float) -> Answer:
        """Have choices generated, each by its prompt. Raises `Overloaded`."""
        wanted = [
            Wanted(index, prompt, sampler, Writer(self._decode, settings.stop))
            for index, (prompt, sampler, settings) in enumerate(prompts)
        ]
        answer = Answer(wanted, deadline)
        for one in wanted:
            one.answer = answer
        with self._condition:
            if self._stopping:
                raise Overloaded("The model is being unloaded.")
            if len(self._waiting) + len(wanted) > self._queue + self._slots - len(self._rows):
                raise Overloaded(
                    "All slots are busy and the queue is full.", headers=((b"retry-after", b"1"),)
                )
            self._waiting.extend(wanted)
            self._condition.notify()
        return answer

    # In the thread

    def _run(self) -> None:
        try:
            loaded = self._prepare()
            self._network, self._ends, self._decode = loaded.network, loaded.ends, loaded.decode
        except BaseException as error:
            self._tell(_settle, self._opened, error)
            return
        self._tell(_settle, self._opened, None)
        with torch.inference_mode():
            while self._await_work():
                try:
                    self._round()
                except Exception as error:
                    log.exception("the model failed")
                    self._fail_all(InternalError(f"The model failed: {type(error).__name__}."))
        self._fail_all(Overloaded("The model is being unloaded."))
        del loaded, self._network, self._decode, self._prepare

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when the engine is to stop."""
        with self._condition:
            while not (self._stopping or self._waiting or self._rows or self._reading):
                self._condition.wait()
            return not self._stopping

    def _round(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].cancelled:
                self._leave(row)
        news: list[tuple[Wanted, Piece]] = []
        budget = PROMPT_PART
        while budget > 0 and (read := self._read_prompt(budget, news)):
            budget -= read
        if self._rows:
            rows = self._rows
            logits = self._network.step([one.last for one in rows], [one.place for one in rows])
            chosen = choose(logits, [one.sampler for one in rows])
            for row in reversed(range(len(rows))):
                rows[row].place += 1
                if self._take(rows[row], chosen[row], news):
                    self._leave(row)
        if news:
            self._tell(_deliver, news)

    def _read_prompt(self, budget: int, news: list[tuple[Wanted, Piece]]) -> int:
        """Read a prompt, or a part of it; the sequence joins once it is complete.

        Returns how many tokens of the budget that took, 0 when there was nothing to do.
        """
        if self._reading is None or self._reading.cancelled:
            self._reading = self._next()
        one = self._reading
        if one is None:
            return 0
        read = 1
        if self._staged is not one.prompt:
            self._staged, self._staged_logits, self._read = one.prompt, None, 0
        if self._staged_logits is None:
            part = one.prompt[self._read : self._read + budget]
            logits = self._network.read(part, self._read)
            read = len(part)
            self._read += read
            if self._read < len(one.prompt):
                return read
            self._staged_logits = logits
        chosen = choose(self._staged_logits.clone().unsqueeze(0), [one.sampler])[0]
        if not self._take(one, chosen, news):
            self._network.join(len(self._rows), len(one.prompt))
            self._rows.append(one)
        self._reading = None
        return read

    def _next(self) -> Wanted | None:
        with self._condition:
            while self._waiting and self._waiting[0].cancelled:
                self._waiting.popleft()
            return self._waiting.popleft() if self._waiting and len(self._rows) < self._slots else None

    def _take(self, one: Wanted, chosen: Any, news: list[tuple[Wanted, Piece]]) -> bool:
        """Add a token to a sequence; True when it is the last."""
        settings, guide = one.sampler.settings, one.sampler.guide
        one.tokens += 1
        one.last = chosen.token
        ends = chosen.token in self._ends and not settings.ignore_eos
        piece = Piece() if ends else one.writer.feed(chosen)
        if piece.reason is None and (ends or (guide is not None and guide.ended)):
            piece = _joined(piece, one.writer.finish(), "stop")
        elif piece.reason is None and one.tokens >= settings.max_tokens:
            piece = _joined(piece, one.writer.finish(), "length")
        if piece.text or piece.entries or piece.reason:
            piece.tokens = one.tokens
            news.append((one, piece))
        return piece.reason is not None

    def _leave(self, row: int) -> None:
        """Free a row; the last one takes its place, so that rows in use stay together."""
        last = self._rows.pop()
        if row < len(self._rows):
            self._network.cache.move(len(self._rows), row, last.place)
            self._rows[row] = last

    def _fail_all(self, error: BaseException) -> None:
        with self._condition:
            failed = [*self._rows, *self._waiting]
            self._waiting.clear()
        if self._reading is not None:
            failed.append(self._reading)
        self._rows, self._reading, self._staged, self._staged_logits = [], None, None, None
        for answer in {id(one.answer): one.answer for one in failed}.values():
            if answer is not None:
                answer.cancel()
                self._tell(answer.fail, error)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            self._stopping = True  # the event loop is closed: nobody reads any more


def _joined(piece: Piece, rest: Piece, reason: str) -> Piece:
    """The last two pieces as one. A stop text completed by the very last characters counts."""
    return Piece(piece.text + rest.text, piece.entries + rest.entries, rest.reason or reason)


def _deliver(news: list[tuple[Wanted, Piece]]) -> None:
    for one, piece in news:
        if one.answer is not None:
            one.answer.take(one.index, piece)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)

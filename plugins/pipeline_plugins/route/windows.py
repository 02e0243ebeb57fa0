"""Keeping calls from targets whose context window they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline import Call, Model
from pipeline.errors import APIError, ContextTooLong
from pipeline_plugins.tokens import asked_tokens, estimate

T = TypeVar("T")

COUNTED = 32_768
"""Bytes of a request up to which its model counts; a longer one would hold up the event loop."""

DOUBT = 2
"""An estimate refuses a call only where it is so many times what the largest window holds."""


@dataclass(slots=True, frozen=True)
class Way(Generic[T]):
    """A target, with those of its models that would answer a call."""

    target: T
    models: tuple[Model, ...]

    @property
    def window(self) -> int | None:
        """The largest window behind it, None where one is unknown: it may hold anything."""
        windows = [model.context_window for model in self.models]
        known = [window for window in windows if window is not None]
        return max(known) if len(known) == len(windows) else None


def within(call: Call, ways: Sequence[Way[T]]) -> Sequence[T]:
    """The targets whose window holds prompt and answer, else those that hold the prompt.

    Tokens are counted by the target's own model where it can, estimated otherwise. Where
    none fits but that is estimated and may be wrong, the largest window is to try. Raises
    `ContextTooLong` where it can't be. Embeddings are left alone: each input has the
    window for itself, and they go to one model in any case.
    """
    if call.operation not in ("chat", "completion"):
        return [way.target for way in ways]
    sizes = _Sizes(call)
    asked = asked_tokens(call) or 1
    prompts = [(way, way.window, sizes.of(way.models)) for way in ways]
    holding = [(way, room, size) for way, room, size in prompts if room is None or size < room]
    if holding:
        whole = [way.target for way, room, size in holding if room is None or size + asked <= room]
        return whole or [way.target for way, _, _ in holding]
    largest = max(room for _, room, _ in prompts if room is not None)
    if not sizes.counted and sizes.estimate <= DOUBT * largest:
        return [way.target for way, room, _ in prompts if room == largest]
    size = min(size for _, _, size in prompts)
    about = "" if sizes.counted else "about "
    raise ContextTooLong(
        f"The prompt has {about}{size} tokens, and the longest context window of a model that is served as "
        f"`{call.model}` is {largest}. Shorten it.",
        param="messages" if call.operation == "chat" else "prompt",
    )


class _Sizes:
    """Tokens of a call's prompt, by model: counted or estimated once each."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._by_count: dict[Callable[[Call], int], int] = {}
        self._estimate = 0
        self.counted = True
        prompt: Any = call.body.get("prompt") if call.operation == "completion" else None
        self._prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        self._countable = len(call.raw) <= COUNTED and self._prompts == 1

    @property
    def estimate(self) -> int:
        """By the length of the text; of several prompts, which share no window, their mean."""
        if not self._estimate:
            self._estimate = -(-estimate(self._call) // self._prompts)
        return self._estimate

    def of(self, models: Sequence[Model]) -> int:
        """The prompt's tokens for a target: the fewest that one of its models needs."""
        return min(self._of(model) for model in models)

    def _of(self, model: Model) -> int:
        count = model.count
        if count is None or not self._countable:
            self.counted = False
            return self.estimate
        if count not in self._by_count:
            self._by_count[count] = self._count(count, model.context_window)
        return self._by_count[count]

    def _count(self, count: Callable[[Call], int], window: int | None) -> int:
        try:
            return count(self._call)
        except ContextTooLong:
            return max(self.estimate, window or 0)
        except APIError:
            self.counted = False  # it can't count now: its own answer will say why
            return self.estimate

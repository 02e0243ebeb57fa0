"""How much of what was found goes into a prompt, in tokens of the model that reads it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pipeline import Call, Model
from pipeline.errors import ContextTooLong
from pipeline_plugins import tokens
from pipeline_plugins.rag.chunk import Passage

FRAME = 40
"""Tokens that a template puts around a passage, about."""

ANSWER = 256
"""Tokens that are left for an answer whose length the call does not bound."""

Count = Callable[[str], int]


def counter(call: Call, models: Iterable[Model]) -> Count:
    """Tokens of a text by the model that the call would reach; an estimate where that can't count."""
    model = reader(call, models)
    count = model.count if model is not None else None
    if count is None:
        return tokens.of_text
    bare = {"messages": [{"role": "user", "content": ""}], "tools": None, "tool_choice": None}
    frame = count(call.derive(**bare))

    def of(text: str) -> int:
        try:
            return count(call.derive(**bare | {"messages": [{"role": "user", "content": text}]})) - frame
        except ContextTooLong:
            return sys.maxsize

    return of


def room(call: Call, models: Iterable[Model], most: int | None, around: int) -> int:
    """Tokens that passages may take: `most`, or what the model's window leaves beside the call.

    `around` are those of the prompt without passages.
    """
    model = reader(call, models)
    left = sys.maxsize if most is None else most
    if model is None or model.context_window is None:
        return left
    try:
        own = tokens.estimate(call) if model.count is None else model.count(call)
    except ContextTooLong:
        return 0
    return min(left, model.context_window - own - around - (tokens.asked_tokens(call) or ANSWER))


def reader(call: Call, models: Iterable[Model]) -> Model | None:
    """The first model that may answer the call."""
    return next((model for model in models if model.offered(call)), None)


def fitting(passages: Sequence[Passage], count: Count, room: int) -> list[Passage]:
    """The passages that fit, in their order; where not even one does, the beginning of the first."""
    found = []
    left = room
    for passage in passages:
        if (size := count(passage.text) + FRAME) <= left:
            found.append(passage)
            left -= size
    if not found and passages and room > FRAME:
        cut = _cut(passages[0], count, room - FRAME)
        return [cut] if cut.text else []
    return found


def _cut(passage: Passage, count: Count, room: int) -> Passage:
    text = passage.text
    while text and (size := count(text)) > room:
        most = min(len(text) - 1, len(text) * room // size)
        space = text.rfind(" ", 0, most + 1)
        text = text[: space if space > most // 2 else most]
    return replace(passage, text=text, end=passage.start + len(text))

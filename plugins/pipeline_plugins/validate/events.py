"""The events of a streamed reply, with the pieces of text in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import jiter

from pipeline import Reply
from pipeline.errors import UpstreamFailed
from pipeline.wire.sse import Splitter, data_of, encode
from pipeline_plugins.validate.finding import ARGUMENTS, CONTENT, Path, Text, arguments_of, objects, strange


@dataclass(slots=True)
class Piece:
    """A part of a text: `path` is where the whole would be in a reply that isn't streamed."""

    path: Path
    text: str
    holder: dict[str, Any]
    key: str


@dataclass(slots=True)
class Event:
    """One block of a stream. `ended` are the choices that say why they ended."""

    block: bytes
    data: dict[str, Any] | None = None
    done: bool = False
    pieces: list[Piece] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    changed: bool = False

    def write(self, piece: Piece, text: str) -> None:
        """Put another text in the place of a piece; log probabilities spell it out and go."""
        if text == piece.text:
            return
        piece.holder[piece.key] = piece.text = text
        self.changed = True
        for choice in (self.data or {}).get("choices") or ():
            if choice.get("index", 0) == piece.path[1] and choice.get("logprobs"):
                choice["logprobs"] = None

    def strip(self) -> None:
        """Keep the bytes alone: parsed, an event takes ten times as much."""
        self.data = None
        self.pieces = []

    def encode(self) -> bytes:
        """The event's bytes: the sender's own unless it was changed."""
        if self.changed and self.data is not None:
            return encode(self.data)
        return self.block + b"\n\n"


async def read(reply: Reply) -> AsyncGenerator[Event, None]:
    """The events of a streamed reply.

    Raises `UpstreamFailed` for an event that tells of an error, and for a stream that is none.
    """
    splitter = Splitter()
    try:
        async for chunk in reply:
            for block in splitter.feed(chunk):
                yield _event(block)
    except ValueError as error:
        raise UpstreamFailed(f"The model's stream can't be read: {error}.") from None


def _event(block: bytes) -> Event:
    data = data_of(block)
    if data is None:
        return Event(block)
    if data == b"[DONE]":
        return Event(block, done=True)
    value = jiter.from_json(data)
    if not isinstance(value, dict):
        return Event(block)
    if "error" in value and not value.get("choices"):
        error = value["error"]
        message = error.get("message") if isinstance(error, dict) else None
        raise UpstreamFailed(str(message)[:500] if message else "The model's stream broke off.")
    event = Event(block, value)
    for choice in objects(value, "choices"):
        _read_choice(event, choice)
    return event


def _read_choice(event: Event, choice: dict[str, Any]) -> None:
    path: Path = ("choices", _index(choice))
    if isinstance(choice.get("text"), str) and choice["text"]:
        event.pieces.append(Piece((*path, "text"), choice["text"], choice, "text"))
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise strange("delta")
    for key in CONTENT:
        value = delta.get(key)
        if isinstance(value, str) and value:
            event.pieces.append(Piece((*path, "message", key), value, delta, key))
        elif isinstance(value, list):
            # Some servers send parts, as they take them.
            parts = [part for part in objects(delta, key) if isinstance(part.get("text"), str)]
            event.pieces += [Piece((*path, "message", key), part["text"], part, "text") for part in parts]
    for call in objects(delta, "tool_calls"):
        _read_arguments(event, call, (*path, "message", "tool_calls", _index(call)))
    if (called := delta.get("function_call")) is not None:
        _read_arguments(event, {"function": called}, (*path, "message"), "function_call")
    if choice.get("finish_reason") is not None:
        event.ended.append(_index(choice))


def _read_arguments(event: Event, call: dict[str, Any], path: Path, name: str = "") -> None:
    if any(not isinstance(call.get(key) or {}, dict) for key in ARGUMENTS):
        raise strange(name or "function")
    # Empty ones, too: a tool is called all the same.
    for key, given in arguments_of(call):
        at = (*path, name or key, ARGUMENTS[key])
        event.pieces.append(Piece(at, given[ARGUMENTS[key]], given, ARGUMENTS[key]))


def _index(holder: dict[str, Any]) -> int:
    index = holder.get("index", 0)
    if not isinstance(index, int):
        raise strange("index")
    return index


def text_of(path: Path, text: str) -> Text:
    """A text that was put together from its pieces."""
    kind = "arguments" if path[-1] in ARGUMENTS.values() else CONTENT.get(str(path[-1]), "content")
    return Text(path, text, "assistant", kind)  # type: ignore[arg-type]

"""What a call asks, taken apart: what is compared by meaning, and what must be equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import Call
from pipeline_plugins.cache.key import relevant

SPOKEN = frozenset({"user", "assistant"})
"""Roles whose earlier turns are the conversation; what others say must be equal."""

MAX_CHARACTERS = 4000
"""A longer turn is a document, and a model that reads 256 tokens can't tell such apart."""


@dataclass(slots=True, frozen=True)
class Question:
    """The meaning of a call, and its frame.

    text     the last user turn
    context  the earlier turns, the latest last; empty at the start of a conversation
    frame    the rest of the body: system prompt, tools, parameters, the shape of the conversation
    """

    text: str
    context: str
    frame: dict[str, Any]


def question_of(call: Call) -> Question | None:
    """A call's question; None if it does not end with a user's turn in plain text.

    A turn with images, a call that answers a tool, several answers at once and batches of
    prompts are not questions that could be compared by their meaning.
    """
    body = relevant(call.body)
    if call.operation == "completion":
        prompt = body.pop("prompt", None)
        return Question(prompt, "", body) if _fits(prompt) else None
    messages = body.pop("messages", None)
    if call.operation != "chat" or not isinstance(messages, list) or not messages or "n" in body:
        return None
    *earlier, last = messages
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    text = _text(last)
    if not _fits(text):
        return None
    spoken: list[str] = []
    frame: list[Any] = []
    for message in earlier:
        said = _text(message) if isinstance(message, dict) and message.get("role") in SPOKEN else None
        if said is None:
            frame.append(message)
        else:
            frame.append([message["role"], message.get("name")])
            spoken.append(said)
    named = {key: value for key, value in last.items() if key not in ("role", "content")}
    context = "\n".join(spoken)
    if len(context) > MAX_CHARACTERS:
        return None
    return Question(text, context, {**body, "messages": frame, "last": named})


def _fits(text: Any) -> bool:
    return isinstance(text, str) and len(text.strip()) > 0 and len(text) <= MAX_CHARACTERS


def _text(message: Mapping[str, Any]) -> Any:
    """The text of a message that has nothing else; None for one that has."""
    if not message.keys() <= {"role", "content", "name", "refusal"} or message.get("refusal"):
        return None
    content = message.get("content")
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            return None
        texts.append(part["text"])
    return "\n".join(texts)

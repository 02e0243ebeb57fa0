"""Tokens where no tokenizer is at hand: a fast estimate by the length of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline import Call

BYTES = 4
"""Bytes of text that make a token, on average, in what is mostly English."""

PER_MESSAGE = 4
"""Tokens that a chat template puts around a message."""

PER_IMAGE = 1000
"""Tokens that stand for a picture or sound, whose bytes say nothing about them."""


def estimate(call: Call) -> int:
    """Prompt tokens, from the length of the texts alone."""
    body = call.body
    if call.operation == "embedding":
        return _of_prompts(body.get("input"))
    if call.operation == "completion":
        return _of_prompts(body.get("prompt"))
    tokens = 0
    for message in body.get("messages") or ():
        tokens += PER_MESSAGE
        content = message.get("content")
        if isinstance(content, str):
            tokens += of_text(content)
        elif content:
            tokens += sum(_of_part(part) for part in content)
        for called in message.get("tool_calls") or ():
            tokens += sum(of_text(text) for text in _texts(called))
    for tool in body.get("tools") or ():
        tokens += sum(of_text(text) for text in _texts(tool))
    return tokens


def answer_tokens(call: Call, usual: int) -> int:
    """About how many tokens the answer will have: `usual`, or fewer where the call says so."""
    if call.operation == "embedding":
        return 0
    asked = asked_tokens(call)
    return usual if asked is None else min(asked, usual)


def asked_tokens(call: Call) -> int | None:
    """How long the call lets an answer become, None where it sets no bound."""
    asked: int | None = call.body.get("max_completion_tokens") or call.body.get("max_tokens")
    return asked


def of_text(text: str) -> int:
    """Tokens of a text: one for so many characters, more where they are not ASCII."""
    size = len(text)
    if not text.isascii():
        size += 2 * (len(text.encode(errors="replace")) - size)
    return (size + BYTES - 1) // BYTES


def _of_part(part: Any) -> int:
    text = part.get("text")
    return of_text(text) if isinstance(text, str) else PER_IMAGE


def _of_prompts(given: Any) -> int:
    if isinstance(given, str):
        return of_text(given)
    if not given:
        return 0
    if isinstance(given[0], int):
        return len(given)
    return sum(of_text(one) if isinstance(one, str) else len(one) for one in given)


def _texts(value: Any) -> Iterator[str]:
    """Every name and text of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)

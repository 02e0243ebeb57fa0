"""How many tokens a call may use: counted by its model where that can count, else estimated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline import Call, Model
from pipeline_plugins.limit.rules import Tokens

PER_MESSAGE = 4
"""Tokens that a chat template puts around a message."""

COUNTED = 32_768
"""Bytes of a request up to which its model counts; a longer one would hold up the event loop."""

PER_IMAGE = 256
"""Tokens that stand for an image; what they are in truth, only its model knows."""


def of_call(call: Call, model: Model | None, default: int) -> Tokens:
    """Prompt and answer of a call; `default` is the answer's length where the call does not say.

    An answer is never taken to be longer than what the context window leaves.
    """
    body = call.body
    if model is None or model.count is None or len(call.raw) > COUNTED:
        prompt = estimate(call)
    else:
        prompt = model.count(call)
    if call.operation == "embedding":
        return Tokens(prompt, 0, True)
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    answer = default if asked is None else int(asked)
    if model is not None and model.context_window is not None:
        answer = min(answer, max(0, model.context_window - prompt))
    prompts = body.get("prompt")
    many = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    choices = max(int(body.get("n") or 1), int(body.get("best_of") or 1))
    return Tokens(prompt, answer * choices * many, asked is not None)


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


def of_text(text: str) -> int:
    """Tokens of a text: one for so many characters, more where they are not ASCII."""
    size = len(text)
    if not text.isascii():
        size += 2 * (len(text.encode(errors="replace")) - size)
    return (size + 3) // 4


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

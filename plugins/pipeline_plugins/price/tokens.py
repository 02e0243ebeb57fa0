"""Tokens where nobody counted them: a fast estimate by the length of the text."""

from __future__ import annotations

from typing import Any

from pipeline import Call

BYTES = 4
"""Bytes of text that make a token, on average, in what is mostly English."""

IMAGE = 1000
"""Tokens of a picture or sound, whose bytes say nothing about them."""

PER_MESSAGE = 4
"""Tokens that a chat template adds to each message."""


def prompt_tokens(call: Call) -> int:
    """About how many tokens a call's prompt has."""
    body = call.body
    if call.operation != "chat":
        given = body.get("prompt", body.get("input"))
        return _tokens(given)
    total = 0
    for message in body.get("messages") or ():
        total += PER_MESSAGE + _tokens(message.get("content"))
        if "tool_calls" in message:
            total += _size(message["tool_calls"])
    if "tools" in body:
        total += _size(body["tools"])
    return total


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // BYTES) if text.isascii() else -(-len(text.encode("utf-8", "replace")) // BYTES)


def _tokens(content: Any) -> int:
    """Of a text, of token ids, of parts, or of a list of those."""
    if isinstance(content, str):
        return text_tokens(content)
    if isinstance(content, int):
        return 1
    if isinstance(content, dict):
        text = content.get("text")
        return text_tokens(text) if isinstance(text, str) else IMAGE
    if isinstance(content, list):
        return sum(map(_tokens, content))
    return 0


def _size(value: Any) -> int:
    """Of JSON that is part of the prompt."""
    return text_tokens(str(value))

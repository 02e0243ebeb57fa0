"""What was asked and answered, as attributes of a span: only where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from pipeline_plugins.trace.context import Ended

KEPT = 65_536
"""Bytes of a stream, and characters of an attribute, that are kept."""


def messages_of(ended: Ended) -> dict[str, str]:
    """`gen_ai.input.messages` and `gen_ai.output.messages`, as JSON of the conventions' form."""
    body = ended.call.body
    asked = body.get("messages")
    if not isinstance(asked, list):
        asked = [{"role": "user", "content": text} for text in _texts(body.get("prompt", body.get("input")))]
    found = {"gen_ai.input.messages": [_message(message) for message in asked]}
    answered = _answer(ended)
    if answered:
        found["gen_ai.output.messages"] = answered
    return {name: orjson.dumps(messages).decode()[:KEPT] for name, messages in found.items() if messages}


def _answer(ended: Ended) -> list[dict[str, Any]]:
    reply = ended.reply
    if reply is None or ended.call.operation == "embedding":
        return []
    try:
        answer = reply.json if ended.end is None else ended.end.assembled()
    except ValueError:
        return []
    choices = (answer or {}).get("choices")
    found = []
    for choice in choices if isinstance(choices, list) else ():
        said = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
        found.append({**_message(said), "finish_reason": choice.get("finish_reason") or "error"})
    return found


def _message(message: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "text", "content": text} for text in _texts(message.get("content"))
    ]
    for called in message.get("tool_calls") or ():
        function = called.get("function") or {}
        part = {"type": "tool_call", "id": called.get("id"), "name": function.get("name")}
        parts.append({**part, "arguments": function.get("arguments")})
    return {"role": message.get("role", "user"), "parts": parts}


def _texts(content: Any) -> Iterator[str]:
    """The texts of a message's content, a prompt or an input; what is no text is left out."""
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text

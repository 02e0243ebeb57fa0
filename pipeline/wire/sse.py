"""Server-sent events as OpenAI streams them: `data: {json}` blocks, then `[DONE]`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import jiter
import orjson

DONE = b"data: [DONE]\n\n"


def encode(event: dict[str, Any]) -> bytes:
    """One event as bytes."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


class Splitter:
    """Cuts a byte stream into event blocks, whatever the boundaries of its chunks.

    LF, CRLF and CR line ends are understood. Raises ValueError for a block longer
    than `limit` bytes: no event is that long, and memory is bounded.
    """

    def __init__(self, limit: int = 8 * 1024 * 1024) -> None:
        self._rest = b""
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """The blocks completed by this chunk, without their blank line."""
        data = self._rest + chunk
        held = b""
        if b"\r" in data:
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = data.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > self._limit:
            raise ValueError(f"an event of the stream is longer than {self._limit} bytes")
        return [block for block in blocks if block]

    @property
    def rest(self) -> bytes:
        """What is left over: an event cut short, or nothing."""
        return self._rest


def data_of(block: bytes) -> bytes | None:
    """The data of one block, its lines joined; None for a comment or a bare field."""
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The parsed events of a stream, without `[DONE]`."""
    splitter = Splitter()
    async for chunk in chunks:
        for block in splitter.feed(chunk):
            data = data_of(block)
            if data is not None and data != b"[DONE]":
                yield jiter.from_json(data)


def assemble(content: bytes) -> dict[str, Any] | None:
    """Put a whole stream together as the reply it would have been without streaming.

    Works for chat completions and completions. Returns None when the stream holds no
    chunk of either.
    """
    splitter = Splitter(limit=len(content) + 1)
    reply: dict[str, Any] | None = None
    choices: dict[int, dict[str, Any]] = {}
    for block in splitter.feed(content + b"\n\n"):
        data = data_of(block)
        if data is None or data == b"[DONE]":
            continue
        event = jiter.from_json(data)
        if not isinstance(event, dict) or "choices" not in event:
            continue
        if reply is None:
            reply = {k: v for k, v in event.items() if k not in ("choices", "usage")}
            reply["object"] = str(event.get("object", "")).removesuffix(".chunk")
        if event.get("usage"):
            reply["usage"] = event["usage"]
        for part in event["choices"]:
            _merge_choice(choices.setdefault(part.get("index", 0), {}), part)
    if reply is not None:
        reply["choices"] = [choices[index] for index in sorted(choices)]
    return reply


def _merge_choice(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key == "delta":
            _merge_delta(choice.setdefault("message", {"role": "assistant", "content": None}), value)
        elif key == "text":
            choice["text"] = choice.get("text", "") + value
        elif key == "logprobs" and isinstance(value, dict) and isinstance(choice.get("logprobs"), dict):
            for name, items in value.items():
                if isinstance(items, list):
                    choice["logprobs"][name] = [*(choice["logprobs"].get(name) or []), *items]
        elif value is not None or key not in choice:
            choice[key] = value


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            for call in value or []:
                _merge_tool_call(message.setdefault("tool_calls", []), call)
        elif key != "role" and isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif value is not None:
            message[key] = value


def _merge_tool_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.get("index", len(calls))
    found = next((c for c in calls if c.get("index") == index), None)
    if found is None:
        calls.append({**part, "function": dict(part.get("function") or {})})
        return
    function = part.get("function") or {}
    if "arguments" in function:
        found["function"]["arguments"] = found["function"].get("arguments", "") + function["arguments"]

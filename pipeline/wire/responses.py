"""Building OpenAI responses, for stages that answer with a model of their own."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.errors import InvalidRequest
from pipeline.wire.sse import encode
from pipeline.wire.usage import Usage


def new_id(prefix: str) -> str:
    """A fresh id such as `chatcmpl-…`."""
    return f"{prefix}-{os.urandom(12).hex()}"


def text_of(content: Any, param: str = "messages") -> str:
    """The text of a message's content, its text parts joined.

    Raises `InvalidRequest` for a part that is not text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        kind = str(part.get("type") if isinstance(part, dict) else type(part).__name__)[:64]
        if kind not in ("text", "refusal"):
            raise InvalidRequest(
                f"This model takes text only, not `{kind}` parts.",
                param=f"{param}[{index}]",
                code="unsupported_content",
            )
        texts.append(part.get("text") or part.get("refusal") or "")
    return "".join(texts)


@dataclass(slots=True)
class Choice:
    """One finished answer of a chat or completion. `logprobs` in the wire form."""

    text: str | None
    finish_reason: str
    logprobs: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None


def chat_completion(
    choices: Iterable[Choice],
    usage: Usage,
    *,
    model: str,
    id: str | None = None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """A whole chat completion."""
    return {
        "id": id or new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage.as_dict(),
    }


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
    return message


def completion(
    choices: Iterable[Choice],
    usage: Usage,
    *,
    model: str,
    id: str | None = None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """A whole text completion."""
    return {
        "id": id or new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": index,
                "text": choice.text or "",
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage.as_dict(),
    }


class Stream:
    """The chunks of one streamed chat or completion, as server-sent events.

    What all chunks share is encoded once, so that a chunk costs the encoding of its
    text. With `include_usage` every chunk has `usage: null` and the last the counts.
    """

    def __init__(
        self, operation: str, *, model: str, include_usage: bool = False, fingerprint: str | None = None
    ) -> None:
        self.chat = operation == "chat"
        self.include_usage = include_usage
        self._shared = {
            "id": new_id("chatcmpl" if self.chat else "cmpl"),
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head = b"data: " + orjson.dumps(self._shared)[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"

    def start(self, index: int = 0) -> bytes:
        """The first chunk of a choice: its role and no text. Nothing for a completion."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}) if self.chat else b""

    def text(self, text: str, index: int = 0, logprobs: dict[str, Any] | None = None) -> bytes:
        """A piece of a choice's text."""
        if self.chat:
            return self._chunk(index, {"content": text}, logprobs)
        return self._completion_chunk(index, text, logprobs, None)

    def delta(self, delta: dict[str, Any], index: int = 0) -> bytes:
        """A chunk with any delta, say of tool calls."""
        return self._chunk(index, delta)

    def finish(self, reason: str, index: int = 0) -> bytes:
        """The last chunk of a choice: no text, and why it ended."""
        if self.chat:
            return self._chunk(index, {}, None, reason)
        return self._completion_chunk(index, "", None, reason)

    def end(self, usage: Usage) -> bytes:
        """The end of the stream, after the usage where it was asked for."""
        if not self.include_usage:
            return b"data: [DONE]\n\n"
        return encode({**self._shared, "choices": [], "usage": usage.as_dict()}) + b"data: [DONE]\n\n"

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        return b'%b%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._head,
            index,
            orjson.dumps(delta),
            b"null" if logprobs is None else orjson.dumps(logprobs),
            b"null" if reason is None else orjson.dumps(reason),
            self._tail,
        )

    def _completion_chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> bytes:
        return b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._head,
            index,
            orjson.dumps(text),
            b"null" if logprobs is None else orjson.dumps(logprobs),
            b"null" if reason is None else orjson.dumps(reason),
            self._tail,
        )


def embeddings(
    vectors: Sequence[bytes], tokens: int, *, model: str, encoding_format: str | None = None
) -> dict[str, Any]:
    """An embeddings response. Vectors are little-endian float32 bytes."""
    data = []
    for index, vector in enumerate(vectors):
        value: Any
        if encoding_format == "base64":
            value = base64.b64encode(vector).decode("ascii")
        else:
            value = memoryview(vector).cast("f").tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }

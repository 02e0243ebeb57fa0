"""Answers to entries and back: what is complete enough to keep, and giving it again.

An entry that was kept from a stream answers a plain request too, and the other way round. What
is given again is the original answer, its `id` and `created` included: it is that answer, and
feedback on it belongs to it. The response's `x-request-id` tells the occasions apart.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import jiter
import orjson

from pipeline import Call, Reply, Usage
from pipeline.wire import sse
from pipeline_plugins.cache.store import Entry, Form

PIECE = 64 * 1024
"""Bytes of a stream that are given at once."""

STREAMED = frozenset({"chat", "completion"})
"""Operations whose answers can change between body and stream."""


def wants_usage(call: Call) -> bool:
    """Whether a stream is asked to end with its usage."""
    options = call.body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def form_asked(call: Call) -> Form:
    """The form in which a call wants its answer."""
    if not call.streaming:
        return "json"
    return "sse+usage" if wants_usage(call) else "sse"


def entry_of(
    form: Form,
    content: bytes,
    *,
    ttl: float,
    parsed: dict[str, Any] | None = None,
    model: str | None = None,
    usage: Usage | None = None,
    usd: float = 0.0,
    labels: Iterable[str] = ("all",),
    stamps: Iterable[str] = ("",),
    sources: Mapping[str, str] | None = None,
) -> Entry | None:
    """An entry of a complete answer; None if it was cut off, is an error or not an answer at all.

    `parsed` is a body's object, where it is known.
    """
    if not (_whole_body(content, parsed) if form == "json" else _whole_stream(content)):
        return None
    now = time.time()
    return Entry(
        form=form,
        content=content,
        created=now,
        expires=now + ttl,
        model=model,
        usage=usage,
        usd=usd,
        labels=tuple(labels),
        stamps=tuple(stamps),
        sources=tuple((sources or {}).items()),
    )


def _whole_body(content: bytes, parsed: Any) -> bool:
    try:
        body = parsed or jiter.from_json(content)
    except ValueError:
        return False
    if not isinstance(body, dict) or body.get("error"):
        return False
    choices = body.get("choices")
    return choices is None or _finished(choices)


def _whole_stream(content: bytes) -> bool:
    """Whether a stream ends as it should: each choice with its reason, then `[DONE]`."""
    if not content.rstrip().endswith(b"data: [DONE]"):
        return False
    try:
        reply = sse.assemble(content)
        failed = b'"error"' in content and any("error" in event for event in _events(content))
    except (ValueError, TypeError, AttributeError, KeyError):
        return False
    return reply is not None and not failed and _finished(reply["choices"])


def _finished(choices: Any) -> bool:
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices)
    )


def reply_of(entry: Entry, call: Call) -> Reply | None:
    """An entry as the reply to a call, in the form that it asks for.

    None where that can't be: usage is asked for and was never known.
    """
    asked = form_asked(call)
    if entry.form == asked or entry.status != 200:
        if asked == "json" or entry.status != 200:
            return Reply(body=entry.content, status=entry.status, usage=entry.usage, model=entry.model)
        return _stream(entry, entry.content)
    if call.operation not in STREAMED:
        return None if entry.form != "json" else Reply(body=entry.content, usage=entry.usage)
    if asked == "sse+usage" and entry.usage is None:
        return None
    try:
        if asked == "json":
            return Reply(body=_body_of(entry), usage=entry.usage, model=entry.model)
        if entry.form == "json":
            return _stream(entry, _stream_of(call.operation, entry, asked))
        return _stream(entry, _with_usage(entry) if asked == "sse+usage" else _without_usage(entry))
    except (ValueError, TypeError, AttributeError, KeyError):
        # Some server's own idea of an answer: it can be given as it came, not changed.
        return None


def _stream(entry: Entry, content: bytes) -> Reply:
    return Reply(chunks=pieces(content), usage=entry.usage, model=entry.model)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """A stream's bytes again, a piece at a time."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def _body_of(entry: Entry) -> bytes:
    body = sse.assemble(entry.content)
    if body is None:
        raise ValueError("the stream holds no answer")
    for choice in body["choices"]:
        choice.setdefault("logprobs", None)
        if (message := choice.get("message")) is not None:
            message.setdefault("refusal", None)
            for tool in message.get("tool_calls") or []:
                tool.pop("index", None)
    body.pop("usage", None)
    if entry.usage is not None:
        body["usage"] = entry.usage.as_dict()
    return orjson.dumps(body)


def _stream_of(operation: str, entry: Entry, asked: Form) -> bytes:
    """A body as the events of a stream: for each choice a start, its content, an end."""
    body = jiter.from_json(entry.content)
    shared = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    usage = {"usage": None} if asked == "sse+usage" else {}
    parts: list[bytes] = []
    if operation == "chat":
        shared["object"] = "chat.completion.chunk"
    for choice in body["choices"]:
        made = _chat_events(choice) if operation == "chat" else _text_events(choice)
        parts += [sse.encode({**shared, "choices": [event], **usage}) for event in made]
    if asked == "sse+usage":
        parts.append(_usage_event(shared, entry))
    return b"".join([*parts, sse.DONE])


def _chat_events(choice: dict[str, Any]) -> list[dict[str, Any]]:
    message = dict(choice["message"])
    index = choice.get("index", 0)
    start = None if message.get("content") is None else ""
    first = {"role": message.pop("role", "assistant"), "content": start, "refusal": None}
    tools = message.pop("tool_calls", None)
    if tools:
        message["tool_calls"] = [{"index": at, **tool} for at, tool in enumerate(tools)]
    content = {name: value for name, value in message.items() if value is not None}
    logprobs = choice.get("logprobs")
    rest = {k: v for k, v in choice.items() if k not in ("index", "message", "logprobs", "finish_reason")}

    def event(delta: dict[str, Any], logprobs: Any = None, reason: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    middle = [event(content, logprobs)] if content or logprobs else []
    return [event(first), *middle, {**event({}, None, choice["finish_reason"]), **rest}]


def _text_events(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**choice, "finish_reason": None},
        {**choice, "text": "", "logprobs": None},
    ]


def _usage_event(shared: dict[str, Any], entry: Entry) -> bytes:
    usage = entry.usage or Usage()
    return sse.encode({**shared, "choices": [], "usage": usage.as_dict()})


def _events(content: bytes) -> list[dict[str, Any]]:
    blocks = sse.Splitter(limit=len(content) + 1).feed(content + b"\n\n")
    found = (sse.data_of(block) for block in blocks)
    return [jiter.from_json(data) for data in found if data is not None and data != b"[DONE]"]


def _without_usage(entry: Entry) -> bytes:
    kept = [event for event in _events(entry.content) if event.get("choices") or not event.get("usage")]
    for event in kept:
        event.pop("usage", None)
    return b"".join([*map(sse.encode, kept), sse.DONE])


def _with_usage(entry: Entry) -> bytes:
    events = [{**event, "usage": None} for event in _events(entry.content)]
    shared = {k: v for k, v in events[-1].items() if k not in ("choices", "usage")}
    return b"".join([*map(sse.encode, events), _usage_event(shared, entry), sse.DONE])

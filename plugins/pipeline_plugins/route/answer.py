"""Judging an answer by what it holds: whether something is wrong with it, and how sure its model was."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from typing import Any

import jiter

from pipeline.wire import sse


def flaw(answer: dict[str, Any], *, json: bool) -> str:
    """What is wrong with a chat's or completion's answer, in a few words; empty if nothing is.

    `json` where the answer must be JSON. One that was cut short by its bound is not held to that.
    """
    choices = answer.get("choices")
    if not choices:
        return "no answer"
    for choice in choices:
        message = choice.get("message") or {}
        text = choice.get("text", message.get("content"))
        reason = choice.get("finish_reason")
        if message.get("refusal"):
            return "a refusal"
        if reason is None:
            return "broken off"
        if reason == "content_filter":
            return "withheld by a filter"
        if message.get("tool_calls"):
            continue
        if not isinstance(text, str) or not text.strip():
            return "empty"
        if json and reason != "length" and not _is_json(text):
            return "not JSON"
    return ""


def confidence(answer: dict[str, Any]) -> float | None:
    """The geometric mean of the tokens' probabilities, of the least sure choice.

    Between 0 and 1; None where the answer does not tell its tokens' logprobs.
    """
    means = []
    for choice in answer.get("choices") or ():
        logprobs = list(_logprobs(choice.get("logprobs") or {}))
        if logprobs:
            means.append(sum(logprobs) / len(logprobs))
    return exp(min(0.0, *means)) if means else None


def without_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """The same answer, or event of a stream, as if nobody had asked for logprobs."""
    choices = [{**choice, "logprobs": None} for choice in body.get("choices") or ()]
    return {**body, "choices": choices}


def without_logprobs_in_events(content: bytes) -> bytes:
    """A whole stream as if nobody had asked for logprobs."""
    splitter = sse.Splitter(limit=len(content) + 1)
    events = []
    for block in splitter.feed(content + b"\n\n"):
        data = sse.data_of(block)
        if data is None or data == b"[DONE]" or b'"logprobs"' not in data:
            events.append(block + b"\n\n")
        else:
            events.append(sse.encode(without_logprobs(jiter.from_json(data))))
    return b"".join(events)


def _logprobs(given: dict[str, Any]) -> Iterator[float]:
    """Of a chat (`content`) or a completion (`token_logprobs`)."""
    for token in given.get("content") or ():
        yield float(token["logprob"])
    for logprob in given.get("token_logprobs") or ():
        if logprob is not None:  # a prompt's first token has none
            yield float(logprob)


def _is_json(text: str) -> bool:
    try:
        jiter.from_json(text.encode("utf-8", "surrogatepass"))
    except ValueError:
        return False
    return True

"""Whether two answers say the same: the label that decisions learn from.

Texts that are equal but for white space and case do. So do texts whose numbers agree and whose
embeddings are at least `agree` similar. That is the judgement of a small model: it is strict about
numbers, and can't tell two well-written opinions apart. Calls of tools must be equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jiter
import orjson

from pipeline.wire import sse
from pipeline_plugins.cache.semantic_guard import facts_of
from pipeline_plugins.cache.store import Entry

COMPARED_CHARACTERS = 600
"""How much of two answers is compared by meaning: more says little more, and costs time."""

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]


async def same_answer(one: Entry, other: Entry, embed: Embed, agree: float) -> bool:
    """Whether two entries say the same. `embed` gives unit vectors, `agree` is a cosine."""
    answer, known = answer_of(one), answer_of(other)
    if answer is None or known is None or answer[1] != known[1]:
        return False
    first, second = (" ".join(text.split()).casefold() for text in (answer[0], known[0]))
    if first == second:
        return True
    if not first or not second or facts_of(first).numbers != facts_of(second).numbers:
        return False
    vectors = await embed([first[:COMPARED_CHARACTERS], second[:COMPARED_CHARACTERS]])
    return float(vectors[0] @ vectors[1]) >= agree


def answer_of(entry: Entry) -> tuple[str, bytes] | None:
    """An answer's text, and its calls of tools as JSON; None if it is no single answer."""
    try:
        body = jiter.from_json(entry.content) if entry.form == "json" else sse.assemble(entry.content)
        (choice,) = body["choices"]  # type: ignore[index]
        message = choice.get("message")
        if message is None:
            return str(choice["text"]), b""
        tools = [call.get("function") for call in message.get("tool_calls") or ()]
        return message.get("content") or "", orjson.dumps(tools) if tools else b""
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

"""What to search for, of a conversation whose last turn may lean on those before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import structlog

from pipeline import Call, Edge
from pipeline.errors import APIError
from pipeline_plugins.aside import aside

TURNS = 6
"""Messages before the last that a model is shown."""

SEEN = 1000
"""Characters of each of them, and of a question that it writes."""

SHORT = 3
"""A turn with fewer words of a meaning of their own leans on the one before."""

FULL = 6
"""One with more does not, whatever it refers to: that is in it, most likely."""

LEANING = """
it its he him his she her hers they them their theirs this that these those there one ones former latter
same such else also too instead
"""
"""Words that stand for something said before."""

EMPTY = """
a an and are as at be been but by can could did do does for from had has have how i if in is me my no not
of on or our please so tell than the then to us was we were what when where which who whom whose why will
with would yes you your about more explain
"""
"""Words that say nothing about what a question is about."""

STANDING = frozenset(LEANING.split())
SKIPPED = STANDING | frozenset(EMPTY.split())

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

SYSTEM = (
    "Rewrite the last message of the user as one question that can be understood without the conversation: "
    "put names in the place of words like it and they. Do not answer it. Write the question alone."
)

log = structlog.get_logger("pipeline.rag")


def standalone(turns: Sequence[str]) -> str:
    """The last of the user's turns, with the one before it where it leans on that."""
    last = turns[-1]
    return f"{turns[-2]}\n{last}" if len(turns) > 1 and leans(last) else last


def leans(text: str) -> bool:
    """Whether a turn says too little by itself, or stands on something said before: a rule for English."""
    words = [word.lower() for word in WORD.findall(text)]
    own = sum(word not in SKIPPED for word in words)
    return own < SHORT or (own <= FULL and any(word in STANDING for word in words))


async def rewritten(call: Call, edge: Edge, messages: Sequence[dict[str, Any]], model: str) -> str | None:
    """The last turn as a model writes it for itself alone, None where it fails to."""
    shown = [
        {"role": one["role"], "content": text[:SEEN]}
        for one in messages
        if one.get("role") in ("user", "assistant") and (text := text_of(one))
    ][-TURNS - 1 :]
    told = "\n".join(f"{one['role']}: {one['content']}" for one in shown)
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"<conversation>\n{told}\n</conversation>\n\nThe question:"},
        ],
        "max_tokens": 100,
        "temperature": 0,
    }
    try:
        reply = await edge(aside(call, "chat", body))
        text = reply.json["choices"][0]["message"]["content"] if reply.status == 200 else ""
    except (APIError, ValueError, LookupError, TypeError) as error:
        log.warning("question not rewritten", reason=str(error)[:200])
        return None
    line = next((line.strip() for line in (text or "").splitlines() if line.strip()), "")
    return line[:SEEN] or None


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, without images and the like."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or "" for part in content or () if part.get("type") == "text")

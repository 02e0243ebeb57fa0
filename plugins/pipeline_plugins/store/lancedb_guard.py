"""What LanceDB fails with, in words, and how long it is waited for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from pipeline_plugins.store.store import StoreFails

FAILURES = (OSError, RuntimeError, ValueError)
"""What LanceDB raises, a full disk and a damaged file included."""

OPENING = 15.0
"""Seconds for finding a collection; on its own LanceDB waits minutes for a server that is silent."""

READING = 60.0
WRITING = 300.0
"""Seconds for a search or a look, and for a commit."""

ANSWER = re.compile(r"<Code>(.+?)</Code>.*?<Message>(.+?)</Message>")
"""An object store's own words."""

SYSTEM = re.compile(r'kind: (?:Connect|Timeout)\b.*?message: \\?"([^"\\]+)')
"""What the operating system says of a connection."""

KNOWN = {
    "CredentialsNotLoaded": "there are no credentials for it",
    "BadScheme": "it is asked by plain http, which needs AWS_ALLOW_HTTP=true",
}
"""What is said where LanceDB gives a name alone."""

ADDRESS = re.compile(r"(?:uri: Some\(|Error performing [A-Z]+ )(https?://[^ )?]+)")

WRAPPING = re.compile(
    r"^(?:Invalid input, |lance error: |External error: |LanceError\(\w+\): |Generic \S+ error: )+"
)

LOCATION = re.compile(r"(?:, location: Location|,? /\S+\.rs:\d+).*", re.DOTALL)
"""Where in LanceDB's source it failed."""

log = structlog.get_logger("pipeline.rag")


@asynccontextmanager
async def guarded(seconds: float | None = None) -> AsyncIterator[None]:
    """What LanceDB fails with becomes `StoreFails`, and so does taking longer; the log says why."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except FAILURES as error:
        reason = reason_of(error)
        log.warning("the store of documents fails", error=type(error).__name__, reason=reason)
        raise StoreFails(reason) from None


def reason_of(error: Exception) -> str:
    """What went wrong, out of LanceDB's account of it."""
    text = str(error)
    if isinstance(error, TimeoutError) and not text:
        return "it did not answer in time"
    where = f" ({found[1]})" if (found := ADDRESS.search(text)) else ""
    for sign, words in KNOWN.items():
        if sign in text:
            return words
    if found := ANSWER.search(text):
        return f"{found[2].rstrip('.')}, {found[1]}{where}"
    if found := SYSTEM.search(text):
        return f"{found[1]}{where}"
    return WRAPPING.sub("", LOCATION.sub("", text))[:200]

"""Replies under a check: held until they are valid, followed at a distance, or only reported on."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pipeline import Call, Reply
from pipeline.errors import UpstreamFailed
from pipeline_plugins.validate.events import Event, read, text_of
from pipeline_plugins.validate.finding import (
    Finding,
    Path,
    Subject,
    by_path,
    joined,
    redacted,
    texts_of_reply,
    without,
)
from pipeline_plugins.validate.follow import Follower, Progress

if TYPE_CHECKING:
    from pipeline_plugins.validate.validator import Validator

__all__ = ["Held", "hold", "reported", "text_of", "windowed", "wrapped"]

EVENT_BYTES = 100
"""Bytes of a stream that may be held for each character that may be read: events are wordy."""


@dataclass(slots=True)
class Held:
    """A reply that nobody has seen yet, what its texts are, and what is wrong with them.

    `rest` are the events of a stream that was too long to be held, and is let through all the same.
    """

    reply: Reply
    subject: Subject
    failed: list[Finding]
    events: list[Event] = field(default_factory=list)
    rest: AsyncGenerator[Event, None] | None = None

    def release(self, *, redact: bool = False) -> Reply:
        """The reply as it came, or with what was found replaced."""
        inner = self.reply
        if inner.body is not None:
            if not redact:
                return inner
            reply = Reply.of(without(inner.json, self.subject.texts, self.failed), usage=inner.usage)
            reply.headers, reply.model = inner.headers, inner.model
            return reply
        if redact:
            _redact(self.events, self.failed)
        chunks = _replay([event.encode() for event in self.events], self.rest)
        return _like(inner, Closing(chunks, inner))


async def hold(validator: Validator[Any], call: Call, reply: Reply) -> Held:
    """Read all of a reply and check it. A stream that is wrong early is stopped, unless only flagged."""
    if reply.body is not None:
        try:
            subject = Subject("reply", call, texts_of_reply(reply.json))
        except ValueError:
            raise UpstreamFailed("The model's answer is not a JSON object.") from None
        return Held(reply, subject, await validator.check(subject))
    texts: dict[Path, list[str]] = {}
    held = Held(reply, Subject("reply", call), [])
    early = await _collect(validator, held, texts)
    held.subject.texts = [text_of(path, "".join(parts)) for path, parts in texts.items()]
    held.failed = early or await validator.check(held.subject)
    return held


async def _collect(validator: Validator[Any], held: Held, texts: dict[Path, list[str]]) -> list[Finding]:
    failure, limit = validator.config.on_failure, validator.config.max_characters
    follower = validator.follow(held.subject.call) if failure != "flag" else None
    characters = size = 0
    events = read(held.reply)
    try:
        async for event in events:
            held.events.append(event)
            size += len(event.block)
            for piece in event.pieces:
                texts.setdefault(piece.path, []).append(piece.text)
                characters += len(piece.text)
                if follower is not None:
                    progress = await follower.feed(piece.path, piece.text)
                    if progress.findings:
                        return progress.findings
            if failure != "redact":
                event.strip()
            if characters > limit or size > EVENT_BYTES * limit + 65_536:
                held.rest = events if failure == "flag" else None
                return [Finding(("choices", 0), f"has more than {limit} characters, which are not read")]
    finally:
        if held.rest is None:
            await events.aclose()
            await held.reply.aclose()
    return []


async def windowed(validator: Validator[Any], call: Call, inner: Reply) -> AsyncGenerator[bytes, None]:
    """A stream of which the last characters are held back until they were checked.

    Raises `ReplyRejected`, of which the server makes an error event, when it does not hold.
    """
    failed = False
    silent = Subject("reply", call)

    def act(found: list[Finding]) -> bool:
        nonlocal failed
        first, failed = not failed, True
        match validator.config.on_failure:
            case "redact" if all(finding.span for finding in found):
                if first:
                    validator.note(call, found, "redacted", passed=True)
                return True
            case "flag":
                if first:
                    validator.note(call, found, "flagged")
                return False
        raise validator.refuse(call, found)

    passing = followed(inner, validator.window(call), act, lambda: validator.check(silent))
    async with aclosing(passing) as chunks:
        async for chunk in chunks:
            yield chunk
    if not failed:
        validator.note(call, [], "passed")


async def followed(
    inner: Reply,
    follower: Follower,
    act: Callable[[list[Finding]], bool],
    silent: Callable[[], Awaitable[list[Finding]]] | None = None,
) -> AsyncGenerator[bytes, None]:
    """A stream as far as its follower has settled it.

    `act` says whether to replace what was found; `silent` finds what is wrong with an answer
    without any text.
    """
    flow = _Flow(follower, act)
    async with aclosing(read(inner)) as events:
        async for event in events:
            if event.done and silent is not None and not flow.said and (found := await silent()):
                act(found)
            await flow.take(event)
            for ready in flow.ready():
                yield ready.encode()
    await flow.finish()
    for ready in flow.ready():
        yield ready.encode()


class _Flow:
    """Events on their way: which are held, how much of each text is settled, what to replace."""

    def __init__(self, follower: Follower, act: Callable[[list[Finding]], bool]) -> None:
        self._follower = follower
        self._act = act
        self._held: deque[tuple[Event, list[tuple[int, int]]]] = deque()
        self._settled: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}
        self._open: set[Path] = set()
        self._found: dict[Path, list[Finding]] = {}

    @property
    def said(self) -> bool:
        """Whether there was any text."""
        return bool(self._lengths)

    async def take(self, event: Event) -> None:
        """Queue an event and have the follower read its pieces."""
        spans: list[tuple[int, int]] = []
        self._held.append((event, spans))
        for piece in event.pieces:
            start = self._lengths.get(piece.path, 0)
            self._lengths[piece.path] = end = start + len(piece.text)
            spans.append((start, end))
            self._open.add(piece.path)
            self._note(piece.path, await self._follower.feed(piece.path, piece.text))
        if event.done or event.ended:
            await self._end([p for p in self._open if event.done or p[1] in event.ended])

    async def finish(self) -> None:
        """The stream is over: settle what did not say that it ended."""
        await self._end(list(self._open))

    async def _end(self, paths: list[Path]) -> None:
        for path in paths:
            self._open.discard(path)
            self._note(path, await self._follower.end(path))

    def _note(self, path: Path, progress: Progress) -> None:
        self._settled[path] = progress.settled
        if progress.findings and self._act(progress.findings):
            self._found.setdefault(path, []).extend(progress.findings)

    def ready(self) -> list[Event]:
        """The events from the front whose texts are settled, with what was found replaced."""
        ready: list[Event] = []
        while self._held:
            event, spans = self._held[0]
            pieces = list(zip(event.pieces, spans, strict=True))
            if any(end > self._settled.get(piece.path, 0) for piece, (_, end) in pieces):
                break
            self._held.popleft()
            for piece, (start, end) in pieces:
                found = self._found.get(piece.path)
                if found:
                    event.write(piece, redacted(piece.text, found, start))
                    self._found[piece.path] = [f for f in found if f.span and f.span[1] > end]
            ready.append(event)
        return ready


async def reported(validator: Validator[Any], call: Call, inner: Reply) -> AsyncGenerator[bytes, None]:
    """A stream passed on as it comes, checked before its `[DONE]`.

    What failed goes into the record, the log, and a comment of the stream, which clients skip.
    """
    texts: dict[Path, list[str]] = {}
    size = 0
    last: list[Event] = []
    async with aclosing(read(inner)) as events:
        async for event in events:
            if event.done:
                last.append(event)
                continue
            for piece in event.pieces:
                size += len(piece.text)
                if size <= validator.config.max_characters:
                    texts.setdefault(piece.path, []).append(piece.text)
            yield event.encode()
    subject = Subject("reply", call, [text_of(path, "".join(parts)) for path, parts in texts.items()])
    if size > validator.config.max_characters:
        failed = [Finding((), f"more than {validator.config.max_characters} characters are not read")]
    else:
        failed = await validator.check(subject)
    validator.note(call, failed, "reported" if failed else "passed")
    if failed:
        yield f": x-pipeline-validate: {validator.name}=reported {len(failed)}\n\n".encode()
    for event in last:
        yield event.encode()


def _redact(events: list[Event], failed: list[Finding]) -> None:
    """Replace what was found in the pieces of a whole stream."""
    at: dict[Path, int] = {}
    left = {path: deque(joined(found)) for path, found in by_path(failed).items()}
    for event in events:
        for piece in event.pieces:
            start = at.get(piece.path, 0)
            at[piece.path] = end = start + len(piece.text)
            found = left.get(piece.path)
            while found and found[0].at[1] <= start:
                found.popleft()
            if found:
                here = takewhile(partial(_before, end), found)
                event.write(piece, redacted(piece.text, here, start))


def _before(end: int, finding: Finding) -> bool:
    return finding.at[0] < end


async def _replay(
    chunks: list[bytes], rest: AsyncGenerator[Event, None] | None
) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk
    if rest is not None:
        async with aclosing(rest) as events:
            async for event in events:
                yield event.encode()


def wrapped(inner: Reply, follow: Callable[[Reply], AsyncGenerator[bytes, None]]) -> Reply:
    """A streamed reply whose chunks come through `follow`; closing it closes the inner one."""
    outer: list[Reply] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        passing = follow(inner)
        try:
            async for chunk in passing:
                yield chunk
        finally:
            await passing.aclose()
            await inner.aclose()
            outer[0].usage = inner.usage

    outer.append(_like(inner, Closing(chunks(), inner)))
    return outer[0]


class Closing(AsyncGenerator[bytes, None]):
    """Chunks that close the reply they are read from, even if nobody began to read them."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], inner: Reply) -> None:
        self._chunks = chunks
        self._inner = inner

    def __aiter__(self) -> Closing:
        return self

    async def __anext__(self) -> bytes:
        return await self._chunks.__anext__()

    async def asend(self, value: None) -> bytes:
        """As `__anext__`: nothing can be sent."""
        return await self._chunks.__anext__()

    async def athrow(self, *error: Any) -> bytes:
        """Raise inside the chunks."""
        return await self._chunks.athrow(*error)

    async def aclose(self) -> None:
        """Stop reading and close the reply behind."""
        await self._chunks.aclose()
        await self._inner.aclose()


def _like(inner: Reply, chunks: AsyncGenerator[bytes, None]) -> Reply:
    return Reply(
        chunks=chunks, status=inner.status, headers=inner.headers, usage=inner.usage, model=inner.model
    )

"""Checking a text while it grows, and how much of it may be shown already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline_plugins.validate.finding import Finding, Path, joined


@dataclass(slots=True)
class Progress:
    """What was found, and up to which character the text is settled."""

    settled: int
    findings: list[Finding] = field(default_factory=list)


class Follower(Protocol):
    """Follows the texts of one reply, each under its path."""

    async def feed(self, path: Path, text: str) -> Progress:
        """Read the next piece of a text."""
        ...

    async def end(self, path: Path) -> Progress:
        """The text is complete."""
        ...


Check = Callable[[Path, str], Awaitable[list[Finding]]]


@dataclass(slots=True)
class _Tail:
    """The end of a text: `text` begins at character `start`; its first `shown` are settled."""

    text: str = ""
    start: int = 0
    shown: int = 0


class Window:
    """Settles a text except its last `size` characters, which are checked again with what follows.

    A match of at most `size` characters is so found before any of it is shown. Every
    character is checked three times at most, however long the text.
    """

    def __init__(self, size: int, check: Check) -> None:
        self._size = size
        self._check = check
        self._tails: dict[Path, _Tail] = {}

    async def feed(self, path: Path, text: str) -> Progress:
        """Read the next piece; look when twice the window has gathered."""
        tail = self._tails.setdefault(path, _Tail())
        tail.text += text
        if len(tail.text) - tail.shown < 2 * self._size:
            return Progress(tail.start + tail.shown)
        return await self._look(path, tail, self._size)

    async def end(self, path: Path) -> Progress:
        """Look at what is left."""
        return await self._look(path, self._tails.setdefault(path, _Tail()), 0)

    async def _look(self, path: Path, tail: _Tail, keep: int) -> Progress:
        found = await self._check(path, tail.text)
        mark = len(tail.text) - keep
        for one in joined(found):
            # What lies across the mark is seen whole the next time, unless it began before.
            if one.span is not None and tail.shown < one.span[0] < mark < one.span[1]:
                mark = one.span[0]
        parts = [self._part(one, tail, mark) for one in found]
        begin = max(0, mark - self._size)
        tail.text, tail.start, tail.shown = tail.text[begin:], tail.start + begin, mark - begin
        return Progress(tail.start + tail.shown, [part for part in parts if part is not None])

    def _part(self, finding: Finding, tail: _Tail, mark: int) -> Finding | None:
        """The part of a finding that is settled now, counted from the text's beginning."""
        if finding.span is None:
            return finding
        first, last = max(finding.span[0], tail.shown), min(finding.span[1], mark)
        if first >= last:
            return None
        return replace(finding, span=(tail.start + first, tail.start + last))

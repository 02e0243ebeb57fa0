"""`validate=length`: texts neither too short nor too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from pipeline import Call
from pipeline_plugins.validate.finding import ARGUMENTS, Finding, Path, Subject, Text
from pipeline_plugins.validate.follow import Progress
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator


class LengthPolicy(Policy):
    """How long."""

    piecewise = True

    least: int = Field(0, ge=0, le=64_000_000, description="Shortest text that passes.")
    most: int = Field(100_000, ge=1, le=64_000_000, description="Longest text that passes.")
    unit: Literal["characters", "words"] = Field("characters", description="What is counted.")

    @model_validator(mode="after")
    def _in_order(self) -> LengthPolicy:
        if self.least > self.most:
            raise ValueError("`least` is more than `most`")
        return self


class Length(Validator[LengthPolicy]):
    """Counts the characters or words of each text; a request's are those of its last user message."""

    Config = LengthPolicy
    inline = 65_536

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Texts whose length is out of bounds. A call of a tool is no text."""
        texts = subject.content
        if subject.side == "request":
            texts = [text for text in texts if text.role == "user"][-1:]
        elif not subject.texts:
            texts = [Text(("choices", 0, "message", "content"), "", "assistant")]
        for text in texts:
            count = self._count(text.text)
            if not self.config.least <= count <= self.config.most:
                yield self._finding(text.path, count)

    def follow(self, call: Call) -> LengthFollower:
        """Count as the text grows."""
        return LengthFollower(self)

    def _count(self, text: str) -> int:
        return len(text) if self.config.unit == "characters" else len(text.split())

    def _finding(self, path: Path, count: int) -> Finding:
        config = self.config
        wrong, limit = ("less", config.least) if count < config.least else ("more", config.most)
        return Finding(path, f"has {count} {config.unit}, {wrong} than the {limit} allowed")


class LengthFollower:
    """Knows that a stream is too long as soon as it is."""

    def __init__(self, check: Length) -> None:
        self._check = check
        self._last: dict[Path, str] = {}
        self._sizes: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}

    async def feed(self, path: Path, text: str) -> Progress:
        """Count one piece: a word that two pieces share counts once."""
        before = self._sizes.get(path, 0)
        self._sizes[path] = before + len(text)
        if path[-1] in ARGUMENTS.values():
            return Progress(self._sizes[path])
        if self._check.config.unit == "characters":
            count = self._sizes[path]
        else:
            count = self._counts.get(path, 0) + len(text.split())
            if self._last.get(path) and text[:1].strip():
                count -= 1
            self._last[path] = text[-1:].strip()
        self._counts[path] = count
        findings = [self._check._finding(path, count)] if count > self._check.config.most else []
        return Progress(self._sizes[path], findings)

    async def end(self, path: Path) -> Progress:
        """Whether it is long enough."""
        count = self._counts.get(path)
        short = count is not None and count < self._check.config.least
        return Progress(self._sizes.get(path, 0), [self._check._finding(path, count or 0)] if short else [])

"""`validate=regex`: patterns that must not, or must, occur. RE2 takes linear time whatever they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.problems import ConfigError
from pipeline_plugins.validate.finding import Finding, Subject
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

MEMORY = 1 << 23
"""Bytes that one compiled pattern may take."""

MATCHES = 1000
REDACTED = 100_000
"""Matches of one text that are looked at, or replaced; one with more fails."""


def _is_pattern(pattern: str) -> str:
    """Compile it where RE2 is installed; the stage says so where it is not."""
    with contextlib.suppress(ConfigError):
        engine = load("re2", "google-re2")
        try:
            compile_one(engine, pattern)
        except engine.error as error:
            why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            raise ValueError(f"it is no pattern of RE2: {why}") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_is_pattern)]


class RegexPolicy(Policy):
    """Which patterns."""

    redactable = piecewise = True

    forbid: list[Pattern] = Field(
        default_factory=list, max_length=256, description="RE2 patterns that must not occur."
    )
    require: list[Pattern] = Field(
        default_factory=list, max_length=256, description="RE2 patterns that must occur in every text."
    )
    ignore_case: bool = Field(False, description="Whether `a` matches `A`.")
    replacement: str = Field("***", max_length=256, description="What `redact` writes in place of a match.")

    @field_validator("require")
    @classmethod
    def _can_be_known(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if value and info.data.get("side") != "request":
            if info.data.get("on_failure") == "redact":
                raise ValueError("what is missing can't be redacted; expected `forbid`")
            if info.data.get("stream") == "window":
                raise ValueError(
                    "what must occur is known at the end only; expected `stream: buffer` or `after`"
                )
        return value

    @model_validator(mode="after")
    def _has_some(self) -> RegexPolicy:
        if not self.forbid and not self.require:
            raise ValueError("there is no pattern; expected `forbid` or `require`")
        return self


class Regex(Validator[RegexPolicy]):
    """Refuses texts in which a forbidden pattern occurs or a required one does not.

    RE2 knows no look-around and no references back; those are what makes others slow.
    """

    Config = RegexPolicy

    def prepare(self) -> None:
        """Compile the patterns."""
        self._forbidden = compiled(self.config.forbid, ignore_case=self.config.ignore_case)
        self._required = compiled(self.config.require, ignore_case=self.config.ignore_case)

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Forbidden matches with their spans, required ones that are missing without."""
        redacting = self.config.on_failure == "redact"
        bound = REDACTED if redacting else MATCHES
        for text in subject.texts:
            for pattern in self._forbidden:
                for number, found in enumerate(pattern.finditer(text.text)):
                    if number >= bound:
                        if redacting:
                            yield Finding(text.path, f"has more than {bound} matches to replace")
                        break
                    if found.end() > found.start():
                        what = f"matches the forbidden `{pattern.pattern}`"
                        yield Finding(text.path, what, found.span(), self.config.replacement)
        for text in subject.content:
            for pattern in self._required:
                if not pattern.search(text.text):
                    yield Finding(text.path, f"does not match the required `{pattern.pattern}`")


def compiled(patterns: list[str], *, ignore_case: bool = False) -> list[Any]:
    """Patterns compiled by RE2, which must take them. Raises `ConfigError` where it is missing."""
    engine = load("re2", "google-re2")
    return [compile_one(engine, pattern, ignore_case=ignore_case) for pattern in patterns]


def compile_one(engine: Any, pattern: str, *, ignore_case: bool = False) -> Any:
    """A pattern, within bounds of memory. Raises the engine's `error`."""
    options = engine.Options()
    options.log_errors = False
    options.max_mem = MEMORY
    options.case_sensitive = not ignore_case
    return engine.compile(pattern, options)

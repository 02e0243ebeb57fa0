"""`validate=regex`: patterns that must not, or must, occur. RE2 takes linear time whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from pipeline import Edge
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.validate.finding import Finding, Subject
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.validator import Validator

MEMORY = 1 << 23
"""Bytes that one compiled pattern may take."""

MATCHES = 1000
REDACTED = 100_000
"""Matches of one text that are looked at, or replaced; one with more fails."""

Pattern = Annotated[str, Field(min_length=1, max_length=4096)]


class RegexPolicy(Policy):
    """Which patterns."""

    forbid: list[Pattern] = Field(
        default_factory=list, max_length=256, description="RE2 patterns that must not occur."
    )
    require: list[Pattern] = Field(
        default_factory=list, max_length=256, description="RE2 patterns that must occur in every text."
    )
    ignore_case: bool = Field(False, description="Whether `a` matches `A`.")
    replacement: str = Field("***", max_length=256, description="What `redact` writes in place of a match.")


class Regex(Validator[RegexPolicy]):
    """Refuses texts in which a forbidden pattern occurs or a required one does not.

    RE2 knows no look-around and no references back; those are what makes others slow.
    """

    Config = RegexPolicy
    redacts = True

    def __init__(
        self,
        config: RegexPolicy,
        name: str,
        next: Edge,
        retry: Edge | None = None,
        fallback: Edge | None = None,
    ) -> None:
        super().__init__(config, name, next, retry, fallback)
        if not config.forbid and not config.require:
            raise ConfigError([Problem("forbid", "there is no pattern.", "Expected `forbid` or `require`.")])
        if config.require and config.on_failure == "redact":
            raise ConfigError(
                [Problem("require", "what is missing can't be redacted.", "Expected `forbid`.")]
            )
        self._forbidden = compiled(config.forbid, "forbid", ignore_case=config.ignore_case)
        self._required = compiled(config.require, "require", ignore_case=config.ignore_case)

    def can(self) -> frozenset[str]:
        """A part of a text tells nothing of what must occur in it."""
        return frozenset({"redact"} if self.config.require else {"redact", "window"})

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


def compiled(patterns: list[str], field: str, *, ignore_case: bool = False) -> list[Any]:
    """Patterns compiled by RE2. Raises `ConfigError` for one that it does not take."""
    re2 = load("re2", "google-re2")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MEMORY
    options.case_sensitive = not ignore_case
    result = []
    for index, pattern in enumerate(patterns):
        try:
            result.append(re2.compile(pattern, options))
        except re2.error as error:
            why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            problem = Problem(f"{field}.{index}", f"`{pattern[:100]}` is no pattern of RE2: {why}.")
            raise ConfigError([problem]) from None
    return result

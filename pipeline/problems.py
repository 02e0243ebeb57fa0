"""Mistakes in a configuration, said so that a person can mend them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(slots=True, frozen=True)
class Problem:
    """One mistake: `path` is the key in the config, `origin` the file or override it is from.

    `hint` says what would be right, where that is known.
    """

    path: str
    message: str
    hint: str = ""
    origin: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.origin, self.path) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} {self.hint}" if self.hint else text


class ConfigError(Exception):
    """The configuration can't be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the closest known word, or with all of them when none is close."""
    words = sorted(set(known))
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    if not words:
        return ""
    return "Known: " + ", ".join(f"`{w}`" for w in words) + "."

"""`validate=injection`: texts that try to take the model over, by what such texts look like."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from pipeline.kinds import Retrieved
from pipeline_plugins.validate.finding import Finding, Subject
from pipeline_plugins.validate.injection_signs import ONLY_RETRIEVED, SIGNS
from pipeline_plugins.validate.policy import Policy
from pipeline_plugins.validate.regex import compiled
from pipeline_plugins.validate.validator import Validator

BLOB = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")
BLOBS = 16
INVISIBLE = re.compile(
    "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")


Role = Literal["user", "tool", "system", "assistant", "function", "developer"]


class InjectionPolicy(Policy):
    """How sure to be."""

    piecewise = True

    side: Literal["request", "reply", "both"] = Field("request", description="What to check.")
    threshold: float = Field(
        0.8, gt=0, le=5, description="Sum of the signs' weights (0.6 to 1 each) from which a text fails."
    )
    roles: list[Role] = Field(
        default=["user", "tool", "function"],
        min_length=1,
        description="Whose messages are looked at; on a reply the model's are.",
    )
    retrieved: bool = Field(True, description="Look at the passages that `rag` added, too.")


class Injection(Validator[InjectionPolicy]):
    """Adds up signs of an attack in each text: heuristics that catch what is common.

    Texts are normalised first (compatibility forms, invisible characters), and what is
    written in base64 or in invisible tags is read. A determined writer gets around it.
    """

    Config = InjectionPolicy

    def prepare(self) -> None:
        """Compile the signs."""
        self._signs: list[tuple[str, float, list[Any]]] = [
            (sign, weight, compiled(patterns, ignore_case=True)) for sign, (weight, patterns) in SIGNS.items()
        ]

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Texts whose signs weigh too much."""
        reply = subject.side == "reply"
        for text in subject.texts:
            looked_at = reply or text.role in self.config.roles
            given = text.role in ("tool", "function")
            if looked_at and (what := self._what(text.text, retrieved=given)) is not None:
                yield Finding(text.path, what)
        retrieved = subject.call.record.decision(Retrieved) if self.config.retrieved and not reply else None
        for index, passage in enumerate(retrieved.texts if retrieved else ()):
            if (what := self._what(passage, retrieved=True)) is not None:
                yield Finding(("retrieved", index), what)

    def _what(self, text: str, *, retrieved: bool) -> str | None:
        score, signs = self.score(text, retrieved=retrieved)
        if score < self.config.threshold:
            return None
        return f"looks like an attempt to take the model over: it {' and '.join(signs)}"

    def score(self, text: str, *, retrieved: bool = False) -> tuple[float, list[str]]:
        """The weight of all signs in a text, and which they are."""
        shown, hidden = plain(text)
        score, signs = 0.0, []
        if hidden:
            score, signs = 0.8, ["has hidden text"]
        for sign, weight, patterns in self._signs:
            if sign in ONLY_RETRIEVED and not retrieved:
                continue
            if any(pattern.search(one) for one in (shown, *hidden) for pattern in patterns):
                score += weight
                signs.append(sign)
        return score, signs


def plain(text: str) -> tuple[str, list[str]]:
    """A text as it reads, and what is hidden in it: invisible tags, words in base64."""
    hidden = ["".join(chr(ord(c) - 0xE0000) for c in m[0]) for m in TAGS.finditer(text)]
    shown = re.sub(r"[^\S\n]+", " ", INVISIBLE.sub("", unicodedata.normalize("NFKC", text)))
    words = (_decoded(m[0]) for m, _ in zip(BLOB.finditer(shown), range(BLOBS), strict=False))
    blobs = [word for word in words if word is not None]
    return "\n".join([shown, *blobs]), hidden


def _decoded(blob: str) -> str | None:
    """What a word in base64 says, if it is text."""
    try:
        text = base64.b64decode(blob[: len(blob) // 4 * 4], validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text if text.isprintable() else None

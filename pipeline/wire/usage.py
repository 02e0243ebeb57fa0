"""Token counts, and finding them in a reply without parsing it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jiter

_DECODER = json.JSONDecoder()

MOST = 1_000_000_000
"""Tokens that a call can have: an upstream that counts more is not believed, for sums would not hold it."""


@dataclass(slots=True, frozen=True)
class Usage:
    """Tokens of one call; `cached_tokens` are the part of the prompt read from a cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, Any]:
        """The wire form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Usage | None:
        """Read the wire form; None when the counts are missing, or none that a call can have."""
        details = value.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        counts = (value.get("prompt_tokens"), value.get("completion_tokens") or 0, cached or 0)
        if not all(type(n) is int and 0 <= n <= MOST for n in counts):
            return None
        return cls(*counts)  # type: ignore[arg-type]


def find_usage(data: bytes) -> Usage | None:
    """The last `"usage": {…}` object in a body or in the end of a stream.

    Inside a JSON string the quotes would be escaped, so text cannot be mistaken for it.
    """
    at = data.rfind(b'"usage":')
    if at < 0:
        return None
    rest = data[at + 8 :]
    try:
        # As a rule it is the last field, and only the brace around it follows.
        value = jiter.from_json(rest[: rest.rindex(b"}")])
    except ValueError:
        try:
            value, _ = _DECODER.raw_decode(rest.decode().lstrip())
        except ValueError:
            return None
    return Usage.from_dict(value) if isinstance(value, dict) else None

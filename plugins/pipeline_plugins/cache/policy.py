"""Which calls a cache may answer and remember: by config, by key, by the request's own headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call
from pipeline.errors import InvalidRequest
from pipeline_plugins.cache.store import MAX_TTL

When = Literal["deterministic", "always", "never"]

COLD = 0.1
"""Below this temperature answers count as deterministic."""

FIXED = frozenset({"embedding", "rerank"})
"""Operations that sample nothing."""

MAX_TAGS = 8
TAG = re.compile(r"[A-Za-z0-9_.:@/-]{1,64}")
MAX_AGE = re.compile(r"max-age\s*=\s*\"?([0-9]{1,9})\"?")


class KeyTerms(BaseModel):
    """What a key may set for caches, in place of their configuration; None where that decides."""

    model_config = ConfigDict(extra="forbid")

    when: When | None = Field(None, description="Which calls: `deterministic`, `always`, `never`.")
    ttl: float | None = Field(
        None, strict=True, gt=0, le=MAX_TTL, description="Seconds to remember answers for."
    )


@dataclass(slots=True, frozen=True)
class Terms:
    """What the cache may do for one call.

    read     answer it from the store
    write    remember its answer
    ttl      seconds to remember it for
    max_age  seconds that the answer given may be old, None for any age
    tags     what the entry may be invalidated by, too
    """

    read: bool = True
    write: bool = True
    ttl: float = 3600.0
    max_age: float | None = None
    tags: tuple[str, ...] = ()


class Policy:
    """Decides the terms of each call.

    `when` and `ttl` are the config's; a key may replace both, see `KeyTerms`. Headers of a
    request: `cache-control: no-cache` asks for a new answer, which is remembered; `no-store` is
    answered if it is known, and not remembered; `max-age=N` takes no older answer.
    `x-pipeline-cache-tags: a, b` names tags.
    """

    def __init__(self, *, when: When, ttl: float) -> None:
        self.when: When = when
        self._default = Terms(ttl=ttl)

    def terms(self, call: Call) -> Terms | None:
        """The terms of a call, None if the cache has no part in it.

        Raises `InvalidRequest` for tags that can't be used.
        """
        terms = self._default
        when = self.when
        if call.tenant.policy and (own := call.tenant.policy.get("cache")):
            when, terms = _of_key(own, when, terms)
        if when == "never" or (when == "deterministic" and not deterministic(call)):
            return None
        headers = call.headers
        if (control := headers.get("cache-control")) is not None:
            terms = _controlled(control.lower(), terms)
            if not terms.read and not terms.write:
                return None
        if (tags := headers.get("x-pipeline-cache-tags")) is not None:
            terms = replace(terms, tags=tags_of(tags))
        return terms


def deterministic(call: Call) -> bool:
    """Whether a call is meant to have the same answer each time."""
    if call.operation in FIXED:
        return True
    temperature = call.body.get("temperature")
    if temperature is not None and temperature < COLD:
        return True
    return call.body.get("seed") is not None


def _of_key(own: Mapping[str, Any], when: When, terms: Terms) -> tuple[When, Terms]:
    if own.get("when") in ("deterministic", "always", "never"):
        when = own["when"]
    ttl = own.get("ttl")
    if isinstance(ttl, (int, float)) and 0 < ttl <= MAX_TTL:
        terms = replace(terms, ttl=float(ttl))
    return when, terms


def _controlled(control: str, terms: Terms) -> Terms:
    directives = {part.strip() for part in control.split(",")}
    age = MAX_AGE.search(control)
    return replace(
        terms,
        read=terms.read and "no-cache" not in directives,
        write=terms.write and "no-store" not in directives,
        max_age=float(age[1]) if age is not None else terms.max_age,
    )


def tags_of(header: str) -> tuple[str, ...]:
    """The tags in a header. Raises `InvalidRequest` for too many or for odd characters."""
    tags = tuple(dict.fromkeys(tag for part in header.split(",") if (tag := part.strip())))
    if len(tags) > MAX_TAGS or not all(TAG.fullmatch(tag) for tag in tags):
        raise InvalidRequest(
            f"`x-pipeline-cache-tags` takes up to {MAX_TAGS} tags of 64 letters, digits and `_.:@/-`.",
            param="x-pipeline-cache-tags",
            code="invalid_header",
        )
    return tags

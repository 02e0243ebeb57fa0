"""A key: what its owner holds, and what the gateway keeps of it.

The owner holds `sk-ID-SECRET`, with 256 random bits in SECRET; the gateway keeps the SHA-256
of the whole. Passwords need a slow hash because people choose them from few; 2^256 secrets
can't be tried, however fast the hash is, and a fast one can be computed for each request.
ID is public: it finds the record, so that the secret's digest is compared with one other
only, in constant time. Rotation changes the secret and keeps the ID: spend, limits and
caches go on under it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline.call import Tenant
from pipeline_plugins.cache.policy import KeyTerms

MAX_LENGTH = 256
"""Characters of a key that are looked at; longer ones are no keys."""

HELD = re.compile(r"sk-([0-9a-f]{12})-[A-Za-z0-9_-]{43}", re.ASCII)

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$", strict=True)
]
Moment = Annotated[int, Field(ge=0, le=253_402_300_799, strict=True)]
"""Seconds since 1970, until the year 9999."""
Count = Annotated[int, Field(ge=1, le=10**12, strict=True)]
Dollars = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)]
Names = Annotated[list[Name], Field(min_length=1, max_length=256)]
Tags = Annotated[dict[Name, Name], Field(max_length=32)]


class Limits(BaseModel):
    """What a key may use; None where the configuration alone decides."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: Count | None = Field(None, description="Requests per minute.")
    tokens_per_minute: Count | None = Field(None, description="Tokens per minute, prompt and answer.")
    concurrent: Count | None = Field(None, description="Requests at the same time.")
    usd_per_day: Dollars | None = Field(None, description="US dollars per day.")
    usd_per_month: Dollars | None = Field(None, description="US dollars per month.")


class KeySpec(BaseModel):
    """What is said of a key when it is created."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="What the key is for.")
    owner: Name = Field(description="Whom it is issued to; several keys may share an owner.")
    models: Names | None = Field(None, description="Models it may use, by name or alias; null for all.")
    limits: Limits = Field(default_factory=Limits, description="Limits and budgets of this key.")
    cache: KeyTerms = Field(default_factory=KeyTerms, description="What the key sets for caches.")
    tags: Tags = Field(default_factory=dict, description="For reports: team, purpose.")
    expires_at: Moment | None = Field(None, description="Seconds since 1970 at which it ends.")


class KeyChange(BaseModel):
    """What of a key is to be changed; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field("", description="What the key is for.")
    owner: Name = Field("", description="Whom it is issued to.")
    models: Names | None = Field(None, description="Models it may use; null for all.")
    limits: Limits = Field(default_factory=Limits, description="All of its limits, in place of the old.")
    cache: KeyTerms = Field(default_factory=KeyTerms, description="What the key sets for caches.")
    tags: Tags = Field(default_factory=dict, description="For reports: team, purpose.")
    expires_at: Moment | None = Field(None, description="Seconds since 1970 at which it ends.")


class Former(BaseModel):
    """The secret before a rotation, good until its grace ends."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    until: Moment


class Key(KeySpec):
    """A key as it is stored. `revision` orders all changes of a store; 0 is not stored yet."""

    id: str
    digest: str
    created_at: Moment
    rotated_at: Moment | None = None
    revoked_at: Moment | None = None
    former: Former | None = None
    revision: int = Field(0, ge=0)

    def tenant(self) -> Tenant:
        """Who asks with this key."""
        policy: dict[str, Mapping[str, Any]] = {}
        if limits := self.limits.model_dump(exclude_none=True):
            policy["limit"] = limits
        if cache := self.cache.model_dump(exclude_none=True):
            policy["cache"] = cache
        models = None if self.models is None else frozenset(self.models)
        return Tenant(self.id, self.owner, tuple(sorted(self.tags.items())), models, policy)

    def status(self, now: float) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def shown(self, now: float) -> dict[str, Any]:
        """All that may be told of it: not the digests."""
        former = {"former_until": self.former.until if self.former is not None else None}
        kept = self.model_dump(exclude={"digest", "former", "revision"})
        return {"object": "key", "id": kept.pop("id"), "status": self.status(now), **kept, **former}


def mint(id: str | None = None) -> tuple[str, str]:
    """A new secret, as `(id, sk-ID-SECRET)`; for the key `id`, if one is given."""
    id = id or secrets.token_hex(6)
    return id, f"sk-{id}-{secrets.token_urlsafe(32)}"


def digest_of(held: str) -> bytes:
    """SHA-256 of a key as its owner sends it."""
    return sha256(held.encode("utf-8", "surrogatepass")).digest()


def id_of(held: str) -> str | None:
    """The public id in a key, None if this is not the form of one."""
    found = HELD.fullmatch(held)
    return found[1] if found is not None else None


def redacted(held: str) -> str:
    """A key as errors may show it."""
    id = id_of(held)
    return f"sk-{id}-***" if id is not None else "***"

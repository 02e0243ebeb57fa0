"""Masking what must not be read in log lines: keys, passwords, addresses of people, configured secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from pipeline.secrets import CREDENTIALS, NAMES

MASK = "***"

SHORTEST = 6
"""Characters that a configured secret has at least to be looked for: a shorter one is in every word."""

KEYS = re.compile(
    r"\b(?:(sk-)[\w-]{16,}|(gh[opsu]_|github_pat_|hf_)\w{16,}|(xox[abprs]-)[\w-]{10,}|(AKIA)[A-Z0-9]{16}"
    r"|(AIza)[\w-]{30,}|(eyJ)[\w-]{8,}\.[\w-]+\.[\w-]*)",
    re.ASCII,
)
"""Keys by the shapes that their issuers give them, and tokens of JSON (JWT). What they begin with stays."""

SCHEMES = re.compile(r"\b(bearer|basic)\s+[\w.~+/-]{6,}=*", re.IGNORECASE | re.ASCII)
"""What stands behind the scheme of an authorization header."""

NAMED = re.compile(
    rf"""({NAMES.pattern.removesuffix("$")}\\?["']?\s*[=:]\s*\\?["']?)([^\s"',;&)}}\]\\]+)""", re.IGNORECASE
)
"""A value behind the name of something secret: `api_key=…`, `"password": "…"`."""

EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63})+", re.ASCII)

SAFE = frozenset({"request_id", "trace_id"})
"""Fields that are made here, and differ in each line."""

REMEMBERED = 4096
"""Short texts known to hold nothing: most of what is logged are the same few words."""

NUMBERS = frozenset({int, float})


class Redactor:
    """Masks patterns, and the secrets that it was told of."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()
        self._clean: set[str] = set()
        self._names: set[str] = set()

    def conceal(self, secrets: Iterable[str]) -> None:
        """Mask these wherever they stand, as they are and as JSON writes them."""
        forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1])}
        known = {form for form in forms if len(form) >= SHORTEST}.union(self._secrets)
        self._secrets = tuple(sorted(known, key=len, reverse=True))
        self._clean.clear()

    def redact(self, text: str) -> str:
        """The text with what is secret or personal in it masked."""
        if text in self._clean:
            return text
        masked = text
        for secret in self._secrets:
            masked = masked.replace(secret, MASK)
        if "@" in masked:
            masked = EMAIL.sub(f"{MASK}@{MASK}", CREDENTIALS.sub(MASK, masked))
        masked = KEYS.sub(lambda found: f"{found[found.lastindex or 0]}{MASK}", masked)
        masked = NAMED.sub(_mask_value, SCHEMES.sub(rf"\1 {MASK}", masked))
        if masked == text and len(text) <= 64:
            if len(self._clean) >= REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return masked

    def mask(self, event: MutableMapping[str, Any]) -> None:
        """Redact a line's fields in place: texts wherever they are, and all of what has a secret's name."""
        clean, names = self._clean, self._names
        if not event.keys() <= names:
            self._mask_named(event)
        for key, value in event.items():
            kind = type(value)
            if kind is str:
                if value in clean or key in SAFE:
                    continue
            elif kind in NUMBERS or (
                kind is dict and value.keys() <= names and NUMBERS.issuperset(map(type, value.values()))
            ):
                continue
            event[key] = self._value(value)

    def _mask_named(self, event: MutableMapping[str, Any]) -> None:
        for key in event.keys() - self._names:
            if NAMES.search(key):
                event[key] = None if event[key] is None else MASK
            elif len(self._names) < REMEMBERED:
                self._names.add(key)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact(value)
        if value is None or isinstance(value, (int, float)):
            return value
        if isinstance(value, Mapping):
            inner = {self.redact(str(key)): one for key, one in value.items()}
            self.mask(inner)
            return inner
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(inner) for inner in value]
        return self.redact(str(value))


def _mask_value(found: re.Match[str]) -> str:
    before, value = found[1], found[found.lastindex or 0]
    # The name of a scheme is no secret, and what stands behind it is masked already.
    return found[0] if value.lower() in ("bearer", "basic", MASK) else before + MASK


redactor = Redactor()
"""That of this process: what configurations hold is added to it when they are checked."""

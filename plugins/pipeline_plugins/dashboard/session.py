"""Who has logged in: signed tokens for a cookie, and a bound on wrong keys.

A token is `EXPIRES.NONCE.MAC`. Nothing is kept of it, so that every worker takes the tokens
of the others, and they outlive a restart. The key that signs them is made of a random file
and of the configuration of whatever authenticates: a new administrator's key ends all sessions.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest, digest
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr

from pipeline.graph import Graph

COOKIE = "pipeline_dashboard"

KEY_BYTES = 32

MINUTE = 60.0

CLIENTS = 1024
"""Addresses of which wrong keys are remembered; the oldest makes room."""

ALL = 20
"""How many times one client's wrong keys all clients together may send in a minute."""


class Sessions:
    """Makes and checks tokens that are good for some `seconds`."""

    def __init__(self, key: bytes, seconds: float) -> None:
        self.seconds = seconds
        self._key = key

    def begin(self) -> str:
        """A new token."""
        told = f"{int(time.time() + self.seconds):x}.{secrets.token_urlsafe(16)}"
        return f"{told}.{self._mac(told)}"

    def good(self, token: str) -> bool:
        """Whether a token was made here and has not expired."""
        told, _, mac = token.rpartition(".")
        if not token.isascii() or not compare_digest(mac, self._mac(told)):
            return False
        return int(told.partition(".")[0], 16) > time.time()

    def _mac(self, told: str) -> str:
        return digest(self._key, told.encode(), "sha256").hex()


class Attempts:
    """Counts keys that clients try: after `bound` wrong ones in a minute one has to wait."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._wrong: dict[str, list[float]] = {}

    def wait(self, client: str) -> float:
        """Seconds for which a client may not try another key, 0 if it may."""
        now = time.monotonic()
        own = self._recent(client, now)
        everyone = [moment for moments in self._wrong.values() for moment in moments if moment > now - MINUTE]
        if len(own) >= self._bound:
            return own[0] + MINUTE - now
        if len(everyone) >= self._bound * ALL:
            return min(everyone) + MINUTE - now
        return 0.0

    def begin(self, client: str) -> None:
        """Count a key before it is checked: those that are checked at the same time count, too."""
        now = time.monotonic()
        own = self._recent(client, now)
        self._wrong.pop(client, None)
        self._wrong[client] = [*own, now]
        if len(self._wrong) > CLIENTS:
            del self._wrong[next(iter(self._wrong))]

    def succeeded(self, client: str) -> None:
        """Forget a client's wrong keys: it has the right one."""
        self._wrong.pop(client, None)

    def _recent(self, client: str, now: float) -> list[float]:
        return [moment for moment in self._wrong.get(client, ()) if moment > now - MINUTE]


def signing_key(path: Path, graph: Graph) -> bytes:
    """The key of a graph's sessions. Makes the file where it is missing; raises OSError.

    Where nothing authenticates nobody logs in, and no file is needed.
    """
    authenticators = {found.plugin_name for found in graph.plugins.hook.pipeline_authenticate.get_hookimpls()}
    if not authenticators:
        return secrets.token_bytes(KEY_BYTES)
    configured = {
        part.name: _revealed(part.config) for part in graph.plan.extensions if part.name in authenticators
    }
    return digest(_stored(path), orjson.dumps(configured, option=orjson.OPT_SORT_KEYS), "sha256")


def _stored(path: Path) -> bytes:
    """The random bytes in a file of the owner's alone, the same ones for every process."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as made:
            made.write(secrets.token_bytes(KEY_BYTES))
            made.flush()
            os.fsync(made.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(made.name, path)
    found = path.read_bytes()
    if len(found) < KEY_BYTES:
        raise OSError(f"`{path}` holds no key of {KEY_BYTES} bytes; remove it, and a new one is made")
    return sha256(found).digest()


def _revealed(value: Any) -> Any:
    """A configuration as plain values, secrets included: for a digest alone."""
    if isinstance(value, SecretStr | SecretBytes):
        return str(value.get_secret_value())
    if isinstance(value, BaseModel):
        return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _revealed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_revealed(inner) for inner in value]
    return str(value)

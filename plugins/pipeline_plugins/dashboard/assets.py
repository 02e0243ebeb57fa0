"""The page's files, as they ship in the package: read once, sent compressed, checked by digest."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from pipeline.errors import NotFound

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""What the page may load and do: nothing from elsewhere, no script but the package's files, and
no text made into markup."""

GUARDED = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every answer to a browser."""

TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "LICENSE": b"text/plain; charset=utf-8",
}

FOLDERS = ("", "sections", "vendor")


@dataclass(slots=True, frozen=True)
class Asset:
    """One file: as it is, compressed, and its digest in the form of an `etag`."""

    type: bytes
    body: bytes
    packed: bytes
    tag: bytes


class Assets:
    """All files by their path below `static`; read when the first is asked for."""

    def __init__(self) -> None:
        self._known: dict[str, Asset] = {}

    def find(self, path: str) -> Asset:
        """A file. Raises `NotFound`."""
        if not self._known:
            self._known = dict(_read())
        asset = self._known.get(path)
        if asset is None:
            raise NotFound("The dashboard has no such file.")
        return asset

    async def send(self, path: str, scope: Any, send: Any) -> None:
        """Answer with a file, or say that the browser's own is the newest."""
        asset = self.find(path)
        asked = dict(scope["headers"])
        head = [
            (b"etag", asset.tag),
            (b"cache-control", b"no-cache"),
            (b"vary", b"accept-encoding"),
            *GUARDED,
        ]
        if asked.get(b"if-none-match") == asset.tag:
            await send({"type": "http.response.start", "status": 304, "headers": head})
            await send({"type": "http.response.body", "body": b""})
            return
        packed = b"gzip" in asked.get(b"accept-encoding", b"")
        body = asset.packed if packed else asset.body
        head += [(b"content-type", asset.type), (b"content-length", str(len(body)).encode())]
        if packed:
            head.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})


def _read() -> Iterable[tuple[str, Asset]]:
    root = files("pipeline_plugins.dashboard") / "static"
    for folder in FOLDERS:
        place = root / folder if folder else root
        for entry in place.iterdir():
            kind = TYPES.get(entry.name.rpartition(".")[2])
            if kind is None or not entry.is_file():
                continue
            body = entry.read_bytes()
            tag = b'"%b"' % sha256(body).hexdigest()[:16].encode()
            path = f"{folder}/{entry.name}" if folder else entry.name
            yield path, Asset(kind, body, gzip.compress(body, 9, mtime=0), tag)

"""Files of a run, written whole or not at all and readable by their owner alone; digests of others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import yaml

from pipeline_plugins.whole_file import replacing


def write(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people to read."""
    write(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str))


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML for people to read."""
    write(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def digest_of(value: Any) -> str:
    """SHA-256 of plain values, the same for equal ones."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


class Digests:
    """SHA-256 of large files, each read once as long as its size and time of change stay."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found: Any = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            found = None
        self._known: dict[str, list[Any]] = found if isinstance(found, dict) else {}

    def of(self, file: Path) -> str:
        """The digest of a file's content."""
        found = file.stat()
        key, now = str(file.resolve()), [found.st_size, found.st_mtime_ns]
        known = self._known.get(key)
        if known is not None and known[:2] == now:
            return str(known[2])
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        self._known[key] = [*now, digest]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._known)
        return digest

"""Files made from a model's files once and kept for the next start: converted weights, graphs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 24 * 3600.0
"""Age at which a temporary file is taken for left over by a process that was killed."""

WHOLE_BYTES = 1 << 30
END_BYTES = 64 << 20


def cache_folder(given: str | None = None) -> Path:
    """Where derived files are kept: as configured, else in the user's cache folder."""
    if given:
        return Path(given).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "llm-pipeline"


def digest_of(path: Path, *more: object) -> str:
    """A short hex key of a file's content and of whatever else the derived file depends on.

    Of a file so large that reading it takes seconds, it is both ends and the time of change.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= WHOLE_BYTES:
            digest = hashlib.file_digest(file, "sha256")
        else:
            digest = hashlib.sha256(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            digest.update(file.read(END_BYTES))
            more = (*more, status.st_size, status.st_mtime_ns)
    digest.update(repr(more).encode())
    return digest.hexdigest()[:32]


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote; None when there is no such file or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    seal, body = content[:32], memoryview(content)[32:]
    return bytes(body) if hashlib.sha256(body).digest() == seal else None


def write_sealed(path: Path, body: bytes) -> None:
    """Write a file with its digest in front, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_stale(path.parent)
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, that takes the name `path` when the block ends well, and durably.

    Where another process was faster, its folder stays and this one is dropped. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_stale(path.parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{path.name}-", suffix=".tmp", dir=path.parent))
    try:
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(folder)
        try:
            os.rename(folder, path)
        except OSError:
            if not path.is_dir():
                raise
        sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def drop_stale(folder: Path) -> None:
    """Remove temporary files and folders that a killed process left a day ago or earlier."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

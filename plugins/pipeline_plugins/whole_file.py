"""Files that are written whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """What is written takes a file's place once it is whole: in a temporary one, forced to the disk.

    `mode` is what the umask leaves of it. Raises `OSError` that names the file, which then is what it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise named(error, path) from None
        raise


def named(error: OSError, path: Path) -> OSError:
    """An error with the file in it: what is written to a descriptor doesn't know its name."""
    return OSError(error.errno, error.strerror, str(path))

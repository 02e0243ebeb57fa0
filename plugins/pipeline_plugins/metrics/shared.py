"""The numbers of all worker processes of a server, those that have ended included.

Each worker has a file of its own in a folder that they share, locked while it lives. What a
worker counted that is no more is put into one file when another begins, so that a worker
that keeps crashing leaves no pile: exactly once, whenever the one that does it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import orjson

from pipeline_plugins.metrics.cells import NAMES, VALUES, Cells, family_of, read_files
from pipeline_plugins.metrics.family import Sampled, Snapshot, merge

ENDED = "ended.json"
"""What was counted by workers that have ended, and the names of their files."""

LOCK = "lock"


class Folder:
    """The folder of the workers' files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def join(self) -> Cells:
        """Begin a file, after putting away those that nobody writes any more. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with self._locked(fcntl.LOCK_EX):
            self._put_away()
            return Cells(self.folder / secrets.token_hex(8))

    def read(self) -> Snapshot:
        """What all have counted, as one."""
        with self._locked(fcntl.LOCK_SH):
            total, done = self._ended()
            for path in self._files():
                if path.stem not in done:
                    with contextlib.suppress(OSError):
                        merge(total, read_files(path), gauges=_lives(path))
        return total

    def _put_away(self) -> None:
        total, done = self._ended()
        names = []
        for path in self._files():
            if path.stem not in done:
                if _lives(path):
                    continue
                with contextlib.suppress(OSError):
                    merge(total, read_files(path), gauges=False)
            names.append(path.stem)
        if not names:
            return
        content = {
            "done": names,
            "families": [[one.family, list(one.samples.items())] for one in total.values()],
        }
        new = self.folder / f"{ENDED}.new"
        new.write_bytes(orjson.dumps(content))
        new.replace(self.folder / ENDED)
        for name in names:
            for end in (NAMES, VALUES):
                self.folder.joinpath(name + end).unlink(missing_ok=True)

    def _ended(self) -> tuple[Snapshot, set[str]]:
        try:
            content = orjson.loads(self.folder.joinpath(ENDED).read_bytes())
        except FileNotFoundError:
            return {}, set()
        found: Snapshot = {}
        for fields, samples in content["families"]:
            family = family_of(fields)
            found[family.name] = Sampled(family, {tuple(labels): numbers for labels, numbers in samples})
        return found, set(content["done"])

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{VALUES}"))

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, how)
            yield
        finally:
            os.close(file)


def _lives(path: Path) -> bool:
    """Whether a process still counts into a file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False

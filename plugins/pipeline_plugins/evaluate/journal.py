"""Outcomes on disk while a run is under way: a line of JSON each, appended as they come."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from pipeline_plugins.evaluate.example import Outcome
from pipeline_plugins.whole_file import named

FSYNC_EVERY = 1.0
"""Seconds: what a power failure may take. A process that is killed loses nothing."""


class Busy(ValueError):
    """Another process writes to the same run."""


class Journal:
    """The file `examples.jsonl` of a run. A line that was cut short is dropped when it is opened."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._synced = monotonic()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise Busy(f"another process is running in {path.parent}.") from None
        if not os.fstat(self._file).st_nlink:
            os.close(self._file)
            raise Busy(f"another process has just ended in {path.parent}.")
        if fresh:
            os.ftruncate(self._file, 0)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)
        lines = content[:whole].splitlines()
        self.known: dict[str, Outcome] = {one.id: one for one in map(_read, lines)}

    def add(self, outcome: Outcome) -> None:
        """Append one outcome, in place of an earlier one. It is the kernel's when this returns."""
        line = orjson.dumps(asdict(outcome), option=orjson.OPT_APPEND_NEWLINE)
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise named(error, self._path) from None
        if monotonic() - self._synced >= FSYNC_EVERY:
            os.fsync(self._file)
            self._synced = monotonic()
        self.known[outcome.id] = outcome

    def remove(self) -> None:
        """Delete it: the run is complete. Until it is closed nobody else may begin one here."""
        self._path.unlink()

    def close(self) -> None:
        """Force what was written to the disk, and let others write."""
        os.fsync(self._file)
        os.close(self._file)


def _read(line: bytes) -> Outcome:
    fields: dict[str, Any] = orjson.loads(line)
    fields["passages"] = tuple(fields["passages"])
    return Outcome(**fields)

"""The journal: what was spent, one line a call, on its way into the accounts.

A line is written with one `write` before its reply is handed on, so that it is in the
kernel's hands whatever becomes of the process. Each process appends to files of its own;
any process may read them all. A file is locked while its process lives; one that nobody
holds and whose lines are all in the accounts is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson
import structlog

ROTATED = 8 * 1024 * 1024
"""Bytes after which a file is left for a new one, so that it can be removed."""

READ = 128 * 1024
"""Bytes read, and added to the accounts in one transaction, at a time; far more than a line has."""

Sync = Literal["never", "interval", "always"]

log = structlog.get_logger("pipeline.price")


@dataclass(slots=True, frozen=True, order=True)
class Account:
    """What is counted apart. `tags` is a JSON object with its keys in order."""

    day: str
    key: str
    owner: str
    model: str
    tags: str


COLUMNS = ("calls", "prompt", "cached", "completion", "usd", "estimated", "saved_cache", "saved_route")
"""What is counted: calls, tokens, and nano-USD (`estimated` is the part of `usd` that is)."""

Totals = dict[Account, list[int]]
"""Counts in the order of `COLUMNS`; whole numbers, so that sums are exact."""


@dataclass(slots=True)
class Batch:
    """Lines of one file from byte `start` to `end`, summed up; `reservations` that they settle."""

    file: str
    start: int
    end: int
    totals: Totals = field(default_factory=dict)
    reservations: list[str] = field(default_factory=list)


def line(tenant: tuple[str, str, str, str], reservations: list[str], rows: list[list[object]]) -> bytes:
    """A journal line: (day, key, owner, tags), and for each model its name and counts."""
    return orjson.dumps([tenant, reservations, rows]) + b"\n"


class Journal:
    """Appends lines to a file that is this process's own.

    folder  where the files of all processes are
    sync    `never` leaves it to the kernel when lines reach the disk; `interval` has
            `flush` wait for the disk; `always` does so for each line
    """

    def __init__(self, folder: Path, sync: Sync) -> None:
        self.folder = folder
        self.sync = sync
        self.name = ""
        self.unwritten: list[bytes] = []
        self._file = -1
        self._size = 0
        self._torn = False

    def open(self) -> None:
        """Begin a file. Raises OSError where the folder can't be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{secrets.token_hex(12)}.jsonl"
        # Locked before it has the name by which others find it.
        hidden = self.folder / f".{name}"
        file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self.folder / name)
            if self.sync != "never":
                sync_folder(self.folder)
        except OSError:
            os.close(file)
            raise
        self.close()
        self.name, self._file, self._size, self._torn = name, file, 0, False

    def append(self, line: bytes) -> None:
        """Write a line, and those that could not be written before.

        A disk that is full must not lose what was spent: lines are kept until it takes them.
        """
        if self.unwritten:
            self.unwritten.append(line)
            self.retry()
        elif not self._write(line):
            log.error("the journal of what was spent can't be written, lines are kept in memory")
            self.unwritten.append(line)

    def retry(self) -> None:
        """Write lines that could not be written."""
        written = 0
        for line in self.unwritten:
            if not self._write(line):
                break
            written += 1
        del self.unwritten[:written]

    def flush(self) -> None:
        """Wait until what was written is on the disk, unless that is left to the kernel."""
        if self.sync == "interval" and self._file >= 0:
            self._sync()

    @property
    def full(self) -> bool:
        """Whether it is time for a new file."""
        return self._size >= ROTATED

    @property
    def closed(self) -> bool:
        """Whether no file is open."""
        return self._file < 0

    def close(self) -> None:
        """Let go of the file; others may finish it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError as error:
            # Final: the kernel has dropped what it could not write, and another try would tell nothing.
            log.error("the journal did not reach the disk", error=error.strerror)

    def _write(self, line: bytes) -> bool:
        data = b"\n" + line if self._torn else line
        try:
            written = os.write(self._file, data)
        except OSError:
            return False
        if self.sync == "always":
            self._sync()
        self._size += written
        self._torn = written < len(data)
        # What lacks its end is no line, and is skipped; what lacks just the newline is one.
        return written >= len(data) - 1


def read(path: Path, start: int) -> Iterator[Batch]:
    """The whole lines of a file from a byte on, in batches. Lines that are none are skipped."""
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(READ):
            end = data.rfind(b"\n") + 1
            if end == 0:
                return
            yield _batch(path.name, start, data[:end])
            start += end
            file.seek(start)


def _batch(name: str, start: int, data: bytes) -> Batch:
    batch = Batch(name, start, start + len(data))
    for one in data.splitlines():
        try:
            (day, key, owner, tags), reservations, rows = orjson.loads(one)
            read = [(Account(day, key, owner, model, tags), counts) for model, *counts in rows]
        except (ValueError, TypeError):
            if one.strip(b"\0"):
                log.warning("a line of the journal is not whole and is skipped", file=name)
            continue
        for account, counts in read:
            add(batch.totals, account, counts)
        batch.reservations += reservations
    return batch


def spent(lines: Iterable[bytes]) -> int:
    """What lines come to, in nano-USD."""
    usd = COLUMNS.index("usd")
    return sum(counts[usd] for counts in _batch("", 0, b"".join(lines)).totals.values())


def add(totals: Totals, account: Account, counts: Iterable[int]) -> None:
    """Add counts to an account's."""
    known = totals.get(account)
    totals[account] = list(counts) if known is None else [a + b for a, b in zip(known, counts, strict=True)]


def files(folder: Path) -> list[Path]:
    """The files of all processes."""
    return sorted(folder.glob("*.jsonl"))


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no process appends to a file any more; nobody else removes it meanwhile."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Have a folder's names reach the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

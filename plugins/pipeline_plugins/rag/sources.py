"""What `pipeline ingest` is given: files, folders, patterns and addresses, as files to read."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.fetch import fetch, is_url
from pipeline_plugins.read.reader import File, Readers, Unreadable

MAGIC = re.compile(r"[*?\[]")
"""What makes a path a pattern."""


@dataclass(slots=True, frozen=True)
class Source:
    """One argument.

    root  what all ids of its files are, or are below
    covers  whether an id would be among its files, if the file were there
    pattern  whether it is one
    """

    argument: str
    root: str
    covers: Callable[[str], bool]
    files: Callable[[], Iterator[File]]
    pattern: bool = False

    def bytes(self, *, gone: bool) -> int:
        """Of all its files, as far as they are known.

        Raises FileNotFoundError for a pattern that no file fits, unless they may all be `gone`.
        """
        total, fits = 0, not self.pattern or gone
        for file in self.files():
            total, fits = total + file.size, True
        if not fits:
            raise FileNotFoundError(f"No file that can be read here fits `{self.argument}`.")
        return total


def source_of(argument: str, readers: Readers, limit: int) -> Source:
    """What an argument names. Raises FileNotFoundError where there is nothing."""
    if is_url(argument):
        return Source(argument, argument, argument.__eq__, lambda: iter([File(Path(), argument, "", limit)]))
    path = Path(argument)
    try:
        if path.is_dir():
            return _folder(argument, path.resolve(), readers, limit)
        there = path.exists()
    except OSError:
        there = True  # what can't be looked at is told when it is read
    if there:
        file = File(path, path.name, path.suffix.lower(), limit)
        return Source(argument, file.id, file.id.__eq__, lambda: iter([file]))
    if MAGIC.search(argument):
        return _pattern(argument, readers, limit)
    raise FileNotFoundError(f"There is no file or folder `{argument}`.")


def _folder(argument: str, root: Path, readers: Readers, limit: int) -> Source:
    def files() -> Iterator[File]:
        unlisted: list[Path] = []
        yield from _below(root, _walked(root, unlisted), readers, limit)
        yield from (File(path, (root.name / path.relative_to(root)).as_posix(), "") for path in unlisted)

    return Source(argument, root.name, lambda file: file.startswith(f"{root.name}/"), files)


def _pattern(argument: str, readers: Readers, limit: int) -> Source:
    """A pattern such as `docs/**/*.md`; ids begin at the last folder before the first sign."""
    parts = Path(argument).parts
    fixed = next(at for at, part in enumerate(parts) if MAGIC.search(part))
    root = Path(*parts[:fixed]).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder `{root}` for `{argument}`.")
    inside = "/".join(parts[fixed:])
    matching = re.compile(re.escape(f"{root.name}/") + _expression(inside))

    def files() -> Iterator[File]:
        yield from _below(root, sorted(root.glob(inside)), readers, limit)

    return Source(argument, root.name, lambda file: matching.fullmatch(file) is not None, files, pattern=True)


def _expression(pattern: str) -> str:
    """A pattern of paths as a regular expression, as pathlib reads it."""
    found = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        found.get(part)
        or (part.replace("[!", "[^") if part.startswith("[") and part.endswith("]") else re.escape(part))
        for part in parts
    )


def _walked(root: Path, unlisted: list[Path]) -> Iterator[Path]:
    """The files of a folder, each folder's in alphabetical order before those further below.

    Folders that can't be listed are noted, other than those that have just gone.
    """

    def failed(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == root or not isinstance(error, FileNotFoundError):
            unlisted.append(folder)

    for folder, below, names in os.walk(root, onerror=failed):
        below.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _below(root: Path, found: Iterable[Path], readers: Readers, limit: int) -> Iterator[File]:
    """The files that can be read; hidden ones are left out."""
    for path in found:
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        suffix = path.suffix.lower()
        if not hidden and readers.reads(suffix) and _is_file(path):
            yield File(path, (root.name / inside).as_posix(), suffix, limit)


def _is_file(path: Path) -> bool:
    """Whether it is a file, as far as can be seen: what can't be looked at is told when it is read."""
    try:
        return path.is_file()
    except OSError:
        return True


def read(file: File, readers: Readers, *, private: bool) -> Iterator[Document]:
    """The documents of a file, or of a page. Raises `Unreadable` and OSError.

    A folder among the files is one that could not be listed: it fails once more.
    """
    if not is_url(file.id):
        if not file.suffix and not file.path.is_file():
            os.listdir(file.path)
            raise Unreadable("it could not be listed")
        yield from readers.read(file)
        return
    with tempfile.NamedTemporaryFile() as copy:
        page = fetch(file.id, copy, limit=file.limit, private=private)
        copy.flush()
        suffix = Path(urlsplit(page.url).path).suffix.lower()
        if page.type != "text/plain" or not readers.reads(suffix):  # plain text may be anything that is text
            suffix = readers.types.get(page.type, suffix)
        if not readers.reads(suffix):
            raise Unreadable(f"`{page.type}` is not read here")
        yield from readers.read(File(Path(copy.name), file.id, suffix, file.limit))

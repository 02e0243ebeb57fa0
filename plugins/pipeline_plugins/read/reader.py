"""What a reader is, and how all that are installed are asked for a file.

A reader is a plugin `read.NAME`: a class with `Config` and `suffixes`, called with a `File`.
It needs no entry in a configuration; `rag.readers.SUFFIX.plugin=NAME` chooses among two, or
sets options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import BaseModel

from pipeline.plugins import Registry
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.choice import Choice, made_of, make
from pipeline_plugins.rag.chunk import Document

MAX_FILE = 64 * 1024 * 1024
"""Bytes of a file that is read at once; rows are read one by one, up to as much each."""

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True, frozen=True)
class File:
    """A file to read.

    id      of its document: its path from the folder above the one that was named, or its address
    suffix  in lower case with its dot, says which reader it gets
    limit   bytes that may be read at once
    """

    path: Path
    id: str
    suffix: str
    limit: int = MAX_FILE

    @property
    def size(self) -> int:
        """Its bytes, as far as they are known before it is read."""
        try:
            return self.path.stat().st_size if self.suffix else 0
        except OSError:
            return 0

    def content(self) -> bytes:
        """All of it. Raises `Unreadable` for one that is too large, and OSError."""
        with self.path.open("rb") as file:
            data = file.read(self.limit + 1)
        if len(data) > self.limit:
            raise Unreadable(f"larger than {self.limit} bytes")
        return data

    def text(self) -> str:
        """All of it as text. Raises `Unreadable` and OSError."""
        try:
            return self.content().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable(f"no UTF-8 at byte {error.start}") from None


class Unreadable(ValueError):
    """A file, or a row of one, is not what its name says; the message is for people."""


class Reader(Protocol):
    """The contract of a plugin `read.NAME`.

    suffixes  of the files that it reads, in lower case with their dots; none: those it is chosen for
    types     content types that stand for one of them where a file has no suffix
    """

    Config: ClassVar[type[BaseModel]]
    suffixes: ClassVar[frozenset[str]]
    types: ClassVar[Mapping[str, str]]

    def __call__(self, file: File) -> Iterator[Document]:
        """The documents of a file, one after the other. Raises `Unreadable` and OSError."""
        ...


class Readers:
    """All readers that are installed, each imported with its own module alone.

    `chosen` has readers by suffix without its dot. Raises `ConfigError` for one that is not
    there, and where two that are installed read the same and none is chosen.
    """

    def __init__(self, chosen: Mapping[str, Choice]) -> None:
        self._by_suffix: dict[str, Reader] = {}
        self.types: dict[str, str] = {}
        named: dict[str, str] = {}
        registry = Registry()
        for name in registry.names("read"):
            loaded = registry.find(f"read.{name}").load()
            if not loaded.cls.suffixes:
                continue
            reader: Reader = made_of(loaded, Choice(plugin=name), "readers")
            self.types.update(reader.types)
            for suffix in sorted(reader.suffixes):
                if suffix.removeprefix(".") in chosen:
                    continue
                if suffix in named:
                    message = f"`{named[suffix]}` and `{name}` both read `{suffix}`."
                    hint = f"Choose one: `rag.readers{suffix}.plugin={name}`."
                    raise ConfigError([Problem("readers", message, hint)])
                named[suffix] = name
                self._by_suffix[suffix] = reader
        for suffix, choice in chosen.items():
            self._by_suffix[f".{suffix}"] = make("read", choice, f"readers.{suffix}")

    @property
    def suffixes(self) -> list[str]:
        """All that can be read, in alphabetical order."""
        return sorted(self._by_suffix)

    def reads(self, suffix: str) -> bool:
        """Whether a file with this suffix has a reader."""
        return suffix in self._by_suffix

    def read(self, file: File) -> Iterator[Document]:
        """The documents of a file. Raises `Unreadable` and OSError."""
        reader = self._by_suffix.get(file.suffix)
        if reader is None:
            known = ", ".join(self.suffixes)
            what = f"`{file.suffix}` is not read here" if file.suffix else "without a suffix nothing is read"
            raise Unreadable(f"{what}, only {known}")
        if SURROGATE.search(file.id):
            raise Unreadable("its name is no UTF-8")
        for document in reader(file):
            yield _encodable(document)


def _encodable(document: Document) -> Document:
    """The document without halves of characters, such as damaged PDFs give: they can't be stored."""
    text = SURROGATE.sub("\ufffd", document.text)
    metadata = {
        name: SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value
        for name, value in document.metadata.items()
    }
    return replace(document, text=text, metadata=metadata)

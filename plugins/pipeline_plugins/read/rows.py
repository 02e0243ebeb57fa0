"""`read.json` and `read.csv`: rows, each a document of its own, read one by one."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.read.reader import File, Unreadable

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63}")
"""What a key of metadata may be called, so that filters can name it."""

MAX_KEYS = 32
MAX_VALUE = 4096
SAMPLE = 65_536


class JSON:
    """Reads `{id, text, metadata}`: one a line, a list of them, or `{documents: […]}`.

    Any other JSON is one document, a line for each value: its path, and the value.
    """

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    suffixes: ClassVar[frozenset[str]] = frozenset({".json", ".jsonl", ".ndjson"})
    types: ClassVar[dict[str, str]] = {"application/json": ".json", "application/x-ndjson": ".jsonl"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The documents of a file. What is wrong with a row is said with its number."""
        if file.suffix == ".json":
            yield from _of_json(file)
            return
        with file.path.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(file.limit), b""), 1):
                if line.strip():
                    yield _row(file, f"line {number}", number, _parsed(line, f"line {number}"))


class CSV:
    """Reads tables whose first row names the columns; each further row is a document.

    A row's text is `column: value`, a line each; its values are metadata, too. A column without a
    name, or with one that an earlier one has, is told by its number.
    """

    class Config(BaseModel):
        """Which columns mean what."""

        model_config = ConfigDict(extra="forbid")

        delimiter: str | None = Field(
            None, min_length=1, max_length=1, description="Between columns; null: found out."
        )
        columns: list[str] = Field(default_factory=list, description="Those of the text; empty: all.")
        id: str | None = Field(
            None, description="Column of the document's id; null: the file's with the row's number."
        )

    suffixes: ClassVar[frozenset[str]] = frozenset({".csv", ".tsv"})
    types: ClassVar[dict[str, str]] = {"text/csv": ".csv", "text/tab-separated-values": ".tsv"}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, file: File) -> Iterator[Document]:
        """The documents of a file."""
        try:
            with file.path.open(encoding="utf-8-sig", newline="") as lines:
                sample = lines.read(SAMPLE)
                lines.seek(0)
                yield from self._rows(file, csv.DictReader(lines, delimiter=self._delimiter(sample)))
        except UnicodeDecodeError:
            raise Unreadable("no UTF-8") from None
        except csv.Error as error:
            raise Unreadable(f"no CSV: {error}") from None

    def _delimiter(self, sample: str) -> str:
        """The one that the first row has most of."""
        if self.config.delimiter is not None:
            return self.config.delimiter
        first = sample.partition("\n")[0]
        return max(",;\t|", key=first.count)

    def _rows(self, file: File, rows: Any) -> Iterator[Document]:
        names = rows.fieldnames = _names(rows.fieldnames or [])
        for column in [*self.config.columns, *([self.config.id] if self.config.id else [])]:
            if column not in names:
                raise Unreadable(f"there is no column `{column}`, only {', '.join(names)[:200]}")
        for number, row in enumerate(rows, 1):
            beyond = enumerate(row.pop(None, []), len(names) + 1)
            row.update({f"column {at}": value for at, value in beyond})
            values = {name: value for name, value in row.items() if value}
            shown = self.config.columns or list(values)
            id = values.get(self.config.id) if self.config.id else f"{file.id}#{number}"
            if not id:
                raise Unreadable(f"row {number} has nothing in `{self.config.id}`")
            text = "\n".join(f"{name}: {values[name]}" for name in shown if name in values)
            yield Document(id, text, source=file.id, metadata={**_metadata(values), "row": number})


def _names(head: Iterable[str]) -> list[str]:
    """The columns' names, each of them once."""
    names: list[str] = []
    for at, name in enumerate(head, 1):
        named = name if name.strip() else "column"
        names.append(named if name.strip() and name not in names else f"{named} {at}")
    return names


def _metadata(values: Mapping[str, str]) -> dict[str, Any]:
    kept = [
        (name, value) for name, value in values.items() if KEY.fullmatch(name) and len(value) <= MAX_VALUE
    ]
    return dict(kept[: MAX_KEYS - 1])


def _of_json(file: File) -> Iterator[Document]:
    found = _parsed(file.content(), "it")
    rows = found.get("documents") if isinstance(found, dict) and set(found) == {"documents"} else found
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "text" in row for row in rows):
        for number, row in enumerate(rows, 1):
            yield _row(file, f"item {number}", number, row)
        return
    try:
        text = "\n".join(_values(found, ""))
    except RecursionError:
        raise Unreadable("nested too deep") from None
    yield Document(file.id, text, source=file.id)


def _values(value: Any, path: str) -> Iterator[str]:
    """A line for each value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _values(inner, f"{path}[{at}]")
    elif value is not None:
        yield f"{path}: {value}" if path else str(value)


def _parsed(data: bytes, what: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"{what} is not JSON: {error}") from None


def _row(file: File, what: str, number: int, row: Any) -> Document:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise Unreadable(f"{what} needs a `text`: {{id, text, metadata}}")
    id, metadata = row.get("id", f"{file.id}#{number}"), row.get("metadata", {})
    flat = isinstance(metadata, dict) and all(isinstance(v, (str, int, float)) for v in metadata.values())
    if not isinstance(id, str) or not id or not flat:
        raise Unreadable(f"{what}: `id` must be a text, and `metadata` hold texts and numbers")
    source, page = metadata.get("source"), metadata.get("page")
    return Document(
        id,
        row["text"],
        source=source if isinstance(source, str) else file.id,
        page=page if type(page) is int and 0 <= page < 2**31 else None,
        metadata=metadata,
    )

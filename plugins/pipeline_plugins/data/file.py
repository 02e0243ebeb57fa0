"""`data=file`: examples from a JSONL, CSV or Parquet file."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import random
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline.problems import did_you_mean
from pipeline_plugins.evaluate.example import DataError, DataSet, Example

SUFFIXES = (".jsonl", ".csv", ".parquet")
OWN = ("id", "messages", "prompt", "request")
"""Columns that make the request; all others are for scorers."""

Row = tuple[int, dict[str, Any]]
"""The line (of Parquet, the row) where it is, counted from 1, and its columns."""


class File:
    """Rows `{id, messages, …}` or `{prompt, …}`; `request` has further fields of the request.

    Without `id` a row's number is its id. Columns of a CSV are texts; those that hold JSON,
    `messages` and `request`, are parsed.
    """

    class Config(BaseModel):
        """Which file, and which of its rows and columns."""

        model_config = ConfigDict(extra="forbid")

        path: str = Field(..., min_length=1, description="JSONL or CSV, gzipped or not, or Parquet.")
        columns: dict[str, str] = Field(
            default_factory=dict,
            description="What columns of the file are called here: `{prompt: question, expected: answer}`.",
        )
        limit: int | None = Field(None, ge=1, description="Rows to use, at most.")
        sample: bool = Field(False, description="Draw the `limit` rows by `seed`, instead of the first ones.")
        seed: int = Field(0, ge=0, description="Of the sample.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = Path(config.path).expanduser()

    def read(self) -> DataSet:
        """All examples. Raises `DataError` with file and line."""
        config = self.config
        name = self.path.name.removesuffix(".gz")
        if not name.endswith(SUFFIXES):
            raise DataError(
                f"{config.path}: expected a name that ends in {', '.join(SUFFIXES)}, or in .gz too."
            )
        try:
            raw = self.path.read_bytes()
            content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        except OSError as error:
            raise DataError(f"{config.path}: it can't be read: {error.strerror or error}.") from None
        except (EOFError, zlib.error):
            raise DataError(f"{config.path}: it is not a whole gzip file.") from None
        rows = list(self._rows(name, content))
        if config.limit is not None and config.limit < len(rows):
            drawn = random.Random(config.seed).sample(range(len(rows)), config.limit)
            rows = [rows[at] for at in sorted(drawn)] if config.sample else rows[: config.limit]
        if not rows:
            raise DataError(f"{config.path}: there are no rows.")
        seen: dict[str, int] = {}
        examples = []
        for line, row in rows:
            example = self._example(line, row)
            if (first := seen.setdefault(example.id, line)) != line:
                raise self._wrong(line, f"the id `{example.id[:80]}` is that of line {first}, too.")
            examples.append(example)
        return DataSet(name.rpartition(".")[0], hashlib.sha256(raw).hexdigest(), examples)

    def _rows(self, name: str, content: bytes) -> Iterator[Row]:
        if name.endswith(".parquet"):
            return self._parquet(content)
        return self._csv(self._text(content)) if name.endswith(".csv") else self._jsonl(content)

    def _text(self, content: bytes) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise self._wrong(line, "it is not UTF-8 text.") from None

    def _jsonl(self, content: bytes) -> Iterator[Row]:
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise self._wrong(number, f"it is not JSON: {error.msg}.") from None
            if not isinstance(row, dict):
                raise self._wrong(number, f"expected an object, got {type(row).__name__}.")
            yield number, row

    def _csv(self, text: str) -> Iterator[Row]:
        csv.field_size_limit(1 << 27)
        reader = csv.DictReader(io.StringIO(text, newline=""))
        line = 2
        try:
            names = reader.fieldnames or ()
            if twice := {name for name in names if list(names).count(name) > 1}:
                raise self._wrong(1, f"two columns are called `{min(twice)}`.")
            for row in reader:
                if None in row:
                    raise self._wrong(line, "it has more fields than the header.")
                if None in row.values():
                    raise self._wrong(line, "it has fewer fields than the header.")
                yield line, dict(row)
                line = reader.line_num + 1
        except csv.Error as error:
            raise self._wrong(line, f"it is not CSV: {error}.") from None

    def _parquet(self, content: bytes) -> Iterator[Row]:
        try:
            import pyarrow as pa  # type: ignore[import-untyped]
            from pyarrow import parquet as pq
        except ImportError:
            raise DataError("Parquet needs pyarrow: pip install 'llm-pipeline[eval]'.") from None
        try:
            table = pq.read_table(pa.BufferReader(content))
        except pa.ArrowException as error:
            raise DataError(f"{self.config.path}: it is not Parquet: {str(error).splitlines()[0]}") from None
        for number, row in enumerate(table.to_pylist(), 1):
            yield number, {name: _without_nulls(value) for name, value in row.items()}

    def _example(self, line: int, row: dict[str, Any]) -> Example:
        columns = self.config.columns
        for name, column in columns.items():
            if column not in row:
                raise self._wrong(line, f"there is no column `{column}`. {did_you_mean(column, row)}")
            row = {**row, name: row[column]}
        body = self._request(line, row)
        own = {name: value for name, value in row.items() if name not in OWN and value is not None}
        return Example(str(row["id"]) if row.get("id") not in (None, "") else str(line), body, own)

    def _request(self, line: int, row: Mapping[str, Any]) -> dict[str, Any]:
        body = self._parsed(line, row, "request", dict) or {}
        messages = self._parsed(line, row, "messages", list)
        if messages is not None:
            return {**body, "messages": messages}
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            return {**body, "messages": [{"role": "user", "content": prompt}]}
        if "messages" in body:
            return dict(body)
        if "prompt" in row:
            found = "null" if prompt is None else type(prompt).__name__
            raise self._wrong(line, f"`prompt` is not a text, but {found}.")
        known = ", ".join(f"`{name}`" for name in row)
        hint = "Say which column is the prompt, say `data.columns={prompt: question}`."
        raise self._wrong(line, f"there is neither `messages` nor `prompt`, but {known}. {hint}")

    def _parsed(self, line: int, row: Mapping[str, Any], name: str, wanted: type) -> Any:
        """A column that is JSON: as it is, or as a text that holds it."""
        value = row.get(name)
        if value in (None, ""):
            return None
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise self._wrong(line, f"`{name}` is not JSON: {error.msg}.") from None
        if not isinstance(value, wanted):
            shape = "a list" if wanted is list else "an object"
            raise self._wrong(line, f"`{name}` is not {shape}, but {type(value).__name__}.")
        return value

    def _wrong(self, line: int, why: str) -> DataError:
        return DataError(f"{self.config.path}:{line}: {why}")


def _without_nulls(value: Any) -> Any:
    """A value of Parquet without the fields that are only there because another row has them."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value

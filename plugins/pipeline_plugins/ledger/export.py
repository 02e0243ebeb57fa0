"""Calls as JSONL or Parquet, a few at a time."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import mkstemp
from typing import IO, Any

import click
import orjson

from pipeline_plugins.ledger.schema import CALLS, JSON_COLUMNS

GROUP = 5000
"""Rows of one row group of a Parquet file: what is held in memory."""

GROUP_BYTES = 64 * 1024 * 1024
"""Bytes of bodies after which a row group ends."""

NESTED = ("attempts", "feedback", "bodies")

Calls = Iterator[dict[str, Any]]


@contextmanager
def whole(output: Path) -> Iterator[IO[bytes]]:
    """A file to write, its owner's alone, that takes the place of `output` once it is complete.

    What is no regular file, as a pipe, is written to as it is. Raises OSError.
    """
    if output.exists() and not output.is_file():
        with output.open("wb") as file:
            yield file
        return
    output = output.resolve()
    handle, name = mkstemp(dir=output.parent, prefix=f".{output.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def jsonl(calls: Calls, file: IO[bytes]) -> None:
    """One object a line; `gaps` in base64."""
    for call in calls:
        for name in JSON_COLUMNS:
            call[name] = _as_json(call[name])
        if call["gaps"] is not None:
            call["gaps"] = base64.b64encode(call["gaps"]).decode()
        if call["bodies"] is not None:
            call["bodies"] |= {name: _as_json(call["bodies"][name]) for name in ("request", "reply")}
        file.write(orjson.dumps(call, option=orjson.OPT_APPEND_NEWLINE))
    file.flush()


def parquet(calls: Calls, file: IO[bytes]) -> None:
    """A file whose columns are those of the table, and `attempts`, `feedback` and `bodies` as JSON texts."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]
    except ImportError:
        raise click.ClickException("Parquet needs pyarrow: pip install 'llm-pipeline[ledger]'") from None

    types = {
        "TEXT": pyarrow.string(),
        "DOUBLE": pyarrow.float64(),
        "BIGINT": pyarrow.int64(),
        "BYTEA": pyarrow.binary(),
    }
    fields = [(name, types[type.split()[0]]) for name, type in CALLS.items()]
    schema = pyarrow.schema([*fields, *((name, pyarrow.string()) for name in NESTED)])
    with ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := list(_group(calls)):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _group(calls: Calls) -> Calls:
    size = 0
    for call in islice(calls, GROUP):
        for name in NESTED:
            call[name] = orjson.dumps(call[name]).decode() if call[name] else None
        size += len(call["bodies"] or "")
        yield call
        if size > GROUP_BYTES:
            return


def _as_json(text: str | None) -> Any:
    return orjson.Fragment(text) if text is not None else None

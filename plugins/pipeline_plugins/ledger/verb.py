"""`pipeline ledger`: export what became of calls, or remove an owner's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pipeline.cli.options import overrides as with_overrides
from pipeline_plugins.ledger.options import filters, opened

if TYPE_CHECKING:
    from pipeline_plugins.ledger.store import Store

EPILOG = """\b
Examples:
  pipeline ledger export ledger=sqlite --since 2026-11-01 | jq .total_ms
  pipeline ledger export ledger=sqlite --format parquet --output calls.parquet --model small
  pipeline ledger delete ledger=sqlite --owner alice"""

GROUP = 10_000
"""Rows of one row group of a Parquet file: what is held in memory."""


@click.group("ledger", epilog=EPILOG)
def command() -> None:
    """Read and tidy the ledger that the configuration names, whether a server runs or not."""


@command.command("export", epilog=EPILOG)
@with_overrides
@click.option("--format", "form", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="File; standard output without it.")
@filters
def export(
    overrides: tuple[str, ...], config: Path | None, form: str, output: Path | None, **wanted: Any
) -> int:
    """Write calls with their attempts and feedback, by time.

    JSONL has one object a line. In Parquet `attempts`, `feedback`, `path`, `tags`, `variants` and
    `failed_checks` are JSON texts.
    """
    from pipeline_plugins.ledger.store import Filter

    if form == "parquet" and output is None:
        raise click.UsageError("Parquet needs a file: `--output calls.parquet`.")
    store = opened(overrides, config)
    try:
        calls = store.calls(Filter(**wanted))
        if form == "parquet" and output is not None:
            _parquet(calls, output)
        elif output is not None:
            with output.open("wb") as file:
                _jsonl(calls, file)
        else:
            _jsonl(calls, sys.stdout.buffer)
    finally:
        store.close()
    return 0


@command.command("delete", epilog=EPILOG)
@with_overrides
@click.option("--owner", required=True, help="Whose calls are removed, with attempts and feedback.")
def delete(overrides: tuple[str, ...], config: Path | None, owner: str) -> int:
    """Remove all calls of an owner. The file's free space is overwritten with zeros."""
    store: Store = opened(overrides, config)
    try:
        removed = store.forget(owner)
    finally:
        store.close()
    click.echo(f"{removed} calls removed")
    return 0


def _jsonl(calls: Iterator[dict[str, Any]], file: IO[bytes]) -> None:
    import orjson

    from pipeline_plugins.ledger.rows import JSON_COLUMNS

    for call in calls:
        for name in JSON_COLUMNS:
            if call[name] is not None:
                call[name] = orjson.Fragment(call[name])
        file.write(orjson.dumps(call, option=orjson.OPT_APPEND_NEWLINE))
    file.flush()


def _parquet(calls: Iterator[dict[str, Any]], output: Path) -> None:
    import orjson

    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise click.ClickException("Parquet needs pyarrow: pip install 'llm-pipeline[ledger]'") from None
    from pipeline_plugins.ledger.rows import CALLS

    types = {"TEXT": pyarrow.string(), "REAL": pyarrow.float64(), "INTEGER": pyarrow.int64()}
    fields = [(name, types[type.split()[0]]) for name, type in CALLS.items()]
    schema = pyarrow.schema([*fields, ("attempts", pyarrow.string()), ("feedback", pyarrow.string())])
    with parquet.ParquetWriter(output, schema) as writer:
        while rows := list(islice(calls, GROUP)):
            for row in rows:
                row["attempts"] = orjson.dumps(row["attempts"]).decode()
                row["feedback"] = orjson.dumps(row["feedback"]).decode() if row["feedback"] else None
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

"""`pipeline ledger`: export what became of calls, or remove an owner's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import overrides as with_overrides
from pipeline_plugins.ledger.options import filters, opened

EPILOG = """\b
Examples:
  pipeline ledger export ledger=sqlite --since 2026-11-01 | jq .total_ms
  pipeline ledger export ledger=sqlite --format parquet --output calls.parquet --model small
  pipeline ledger delete ledger=sqlite --owner alice"""


@click.group("ledger", epilog=EPILOG)
def command() -> None:
    """Read and tidy the ledger that the configuration names, whether a server runs or not."""


@command.command("export", epilog=EPILOG)
@with_overrides
@click.option("--format", "form", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="File; standard output without it."
)
@filters
def export(
    overrides: tuple[str, ...], config: Path | None, form: str, output: Path | None, **wanted: Any
) -> int:
    """Write calls with their attempts, feedback and bodies, by time.

    JSONL has one object a line. In Parquet what is an object or a list is a JSON text.
    """
    from pipeline_plugins.ledger.export import jsonl, parquet, whole
    from pipeline_plugins.ledger.store import Filter

    if form == "parquet" and output is None:
        raise click.UsageError("Parquet needs a file: `--output calls.parquet`.")
    if output is None and sys.stdout is None:
        raise click.UsageError("There is no standard output: name a file by `--output`.")
    if output is not None and not output.absolute().parent.is_dir():
        raise click.UsageError(f"There is no folder {output.absolute().parent}.")
    with opened(overrides, config) as store:
        calls = store.calls(Filter(**wanted))
        if output is None:
            jsonl(calls, sys.stdout.buffer)
        else:
            with whole(output) as part:
                parquet(calls, part) if form == "parquet" else jsonl(calls, part)
    return 0


@command.command("delete", epilog=EPILOG)
@with_overrides
@click.option("--owner", required=True, help="Whose calls are removed, with attempts and feedback.")
def delete(overrides: tuple[str, ...], config: Path | None, owner: str) -> int:
    """Remove all calls of an owner. The file's free space is overwritten with zeros."""
    with opened(overrides, config) as store:
        removed = store.forget(owner)
    click.echo(f"{removed} calls removed")
    return 0

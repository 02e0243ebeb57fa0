"""`pipeline feedback`: what clients said of their answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import overrides as with_overrides
from pipeline_plugins.ledger.options import filters, opened

EPILOG = """\b
Examples:
  pipeline feedback ledger=sqlite
  pipeline feedback ledger=sqlite --by variant --since 2026-11-01
  pipeline feedback ledger=sqlite --by model --by tag --json"""


@click.command("feedback", epilog=EPILOG)
@with_overrides
@click.option(
    "--by",
    type=click.Choice(["model", "variant", "tag", "label"]),
    multiple=True,
    help="What to group by; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
@filters
def command(
    overrides: tuple[str, ...], config: Path | None, by: tuple[Any, ...], as_json: bool, **wanted: Any
) -> int:
    """Report ratings: their average, how they spread, and the share of positive ones.

    Positive are 4, 5 and `up`; the interval is Wilson's of 95 %. A call with several tags or
    experiments counts for each. Times are those of the calls.
    """
    from pipeline_plugins.ledger.report import report
    from pipeline_plugins.ledger.store import Filter

    with opened(overrides, config) as store:
        found = report(store.ratings(Filter(**wanted)), tuple(dict.fromkeys(by)) or ("model",))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for group in found["by"]:
        table.add_column(group.upper(), overflow="fold")
    for heading in ("RATINGS", "AVERAGE", "POSITIVE", "95 %", "DISTRIBUTION"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(*(escape(row[group]) or "-" for group in found["by"]), *_cells(row))
    if len(found["rows"]) != 1:
        table.add_row(*["total", *[""] * (len(found["by"]) - 1)], *_cells(found["total"]), style="bold")
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["ratings"]:
        return ["0", "-", "-", "-", "-"]
    average = f"{row['average']:.2f}" if row["average"] is not None else "-"
    spread = " ".join(f"{rating}:{count}" for rating, count in row["distribution"].items())
    interval = f"{row['low']:.0%} to {row['high']:.0%}"
    return [str(row["ratings"]), average, f"{row['positive']:.0%}", interval, spread]

"""An experiment's state for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline_plugins.experiment.metric import METRICS

COLOURS = {"better": "green", "worse": "red", "guard broken: stop": "bold red"}


def show(reports: Iterable[dict[str, Any]], *, wide: bool) -> None:
    """Print experiments; `wide` is as wide as the terminal, else wide enough for a pipe."""
    console = Console(width=None if wide else 140, highlight=False)
    empty = True
    for report in reports:
        empty = False
        _print(console, report)
    if empty:
        console.print("No call took part in an experiment. `route=ab` makes one of a router's targets.")


def _print(console: Console, report: dict[str, Any]) -> None:
    console.print(f"[bold]{escape(report['experiment'])}[/bold]  {_shares(report['shares'])}")
    for one in report["variants"]:
        role = "  control" if one["variant"] == report["control"] else ""
        console.print(f"  {escape(one['variant'])}: {one['units']} units, {one['calls']} calls{role}")
    if report["control"] is None:
        console.print("[red]The control has no calls: nothing can be compared.[/red]")
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "variant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("control", "variant", "difference", f"{1 - report['alpha']:.0%}, at any time", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    table.add_column("more calls", justify="right", no_wrap=True)
    for metric in report["metrics"]:
        for row in metric["variants"]:
            table.add_row(*_row(metric, row))
    if table.row_count:
        console.print(table)
    if report["guards_broken"]:
        console.print(f"[bold red]Stop: {', '.join(report['guards_broken'])} broke its guard.[/bold red]")


def _shares(shares: dict[str, Any]) -> str:
    if shares["p"] is None:
        return ""
    if shares["suspect"]:
        return (
            f"[bold red]sample ratio mismatch (p = {shares['p']:.2g}): units did not come in the shares "
            "that they should; don't trust what follows[/bold red]"
        )
    return f"shares as they should be (p = {shares['p']:.2g})"


def _row(metric: dict[str, Any], row: dict[str, Any]) -> list[str]:
    name = metric["metric"]
    base = number(name, metric["control"]["mean"]) if metric["control"] else "-"
    ends = "-" if row["low"] is None else f"{number(name, row['low'])} to {number(name, row['high'])}"
    label = name if metric["guard"] is None else f"{name} (guard {number(name, metric['guard'])})"
    decision, more = row["decision"], row["more_calls"]
    colour = COLOURS.get(decision)
    return [
        label,
        escape(row["variant"]),
        base,
        number(name, row["mean"]),
        "-" if row["difference"] is None else number(name, row["difference"], sign=True),
        ends,
        "-" if row["p"] is None else f"{row['p']:.2g}",
        f"[{colour}]{decision}[/{colour}]" if colour else decision,
        f"{more:,.0f}" if more else "" if more == 0 else "-",
    ]


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """A metric's value, as short as it can be read; `+` before more than nothing with `sign`."""
    plus = "+" if sign and value > 0 else ""
    if METRICS[metric].share:
        return f"{plus}{value:.2%}"
    if metric.endswith("_usd"):
        return f"{'-' if value < 0 else plus}${abs(value):.3g}"
    if metric.endswith("_s"):
        return f"{plus}{value * 1000:.1f} ms" if abs(value) < 1 else f"{plus}{value:.2f} s"
    return f"{plus}{value:.2f}"

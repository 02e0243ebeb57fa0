"""An experiment's state for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline_plugins.experiment.metric import METRICS

COLOURS = {"better": "green", "worse": "red", "guard broken: stop": "bold red"}

VALUE = 3
"""The column of a variant's mean, which has the heading of that of its name."""


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
    how = escape(by_bandit(report)) or _shares(report["shares"])
    console.print(f"[bold]{escape(report['experiment'])}[/bold]  {how}")
    for one in report["variants"]:
        role = "  control" if one["variant"] == report["control"] else ""
        about = "" if report["units_exact"] else "about "
        units = "" if one["units"] is None else f"{about}{one['units']:,} units, "
        console.print(f"  {escape(one['variant'])}: {units}{one['calls']:,} calls{role}")
    if report["control"] is None:
        console.print("[red]The control has no calls: nothing can be compared.[/red]")
    table = Table(box=box.SIMPLE)
    for heading in headings(report):
        left = heading in ("metric", "variant", "decision") and len(table.columns) != VALUE
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for cells in rows(report):
        *before, decision, more = map(escape, cells)
        colour = COLOURS.get(cells[-2])
        table.add_row(*before, f"[{colour}]{decision}[/{colour}]" if colour else decision, more)
    if table.row_count:
        console.print(table)
    if report["guards_broken"]:
        console.print(f"[bold red]{stop(report)}[/bold red]")


def _shares(found: dict[str, Any]) -> str:
    said = shares(found)
    return f"[bold red]{said}[/bold red]" if found["suspect"] else said


def by_bandit(report: dict[str, Any]) -> str:
    """That means are weighted, where they are."""
    if not report["weighted"]:
        return ""
    left = report["left_out"]
    beside = f"; {left:,} calls of the same name that no bandit assigned are left out" if left else ""
    return f"assigned by a bandit: means are weighted by how likely calls were to get their variant{beside}"


def stop(report: dict[str, Any]) -> str:
    """Which guards are broken; nothing where none is."""
    broken = report["guards_broken"]
    return f"Stop: {', '.join(broken)} broke its guard." if broken else ""


def shares(found: dict[str, Any]) -> str:
    """Whether units came in the shares that they should."""
    if found["p"] is None:
        return ""
    if found["suspect"]:
        return (
            f"sample ratio mismatch (p = {found['p']:.2g}): units did not come in the shares "
            "that they should; don't trust what follows"
        )
    return f"shares as they should be (p = {found['p']:.2g})"


def headings(report: dict[str, Any]) -> tuple[str, ...]:
    """Those of `rows`."""
    interval = f"{100 * (1 - report['alpha']):.6g}%, at any time"
    return ("metric", "variant", "control", "variant", "difference", interval, "p", "decision", "more calls")


def rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each metric of each variant beside the control's, as people read them."""
    for metric in report["metrics"]:
        for row in metric["variants"]:
            yield _row(metric, row)


def _row(metric: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    name = metric["metric"]
    base = number(name, metric["control"]["mean"]) if metric["control"] else "-"
    ends = "-" if row["low"] is None else f"{number(name, row['low'])} to {number(name, row['high'])}"
    label = name if metric["guard"] is None else f"{name} (guard {number(name, metric['guard'])})"
    more = row["more_calls"]
    return (
        label,
        row["variant"],
        base,
        number(name, row["mean"]),
        "-" if row["difference"] is None else number(name, row["difference"], sign=True),
        ends,
        "-" if row["p"] is None else f"{row['p']:.2g}",
        row["decision"],
        f"{more:,.0f}" if more else "" if more == 0 else "-",
    )


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

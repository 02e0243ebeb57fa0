"""A benchmark's result for people."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = {
    "first_ms": "time to first token",
    "gap_ms": "between tokens, as they arrive",
    "per_token_ms": "per token after the first",
    "total_ms": "whole answer",
}


def show(report: dict[str, Any]) -> None:
    """Print counts, a table of times, and whether the generator was in the way."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(
        f"{report['sent']} requests in {report['seconds']:.1f} s: {report['completed']} completed, "
        f"{report['refused']} refused, {report['failed']} failed"
    )
    for code, count in sorted(report["codes"].items()):
        console.print(f"  {count} × {code}", markup=False)
    offered = f"{report['offered_per_s']:g}/s" if report["offered_per_s"] else "one request"
    console.print(
        f"offered {offered}, completed {report['completed_per_s']:g}/s, "
        f"at most {report['most_in_flight']} under way"
    )
    usage = f", {report['without_usage']} answers without usage" if report["without_usage"] else ""
    console.print(
        f"tokens: {report['prompt_tokens']} in ({report['cached_tokens']} cached), "
        f"{report['completion_tokens']} out, {report['completion_tokens_per_s']:g}/s out{usage}"
    )
    console.print(f"cost: {report['usd']:.6f} USD" if report["usd"] is not None else "cost: not known here")
    if report["completed"]:
        console.print()
        console.print(_times(report))
    _generator(console, report["generator"])


def _times(report: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("MS, FROM WHEN IT WAS DUE")
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    for column in columns:
        table.add_column(column.upper(), justify="right")
    for name, about in ROWS.items():
        if report[name]["count"]:
            table.add_row(about, *(f"{report[name][column]:g}" for column in columns))
    return table


def _generator(console: Console, generator: dict[str, Any]) -> None:
    late = generator["late_ms"]
    said = (
        f"sent late by {late['p50']:g} ms (p50), {late['p99']:g} ms (p99), {late['max']:g} ms at most; "
        f"the generator used {generator['cpu_share']:.0%} of a core"
    )
    console.print()
    if generator["kept_up"]:
        console.print(f"quantiles within 1 %; {said}", style="dim")
    else:
        console.print(
            f"The generator did not keep up: {said}. The times above have this lateness in them: "
            "lower --rate or --speed, or raise --processes or --in-flight.",
            style="bold red",
        )

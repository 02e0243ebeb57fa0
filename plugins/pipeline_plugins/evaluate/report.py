"""A comparison for people: on a terminal, as Markdown for a pull request, as a page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from pipeline_plugins.evaluate.compare import Comparison, Difference
from pipeline_plugins.evaluate.plot import svg
from pipeline_plugins.evaluate.show import number, paper

LONGEST_VALUE = 40
SURE = 0.05
"""Adjusted p-value below which a difference is marked."""


def rows(found: Comparison) -> Iterator[list[str]]:
    """A line for each run: its number, what it is, and each metric with its difference from the first run's.

    The parts of a cell are lines of it.
    """
    for at, run in enumerate(found.runs):
        row = [f"{at + 1}{'*' if at in found.front else ''}", run.label]
        for metric in found.metrics:
            mean, difference = run.metrics.get(metric), found.differences[at].get(metric)
            parts = [number(metric, mean["mean"])] if mean is not None else []
            if difference is not None:
                parts += parts_of(difference)
            row.append("\n".join(parts))
        yield row


def parts_of(one: Difference) -> list[str]:
    """The mean, its interval and its p; one part where there is no difference at all."""
    if one.low == one.high == 0:
        return ["no difference"]
    mark = " ●" if one.p < SURE else ""
    ends = f"[{_signed(one.metric, one.low)}, {_signed(one.metric, one.high)}]"
    return [_signed(one.metric, one.mean), ends, f"p={_p(one.p)}{mark}"]


def _signed(metric: str, value: float) -> str:
    said = number(metric, value)
    return said if said.startswith("-") or value <= 0 else f"+{said}"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def legend(found: Comparison) -> list[str]:
    """What the signs mean."""
    axes = ", ".join(found.axes)
    said = [
        "Differences are from the first run, over the same examples; 95 % intervals (paired bootstrap, BCa).",
        f"p: paired permutation test, adjusted by Holm for all tests shown; ● where below {SURE}.",
        f"*: on the Pareto front of {axes}: no other run is as good in all of them and better in one.",
    ]
    return [*said, *found.notes]


def key_rows(found: Comparison) -> list[list[str]]:
    """The config keys that differ, with each run's value; nothing for a run whose config is not known."""
    return [
        [key, *(_value(value) if run.config else "" for run, value in zip(found.runs, values, strict=True))]
        for key, values in found.keys.items()
    ]


def _numbers(found: Comparison) -> list[str]:
    return [str(number) for number in range(1, len(found.runs) + 1)]


def _value(value: Any) -> str:
    said = "none" if value is None else str(value)
    return said if len(said) <= LONGEST_VALUE else said[: LONGEST_VALUE - 1] + "…"


def terminal(found: Comparison) -> None:
    """Print it."""
    from rich import box
    from rich.table import Table

    console = paper()
    table = Table(box=box.SIMPLE)
    for at, heading in enumerate(("", "run", *found.metrics)):
        table.add_column(heading, justify="left" if at < 2 else "right", overflow="fold", no_wrap=at > 1)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    if keys := key_rows(found):
        table = Table(box=box.SIMPLE)
        for heading in ("config key", *_numbers(found)):
            table.add_column(heading, overflow="fold")
        for row in keys:
            table.add_row(*row)
        console.print(table)
    for line in legend(found):
        console.print(line, style="dim")


def markdown(found: Comparison) -> str:
    """Tables of GitHub's Markdown."""
    parts = [_table(["", "run", *found.metrics], list(rows(found)))]
    if keys := key_rows(found):
        parts.append(_table(["config key", *_numbers(found)], keys))
    parts += [f"<sub>{'<br>'.join(map(escape, legend(found)))}</sub>"]
    return "\n\n".join(parts) + "\n"


def _table(heads: list[str], lines: list[list[str]]) -> str:
    def row(cells: list[str]) -> str:
        plain = (escape(cell, quote=False).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(plain)} |"

    ruler = ["---", "---", *["---:"] * (len(heads) - 2)]
    return "\n".join([row(heads), row(ruler), *map(row, lines)])


def page(found: Comparison) -> str:
    """A page that needs nothing else."""
    keys = key_rows(found)
    tables = _html(["", "run", *found.metrics], list(rows(found)))
    if keys:
        tables += "<h2>Config keys that differ</h2>"
        tables += _html(["key", *_numbers(found)], keys)
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in legend(found))
    pictures = "".join(f"<figure>{svg(found, cost)}</figure>" for cost in found.axes[1:])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Comparison of runs</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;"
        "padding:0 1rem;color:#1f2328}"
        "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:13px}"
        "th,td{padding:.3rem .7rem;border-bottom:1px solid #d1d9e0;text-align:right}"
        "th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}td{white-space:pre-line;vertical-align:top}"
        "figure{display:inline-block;margin:0 1rem 1rem 0;width:30rem}"
        ".note{color:#59636e;margin:.2rem 0;font-size:13px}"
        f"</style><h1>Comparison of runs</h1>{tables}{notes}<h2>Pareto front</h2>{pictures}</html>\n"
    )


def _html(heads: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(one)}" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in line) for line in lines)
    return f"<table><tr>{head}{body}</table>"

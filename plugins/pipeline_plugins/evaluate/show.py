"""A run's summary for people."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_plugins.evaluate.metric import MEASURES
from pipeline_plugins.evaluate.run import Done
from pipeline_plugins.evaluate.table import EXAMPLES, read_columns

TIMES = "_s"
HIDDEN = ("prompt_tokens", "completion_tokens", "saved_usd", "retries", "ttft_s")
"""Measures that a sweep's table has no room for."""
MOST_ERRORS = 5
"""Errors that are told; examples.parquet has all."""
PERCENT = ("_rate",)


def paper() -> Console:
    """Where tables go: as wide as the terminal, or wide enough in a pipe. Brackets are what they are."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def number(name: str, value: float) -> str:
    """A metric's value, as short as it can be read."""
    if name.endswith(PERCENT):
        return f"{value:.1%}"
    if name.endswith("_usd"):
        return f"-${-value:.3g}" if value < 0 else f"${value:.3g}"
    if name.endswith(TIMES):
        return f"{value * 1000:.1f} ms" if abs(value) < 1 else f"{value:.2f} s"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def summary(done: Done) -> None:
    """Print the metrics with their intervals, and where the run is."""
    manifest = done.manifest
    console = paper()
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "mean", "interval", "p50", "p95", "n"):
        side: Any = "left" if heading == "metric" else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for name, found in done.metrics.items():
        table.add_row(*_row(name, found, manifest["quality"]))
    console.print(table)
    data = manifest["data"]
    resumed = f", {done.resumed} of them from before" if done.resumed else ""
    console.print(f"{data['examples']} examples of {data['name']}{resumed}, {manifest['seconds']:.1f} s")
    scored = manifest["metrics"].keys() - {one.name for one in MEASURES}
    for name in sorted(scored - done.metrics.keys()):
        console.print(f"`{name}` has no value for any example: see what its scorer needs.", style="yellow")
    for note in (*data.get("notes", ()), *_failures(done)):
        console.print(note, soft_wrap=True)
    console.print(f"run: {done.folder}", soft_wrap=True)


def _failures(done: Done) -> Iterator[str]:
    """How many examples have no answer, why, and what was said of the first."""
    if not done.metrics.get("error_rate", {}).get("mean"):
        return
    found = read_columns(done.folder / EXAMPLES, ["id", "outcome", "error", "message"])
    rows = zip(found["id"], found["outcome"], found["error"], found["message"], strict=True)
    failed = [(id, error, message) for id, outcome, error, message in rows if outcome == "failed"]
    counts = Counter(str(error) for _, error, _ in failed).most_common(MOST_ERRORS)
    said = ", ".join(f"{error} {count:,}" for error, count in counts)
    yield f"{len(failed):,} of {len(found['id']):,} examples failed: {said}. examples.parquet says why."
    id, _, message = failed[0]
    if message:
        yield f"The first, `{id}`: {message}"


def _row(name: str, found: dict[str, Any], quality: str | None) -> list[str]:
    label = f"{name} (quality)" if name == quality else name
    spread = f"{number(name, found['low'])} – {number(name, found['high'])}"
    ends = [number(name, found[key]) for key in ("mean", "p50", "p95")]
    return [label, ends[0], spread, ends[1], ends[2], str(found["n"])]


def sweep_table(folder: Path, points: Sequence[dict[str, Any]]) -> None:
    """Print a line for each point: what is its own, and its means."""
    console = paper()
    complete = [point for point in points if point["state"] == "complete"]
    shared = set.intersection(*(set(point["overrides"]) for point in complete)) if complete else set()
    names = [name for name in (complete[0]["means"] if complete else ()) if name not in HIDDEN]
    table = Table(box=box.SIMPLE)
    table.add_column("point", overflow="fold", min_width=28)
    for name in names:
        table.add_column(name, justify="right")
    for point in points:
        own = " ".join(text for text in point["overrides"] if text not in shared) or "(all defaults)"
        means = point.get("means") or {}
        shown = [number(name, means[name]) if name in means else "" for name in names]
        table.add_row(own, *(shown if means else [point["state"], *shown[1:]]))
    console.print(table)
    reused = sum(point.get("reused", 0) for point in points)
    console.print(
        f"{len(complete)} of {len(points)} points complete; {reused} answers were taken from other points"
    )
    console.print(f"sweep: {folder}    pipeline compare {folder}", soft_wrap=True)


def agreement(rows: Sequence[tuple[str, float, float, bool]], folder: Path) -> None:
    """Print each metric of two runs of the same: before, now, and whether they agree."""
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "before", "now", ""):
        table.add_column(heading, justify="right" if heading in ("before", "now") else "left", no_wrap=True)
    for name, before, now, clock in rows:
        said = Text("a time" if clock else "the same") if clock or before == now else Text("differs", "red")
        table.add_row(name, number(name, before), number(name, now), said)
    console = paper()
    console.print(table)
    console.print(f"run: {folder}", soft_wrap=True)

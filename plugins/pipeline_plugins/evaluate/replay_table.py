"""What a replay found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta

import orjson
from rich import box
from rich.table import Table

from pipeline_plugins.data.ledger import counted
from pipeline_plugins.evaluate.compare import Comparison
from pipeline_plugins.evaluate.prepare import Prepared
from pipeline_plugins.evaluate.replay import RECORDED, Cost, lost
from pipeline_plugins.evaluate.report import SURE, parts_of
from pipeline_plugins.evaluate.run import Done
from pipeline_plugins.evaluate.show import number, paper

LATE = 0.01
"""Seconds of lateness that are told."""


def terminal(prepared: Prepared, done: Done, found: Comparison, cost: Cost | None) -> None:
    """Print each metric as recorded and now, what the calls cost, and where the run is."""
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "recorded", "now", "difference", "interval", "p", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
    for row in _rows(found):
        table.add_row(*row)
    console = paper()
    console.print(table)
    console.print(_which(prepared), soft_wrap=True)
    console.print(_cost(cost, prepared.settings.confidence), soft_wrap=True)
    for line in (*prepared.data.notes, *_losses(prepared, done), *_lateness(done)):
        console.print(line, soft_wrap=True)
    console.print(
        f"Differences are paired by call, with {_percent(prepared.settings.confidence)} intervals "
        "(BCa bootstrap); "
        f"p of a paired permutation test, adjusted by Holm; ● where below {SURE}.",
        style="dim",
        soft_wrap=True,
    )
    console.print(
        f"run: {done.folder}    pipeline compare {done.folder / RECORDED} {done.folder}", soft_wrap=True
    )


def _rows(found: Comparison) -> Iterator[list[str]]:
    recorded, now = found.runs
    for name, figures in now.metrics.items():
        before, change = recorded.metrics.get(name), found.differences[1].get(name)
        means = [number(name, one["mean"]) if one is not None else "" for one in (before, figures)]
        row = [name, *means, *(parts_of(change) if change is not None else ())]
        count = change.examples if change is not None else figures["n"]
        yield [*row, *[""] * (6 - len(row)), str(count)]


def _which(prepared: Prepared) -> str:
    examples = prepared.data.examples
    times = [example.at for example in examples if example.at is not None]
    first, last = min(times), max(times)
    owners = len({example.owner for example in examples})
    start = datetime.fromtimestamp(first).astimezone().isoformat(" ", "seconds")
    return (
        f"{counted(len(examples), 'call')} of {counted(owners, 'owner')}, "
        f"recorded from {start} on for {_lasting(last - first)}."
    )


def _losses(prepared: Prepared, done: Done) -> Iterator[str]:
    errors = lost(prepared, done)
    if errors:
        said = ", ".join(f"{error} {count:,}" for error, count in errors.most_common(5))
        yield (
            f"{counted(errors.total(), 'call')} that had an answer failed now ({said}): what they no longer "
            "cost is no saving."
        )


def _lateness(done: Done) -> Iterator[str]:
    late = done.manifest.get("late_s", 0.0)
    if late > LATE:
        yield (
            f"One call in a hundred was sent more than {number('late_s', late)} after it was due, which is "
            "part of its times: this process did not keep up with the pace."
        )


def _lasting(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _cost(cost: Cost | None, confidence: float) -> str:
    if cost is None:
        return "What they cost is not known: the ledger or this configuration keeps no prices."
    said = f"They cost ${cost.recorded:.4g} as recorded, and ${cost.replayed:.4g} with this configuration"
    if cost.change is None:
        return f"{said}."
    return (
        f"{said}: {cost.change:+.1%} ({_percent(confidence)} interval {cost.low:+.1%} to {cost.high:+.1%})."
    )


def _percent(confidence: float) -> str:
    """99.9 % is not 100 %."""
    return f"{100 * confidence:.6g}%"


def as_json(prepared: Prepared, done: Done, found: Comparison, cost: Cost | None) -> str:
    """The same as one object."""
    recorded, now = found.runs
    told = {
        "run": str(done.folder),
        "calls": len(prepared.data.examples),
        "recorded": recorded.metrics,
        "now": now.metrics,
        "differences": {name: asdict(one) for name, one in found.differences[1].items()},
        "cost": None if cost is None else asdict(cost),
        "lost": lost(prepared, done),
        "late_s": done.manifest.get("late_s"),
        "notes": list(prepared.data.notes),
    }
    return orjson.dumps(told).decode()

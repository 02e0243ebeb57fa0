"""Progress of long work: a bar on a terminal, log lines elsewhere.

    with track("converting model", total=n_tensors) as step:
        for tensor in tensors:
            ...
            step()

The CLI chooses how it is shown; a library user sees log lines. Safe from any thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

LOG_EVERY = 5.0
"""Seconds between log lines about the same piece of work."""


@contextmanager
def track(what: str, total: float | None = None, of_bytes: bool = False) -> Iterator[Callable[..., None]]:
    """Show `what` as under way; the yielded function advances it by an amount (1).

    Amounts `of_bytes` are shown with their rate.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(what, total, of_bytes) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: float | None, of_bytes: bool) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if of_bytes:
        columns.append(TransferSpeedColumn())
    if total is not None:
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount=1.0: bar.advance(task, amount)


@contextmanager
def _lines(what: str, total: float | None, of_bytes: bool) -> Iterator[Callable[..., None]]:
    import structlog

    log = structlog.get_logger("pipeline.progress")
    started = said = perf_counter()
    done = 0.0

    def advance(amount: float = 1.0) -> None:
        nonlocal done, said
        done += amount
        now = perf_counter()
        if now - said >= LOG_EVERY:
            said = now
            rate = {"bytes_per_second": round(done / (now - started))} if of_bytes else {}
            log.info(what, done=done, total=total, seconds=round(now - started, 1), **rate)

    yield advance
    log.info(what, seconds=round(perf_counter() - started, 2), state="done")

"""A second attempt beside one that is slow; whichever answers first wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pipeline import Reply
from pipeline_plugins.attempts import is_failure

Attempt = Callable[[], Coroutine[Any, Any, Reply]]


async def race(attempt: Attempt, delay: float, may_hedge: Callable[[], bool]) -> tuple[Reply, bool]:
    """The first good reply of an attempt and, `delay` seconds later, another one.

    Returns it, and whether the second attempt gave it. The loser is cancelled, and a stream
    that it has begun is closed, before this returns. Where both fail, the first attempt's
    failure is returned or raised.
    """
    tasks = [asyncio.create_task(attempt())]
    try:
        await asyncio.wait(tasks, timeout=delay)
        if not tasks[0].done() and may_hedge():
            tasks.append(asyncio.create_task(attempt()))
        winner = await _first_good(tasks)
        await _clean_up([task for task in tasks if task is not winner])
    except BaseException:
        # Whoever asked has left, maybe after an attempt had won.
        await _clean_up(tasks)
        raise
    return winner.result(), winner is not tasks[0]


async def _first_good(tasks: list[asyncio.Task[Reply]]) -> asyncio.Task[Reply]:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.exception() and not is_failure(task.result().status):
                return task
    return tasks[0]


async def _clean_up(losers: list[asyncio.Task[Reply]]) -> None:
    for task in losers:
        task.cancel()
    for result in await asyncio.gather(*losers, return_exceptions=True):
        if isinstance(result, Reply):
            await result.aclose()

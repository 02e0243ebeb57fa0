"""When examples are sent: as soon as there is room, or when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

from pipeline.progress import track
from pipeline_plugins.evaluate.example import Example

MOST = 4096
"""Examples of an open loop that are under way at a time; those beyond are late."""

Work = Callable[[Example, float], Awaitable[None]]
"""What is done with an example; its times count from the second one, a time of `perf_counter`."""


async def closed_loop(examples: Sequence[Example], work: Work, at_once: int, what: str) -> None:
    """Work on each in order, on so many at a time: the next one begins when one ends."""
    if not examples:
        return
    left = iter(examples)
    with track(what, total=len(examples)) as step:

        async def worker() -> None:
            for example in left:
                await work(example, perf_counter())
                step()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(examples))):
                    group.create_task(worker())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def open_loop(examples: Sequence[Example], work: Work, speed: float, what: str) -> float:
    """Work on each when it is due, by its `at`, `speed` times as fast, however long others take.

    Times count from when it was due, as who sent it would have felt it. Returns how late they were
    begun: seconds, the 99th percentile.
    """
    if not examples:
        return 0.0
    late: list[float] = []
    room = asyncio.Semaphore(MOST)
    start, first = perf_counter(), examples[0].at or 0.0
    with track(what, total=len(examples)) as step:

        async def one(example: Example, due: float) -> None:
            late.append(perf_counter() - due)
            try:
                await work(example, due)
            finally:
                room.release()
            step()

        try:
            async with asyncio.TaskGroup() as group:
                for example in examples:
                    due = start + ((example.at or 0.0) - first) / speed
                    while (delay := due - perf_counter()) > 0:  # noqa: ASYNC110 — timers may be early
                        await asyncio.sleep(delay)
                    await room.acquire()
                    group.create_task(one(example, due))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return sorted(late)[len(late) * 99 // 100]

"""Deadlines on one timer: what is late is cancelled, what is done is left alone."""

import asyncio
from typing import Any

from pipeline.server.deadlines import Deadlines


async def run_late(deadlines: Deadlines) -> bool:
    task: Any = asyncio.current_task()
    deadlines.start(task)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        return deadlines.stop(task) and task.uncancel() == 0
    return False


def test_every_task_that_is_late_is_cancelled_and_told_why() -> None:
    async def go() -> list[bool]:
        deadlines = Deadlines(0.02)
        return await asyncio.gather(*(run_late(deadlines) for _ in range(3)))

    assert asyncio.run(go()) == [True, True, True]


def test_a_task_that_is_stopped_in_time_is_left_alone_and_later_ones_still_watched() -> None:
    async def go() -> tuple[bool, bool]:
        deadlines = Deadlines(0.02)
        task: Any = asyncio.current_task()
        deadlines.start(task)
        late = deadlines.stop(task)
        await asyncio.sleep(0.05)
        return late, await asyncio.create_task(run_late(deadlines))

    assert asyncio.run(go()) == (False, True)


def test_a_task_that_someone_else_cancels_was_not_late() -> None:
    async def go() -> bool:
        task = asyncio.create_task(run_late(Deadlines(30)))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(go()) is False

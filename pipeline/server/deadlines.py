"""Deadlines of tasks, on one timer for all of them."""

from __future__ import annotations

import asyncio
from typing import Any


class Deadlines:
    """Cancels tasks that are not done after `seconds`.

    All have the same time, so the first to come is the first to be late, and one timer is
    enough. `asyncio.timeout` has one for each, which costs more than a stage of the graph.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> float:
        """Watch a task from now on. Returns its deadline, in event-loop time."""
        loop = task.get_loop()
        due = self._due[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)
        return due

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """Leave a task alone. Whether its deadline had passed, and was what cancelled it."""
        return self._due.pop(task, None) is None

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due:
            task, due = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[task]
            task.cancel()

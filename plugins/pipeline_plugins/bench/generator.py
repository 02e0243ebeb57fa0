"""Sending requests when they are due, however slow the answers are: an open loop.

A closed loop waits for an answer before it sends again, so that a slow server is asked less,
and its slowest moments are hardly seen: coordinated omission. Here times count from when a
request was due, also where the generator itself was late.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from pipeline_plugins.bench.arrivals import Arrival
from pipeline_plugins.bench.result import Result
from pipeline_plugins.bench.targets import Answer, Target

TEXT = re.compile(rb'"(?:content|text|reasoning_content|arguments)":\s?"[^"]')
"""What a piece of a stream has that brings text, and not a role or usage alone."""

WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up"
)

LENGTH = 4096
"""Words of the text that prompts are cut from; longer ones repeat it."""


@dataclass(slots=True)
class Prompts:
    """Makes bodies of requests. A common word is about a token; what models count is in their usage.

    `extra` are fields of the body besides.
    """

    model: str = "default"
    streaming: bool = True
    same: bool = False
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    _words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._words = Random(self.seed).choices(WORDS.split(), k=LENGTH)

    def body(self, number: int, arrival: Arrival) -> bytes:
        """A chat request of some tokens; each has words of its own unless they are to be the `same`."""
        first = 0 if self.same else number * 997 % LENGTH
        count = arrival.prompt_tokens
        text = self._words[first:] + self._words * (count // LENGTH + 1)
        begin = "" if self.same else f"{number}: "
        return orjson.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": begin + " ".join(text[:count])}],
                "max_tokens": arrival.output_tokens,
                **({"stream": True, "stream_options": {"include_usage": True}} if self.streaming else {}),
                **self.extra,
            }
        )


class Reading:
    """Notes when a stream's pieces of text came."""

    __slots__ = ("first", "last", "result")

    def __init__(self, result: Result) -> None:
        self.result = result
        self.first: float | None = None
        self.last = 0.0

    def __call__(self, part: bytes) -> None:
        """A piece came."""
        if not TEXT.search(part):
            return
        now = time.monotonic()
        if self.first is None:
            self.first = now
        else:
            self.result.gap.add((now - self.last) * 1000)
        self.last = now


class Generator:
    """Sends to one target; at most `most` requests are under way, and those beyond are late."""

    def __init__(self, target: Target, prompts: Prompts, *, most: int) -> None:
        self.result = Result()
        self._target = target
        self._prompts = prompts
        self._room = asyncio.Semaphore(most)
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0

    async def run(self, arrivals: Iterable[tuple[int, Arrival]], start: float) -> Result:
        """Send numbered requests, due from `start` (`time.monotonic()`) on, and wait for all answers."""
        result, cpu, due = self.result, time.process_time(), start
        for number, arrival in arrivals:
            due = start + arrival.at
            # Made before it is due, so that its making delays nothing.
            raw = self._prompts.body(number, arrival)
            while (delay := due - time.monotonic()) > 0:  # noqa: ASYNC110 — timers may be early
                await asyncio.sleep(delay)
            await self._room.acquire()
            task = asyncio.create_task(self._one(number, raw, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        result.offered_seconds = due - start
        if self._tasks:
            await asyncio.wait(self._tasks)
        result.seconds = time.monotonic() - start
        result.cpu_seconds = time.process_time() - cpu
        return result

    async def _one(self, number: int, raw: bytes, due: float) -> None:
        result = self.result
        reading = Reading(result)
        result.sent += 1
        self._under_way += 1
        result.most_in_flight = max(result.most_in_flight, self._under_way)
        result.late.add((time.monotonic() - due) * 1000)
        try:
            answer = await self._target.send(number, raw, reading)
        except Exception as error:
            answer = Answer(0, type(error).__name__)
        finally:
            self._under_way -= 1
            self._room.release()
        self._note(answer, reading, due, time.monotonic())

    def _note(self, answer: Answer, reading: Reading, due: float, ended: float) -> None:
        result, usage = self.result, answer.usage
        if answer.usd is not None:
            result.usd = (result.usd or 0.0) + answer.usd
        if answer.code is not None:
            result.codes[answer.code] += 1
            if 400 <= answer.status < 500:
                result.refused += 1
            else:
                result.failed += 1
            return
        result.completed += 1
        result.total.add((ended - due) * 1000)
        if reading.first is not None:
            result.first.add((reading.first - due) * 1000)
        if usage is None:
            result.without_usage += 1
            return
        result.prompt_tokens += usage.prompt_tokens
        result.cached_tokens += usage.cached_tokens
        result.completion_tokens += usage.completion_tokens
        if reading.first is not None and usage.completion_tokens > 1:
            per_token = (reading.last - reading.first) / (usage.completion_tokens - 1)
            result.per_token.add(per_token * 1000)

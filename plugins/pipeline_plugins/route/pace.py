"""How fast a target answers: decaying estimates of its time to the first token and per token."""

from __future__ import annotations

from math import exp, inf
from time import perf_counter

from pipeline import Call, End, Reply
from pipeline.errors import APIError
from pipeline_plugins.route.targets import Target, Targets

FAILED = 1.0
"""Seconds to the first token that a failure counts for at least: failing fast is not fast."""

WORST = 600.0
"""Seconds that an estimate grows to at most."""


class Peak:
    """A peak-sensitive moving average (peak EWMA, as in Finagle): up at once, down slowly.

    A value above the average becomes the average; one below moves it by what has decayed
    since the last one, `1 - exp(-dt / decay)`. None before the first.
    """

    __slots__ = ("_at", "_decay", "value")

    def __init__(self, decay: float) -> None:
        self.value: float | None = None
        self._decay = decay
        self._at = 0.0

    def add(self, value: float, now: float) -> None:
        """Learn one value, in seconds, seen at `now`."""
        if self.value is None or value >= self.value:
            self.value = min(value, WORST)
        else:
            self.value = value + (self.value - value) * exp((self._at - now) / self._decay)
        self._at = now


class Pace:
    """What one target's calls took, as far as this router sent them.

    A whole reply does not tell when its first token was there. Until a stream tells it, its
    time is spread evenly over its tokens; then the rest after the first token is.
    """

    __slots__ = ("_streamed", "first", "in_flight", "token")

    def __init__(self, decay: float) -> None:
        self.first = Peak(decay)
        self.token = Peak(decay)
        self.in_flight = 0
        self._streamed = False

    def expected(self, tokens: int) -> float:
        """Seconds that an answer of so many tokens takes, for each call that it shares the target with.

        0 for a target that nobody has tried, infinite while the first call tries it.
        """
        if self.first.value is None:
            return inf if self.in_flight else 0.0
        return (self.first.value + tokens * (self.token.value or 0.0)) * (self.in_flight + 1)

    async def carry(self, targets: Targets, target: Target, call: Call) -> Reply:
        """Send a call, and learn from how it goes."""
        self.in_flight += 1
        sent = perf_counter()
        try:
            reply = await targets.send(call, target)
        except BaseException as error:
            self.in_flight -= 1
            if isinstance(error, Exception) and (not isinstance(error, APIError) or _failed(error.status)):
                self.fail(sent, perf_counter())
            raise
        if reply.body is None:
            reply.on_end(lambda end: self._ended(sent, end))
            return reply
        self.in_flight -= 1
        if _failed(reply.status):
            self.fail(sent, perf_counter())
        elif reply.status < 400:
            usage = reply.usage
            self.learn(sent, perf_counter(), usage.completion_tokens if usage is not None else 0)
        return reply

    def learn(self, sent: float, ended: float, tokens: int) -> None:
        """A whole reply of so many tokens."""
        if not self._streamed:
            self.first.add((ended - sent) / (tokens + 1), ended)
        if tokens:
            self.token.add(max(0.0, ended - sent - (self.first.value or 0.0)) / tokens, ended)

    def learn_stream(self, sent: float, first: float, ended: float, tokens: int) -> None:
        """A stream of so many tokens, the first of them at `first`."""
        self._streamed = True
        self.first.add(first - sent, ended)
        if tokens > 1:
            self.token.add((ended - first) / (tokens - 1), ended)

    def fail(self, sent: float, now: float) -> None:
        """A call that failed: the target is taken to be slower than it was."""
        self.first.add(max(now - sent, FAILED, 2 * (self.first.value or 0.0)), now)

    def _ended(self, sent: float, end: End) -> None:
        self.in_flight -= 1
        if end.outcome == "failed":
            self.fail(sent, end.ended)
        elif end.outcome == "completed" and end.first_chunk is not None:
            tokens = end.usage.completion_tokens if end.usage is not None else end.chunks
            self.learn_stream(sent, end.first_chunk, end.ended, tokens)


def _failed(status: int) -> bool:
    return status >= 500 or status == 429

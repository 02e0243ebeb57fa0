"""What is measured of each example, and the contract of scorers."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pipeline_plugins.evaluate.example import Example, Outcome

if TYPE_CHECKING:
    pass

Scores = Mapping[str, float | None]
"""A value for each of a scorer's metrics; None where it says nothing about the example."""


@dataclass(slots=True, frozen=True)
class Metric:
    """A number that each example has; a run's is the mean of its examples'.

    better  which way is better, None where neither is
    failed  what an example without an answer counts as; None leaves it out
    clock   whether it differs from run to run though the answers are the same
    """

    name: str
    better: Literal["higher", "lower"] | None = "higher"
    failed: float | None = 0.0
    clock: bool = False


@runtime_checkable
class Scorer(Protocol):
    """The contract of a plugin of the kind `score`, besides its `Config`.

    It may take `name`, that of its node in the config, by which its metrics are called. It may
    have `async open(graph)`, called before the first example with the open graph,
    `async close()`, and `applies(example)`: whether the row has what an answer is held to. Where
    it has not, an example that failed counts no more than one that was answered.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it measures."""
        ...

    def score(self, example: Example, outcome: Outcome) -> Scores | Awaitable[Scores]:
        """Score a completed example's answer. Raises `DataError` for a row that is wrong.

        As a coroutine function it is called once all answers are there, so that none waits for it.
        """
        ...


def _measure(
    name: str, *, clock: bool = False, better: Literal["higher", "lower"] | None = "lower"
) -> Metric:
    return Metric(name, better, None, clock)


MEASURES = (
    Metric("error_rate", "lower", 1.0),
    _measure("cost_usd"),
    _measure("saved_usd", better=None),
    _measure("latency_s", clock=True),
    _measure("ttft_s", clock=True),
    _measure("prompt_tokens"),
    _measure("completion_tokens"),
    Metric("cache_hit_rate", "higher", None),
    _measure("retries"),
)
"""Measured of every run, whatever scorers it has."""


def measures(outcome: Outcome) -> dict[str, float | None]:
    """The values of `MEASURES`; None where there is nothing to measure."""
    cache = None if outcome.cache is None else float(outcome.cache in ("hit", "semantic"))
    return {
        "error_rate": float(outcome.failed),
        "cost_usd": outcome.usd,
        "saved_usd": outcome.saved_usd,
        "latency_s": None if outcome.failed else outcome.seconds,
        "ttft_s": outcome.first,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cache_hit_rate": cache,
        "retries": None if outcome.valid is None else float(outcome.retries),
    }

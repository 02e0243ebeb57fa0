"""When requests are due and how long they are: from a trace, at random, or evenly spaced."""

from __future__ import annotations

import csv
import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from math import isfinite
from pathlib import Path
from typing import IO, Literal, cast

import click

MOST_TOKENS = 10_000_000
"""Of a prompt or an answer: more than any model takes, and less than fills the memory."""

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(slots=True, frozen=True)
class Arrival:
    """A request that is due `at` seconds after the start, and its tokens."""

    at: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, frozen=True)
class Load:
    """What to send.

    trace          a CSV of requests, None to make them up
    speed          how much faster than its own pace a trace is sent
    rate           requests per second that are made up, `poisson` or `constant`
    prompt_tokens  and `output_tokens` of those that are made up
    shrink         what the tokens of a trace are multiplied with
    requests       how many at most, `seconds` for how long at most
    """

    trace: Path | None = None
    speed: float = 1.0
    rate: float = 10.0
    arrivals: Literal["poisson", "constant"] = "poisson"
    prompt_tokens: int = 64
    output_tokens: int = 32
    shrink: float = 1.0
    requests: int | None = None
    seconds: float | None = None
    seed: int = 0

    def __iter__(self) -> Iterator[Arrival]:
        """The requests in the order in which they are due. Raises `click.UsageError` for a bad trace."""
        found = self._made_up() if self.trace is None else self._traced(self.trace)
        if self.seconds is not None:
            seconds = self.seconds
            found = takewhile(lambda arrival: arrival.at < seconds, found)
        return islice(found, self.requests)

    def _made_up(self) -> Iterator[Arrival]:
        chance = random.Random(self.seed)
        at = 0.0
        while True:
            yield Arrival(at, self.prompt_tokens, self.output_tokens)
            at += chance.expovariate(self.rate) if self.arrivals == "poisson" else 1 / self.rate

    def _traced(self, path: Path) -> Iterator[Arrival]:
        started: float | None = None
        with _reading(path) as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise click.UsageError(
                    f"{path}: no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}."
                )
            for row in rows:
                try:
                    time = _seconds(row["TIMESTAMP"])
                    tokens = [_tokens(row[name], self.shrink) for name in COLUMNS[1:]]
                except (TypeError, ValueError, OverflowError):
                    raise click.UsageError(
                        f"{path}:{rows.line_num}: no time and two numbers of up to {MOST_TOKENS:,} tokens: "
                        f"{list(row.values())}."
                    ) from None
                started = time if started is None else started
                yield Arrival(max(0.0, time - started) / self.speed, *tokens)


@contextmanager
def _reading(path: Path) -> Iterator[IO[str]]:
    opened = cast(Callable[..., IO[str]], gzip.open if path.suffix == ".gz" else open)
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise click.UsageError(f"The trace {path} can't be read: {why}.") from None


def _seconds(text: str) -> float:
    """Seconds, or an ISO 8601 time."""
    try:
        found = float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
    if not isfinite(found):
        raise ValueError(text)
    return found


def _tokens(text: str, shrink: float) -> int:
    found = max(1, round(int(text) * shrink))
    if found > MOST_TOKENS:
        raise ValueError(text)
    return found

"""An example to evaluate, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable


class DataError(ValueError):
    """The data set can't be used; the message says where and why."""


@dataclass(slots=True, frozen=True)
class Example:
    """One row of a data set.

    body       the request's fields, `messages` among them
    fields     the row's other columns, for scorers: `expected`, `relevant`, …
    operation  `chat`, `completion` or `embedding`
    owner      owner that the call is of, None for the run's
    at         when it was sent once, in seconds since any start; None where nobody knows
    """

    id: str
    body: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    operation: str = "chat"
    owner: str | None = None
    at: float | None = None


@dataclass(slots=True, frozen=True)
class DataSet:
    """All examples, each with an id of its own; `sha256` is of what they were read from.

    `recorded` is what became of each of them before, where that is known, in the same order;
    `notes` are sentences on what was left out.
    """

    name: str
    sha256: str
    examples: Sequence[Example]
    recorded: Sequence[Outcome] = ()
    notes: Sequence[str] = ()


@runtime_checkable
class Source(Protocol):
    """The contract of a plugin of the kind `data`, besides its `Config`.

    It may have `claim(plan) -> Plan`, called before `read` with what the configuration asks for: the
    graph that is run is what it returns, without extensions that it reads from. Raises `ConfigError`.
    """

    def read(self) -> DataSet:
        """All examples. Blocks. Raises `DataError` that says which row is wrong."""
        ...


@dataclass(slots=True)
class Outcome:
    """What became of one example. Times are in seconds, costs in USD.

    outcome  `completed`, or `failed` with `error`: a code, or an exception's name
    seconds  until all of the answer was there; `first` until its first chunk, None if not streamed
    usd      cost of all attempts, None where nothing keeps prices; `saved` what a cache or router saved
    reused   attempts whose answer was taken from another run of the same sweep: their time and cost
             are those of the run that made them
    """

    id: str
    outcome: Literal["completed", "failed"] = "failed"
    status: int = 0
    error: str | None = None
    message: str | None = None
    answer: str | None = None
    finish: str | None = None
    model: str | None = None
    route: str | None = None
    cache: str | None = None
    valid: bool | None = None
    retries: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None
    saved_usd: float | None = None
    seconds: float = 0.0
    first: float | None = None
    reused: int = 0
    passages: tuple[str, ...] = ()
    scores: dict[str, float | None] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.outcome == "failed"

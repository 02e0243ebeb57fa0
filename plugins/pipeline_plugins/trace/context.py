"""Which trace a call belongs to: W3C Trace Context, https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import getrandbits
from time import perf_counter

from pipeline import Call, End, Reply, Usage

PARENT = "traceparent"
STATE = "tracestate"

HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""Version, trace, parent and flags; versions after `00` may have more behind them."""

STATES = re.compile(r"[\x20-\x7e]{1,512}")
"""What is passed on of a list of other systems' states."""

SAMPLED = 1
"""The flag of a trace that is kept."""


@dataclass(slots=True)
class Attempt:
    """One passage to a model. Times are `perf_counter` seconds; `span` is its id.

    `asked` is what a stage asked of its own, None for the client's call.
    """

    stage: str
    provider: str
    span: int
    started: float
    ended: float = 0.0
    outcome: str = "running"
    error: str | None = None
    first: float | None = None
    usage: Usage | None = None
    model: str | None = None
    asked: Call | None = None


@dataclass(slots=True)
class Trace:
    """A call's place in a trace.

    span      id of the call's own span; `parent` is the client's, 0 without one
    sampled   whether whoever decides has decided to keep it
    state     what the client's other systems have to say to each other
    attempts  in the order in which they began
    """

    trace: int
    span: int
    parent: int
    sampled: bool
    state: str = ""
    attempts: list[Attempt] = field(default_factory=list)

    def outbound(self, span: int) -> dict[str, str]:
        """The headers that tell a model's server of the span that waits for it."""
        headers = {PARENT: f"00-{self.trace:032x}-{span:016x}-{self.sampled:02x}"}
        if self.state:
            headers[STATE] = self.state
        return headers

    def begin(self, stage: str, provider: str, asked: Call | None = None) -> Attempt:
        """An attempt that begins now."""
        attempt = Attempt(stage, provider, new_id(64), perf_counter(), asked=asked)
        self.attempts.append(attempt)
        return attempt


def begin(headers: Mapping[str, str], ratio: float) -> Trace:
    """The trace of a request: its client's, or a new one that is kept in `ratio` of the cases.

    A client that has decided whether its trace is kept has decided for us. A header that is
    not to be understood is as if it were not there.
    """
    found = HEADER.fullmatch(headers.get(PARENT, ""))
    if found is not None:
        version, trace, parent = found[1], int(found[2], 16), int(found[3], 16)
        if version != "ff" and not (version == "00" and found[5]) and trace and parent:
            state = headers.get(STATE, "")
            kept = state if STATES.fullmatch(state) else ""
            return Trace(trace, new_id(64), parent, bool(int(found[4], 16) & SAMPLED), kept)
    trace = new_id(128)
    # The lower half decides, as in OpenTelemetry's own sampler: others come to the same result.
    sampled = trace & 0xFFFF_FFFF_FFFF_FFFF < ratio * 2**64
    return Trace(trace, new_id(64), 0, sampled)


def new_id(bits: int) -> int:
    """A random id, which is never zero."""
    return getrandbits(bits) or 1


@dataclass(slots=True, frozen=True)
class Ended:
    """A call that is over, for spans to be made of it off its way.

    `clock` is `time.time()` less `perf_counter()` at its end; `end` is a stream's.
    """

    trace: Trace
    call: Call
    clock: float
    outcome: str
    status: int
    error: str | None
    ended: float
    reply: Reply | None = None
    end: End | None = None

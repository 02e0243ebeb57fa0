"""Learning of each call's and each attempt's end, for as little of the call's time as can be.

What is handed on are references and numbers. Columns are made of them in the writer's
thread, see `rows`.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from pipeline import Call, End, Reply, Usage
from pipeline.call import Step, Tenant
from pipeline.errors import APIError
from pipeline.price import Charge, Spent
from pipeline.stage import Layer, StageCall
from pipeline_plugins.outcome import of_end, of_status, told

HEAD = 512
"""Bytes at an answer's beginning in which its id is looked for."""

TAIL = 1024
"""Bytes at an answer's end in which its finish reason is looked for."""

GAPS = 8192
"""Chunks of a stream whose times are kept."""

LONGEST = 256
"""Characters kept of a name that a client wrote."""


@dataclass(slots=True)
class Attempt:
    """One passage to a model. Times are `perf_counter` seconds; `outcome` as in `Ended`."""

    stage: str
    started: float
    outcome: str = "running"
    status: int = 0
    error: str | None = None
    model: str | None = None
    ended: float = 0.0
    first: float | None = None
    chunks: int = 0
    usage: Usage | None = None
    charge: Charge | None = None


@dataclass(slots=True)
class Attempts:
    """A call's attempts, in the order in which they began.

    `closed` once the call's own row was handed on.
    """

    call: str
    attempts: list[Attempt] = field(default_factory=list)
    closed: bool = False


@dataclass(slots=True)
class Ended:
    """A call that is over.

    outcome   `completed`; `failed` (an error, or a stream that broke), `refused` (a 4xx of the
              gateway's own or a model's), `cancelled` (the client left)
    status    the HTTP status that was sent, 0 where none was
    head      the answer's beginning, which has its id; `tail` its end, which has its finish reason
    times     `perf_counter` seconds of a stream's chunks
    request   the body, where bodies are kept, and `reply` the answer's bytes
    """

    id: str
    time: float
    operation: str
    model: str
    streaming: bool
    tenant: Tenant
    received: float
    steps: list[Step]
    decisions: dict[type, Any]
    attempts: Attempts
    outcome: str
    status: int
    error: str | None
    ended: float
    used: str | None = None
    head: bytes = b""
    tail: bytes = b""
    first: float | None = None
    chunks: int = 0
    times: array[float] | None = None
    usage: Usage | None = None
    request: bytes | None = None
    reply: bytes | None = None

    @property
    def weight(self) -> int:
        """Bytes of its bodies."""
        return len(self.request or b"") + len(self.reply or b"")


Item = Ended | Attempts


class Watch:
    """The layers of a ledger; `put` takes what ended, and must not wait.

    `bodies` is how many bytes of a request and of a reply are kept, 0 for none.
    """

    def __init__(self, put: Callable[[Item], None], decisions: tuple[type, ...], bodies: int = 0) -> None:
        self._put = put
        self._wanted = decisions
        self.bodies = bodies
        # Where its attempts are in a call's record: a second ledger has its own.
        self._own = type("Followed", (), {})

    def entry(self, inner: StageCall) -> StageCall:
        """What goes around the graph's entry."""

        async def watched(call: Call) -> Reply:
            attempts = Attempts(call.id)
            call.record.decisions[self._own] = attempts
            try:
                reply = await inner(call)
            except BaseException as error:
                outcome, status, code = told(error, call)
                self._put(self._row(call, attempts, outcome, status, code, perf_counter()))
                raise
            if reply.body is not None:
                outcome = of_status(reply.status)
                row = self._row(call, attempts, outcome, reply.status, None, perf_counter(), reply)
                row.head, row.tail, row.usage = reply.body[:HEAD], reply.body[-TAIL:], reply.usage
                if 0 < len(reply.body) <= self.bodies:
                    row.reply = reply.body
                self._put(row)
                return reply

            def ended(end: End) -> None:
                outcome, code = of_end(end, reply.status, call)
                row = self._row(call, attempts, outcome, reply.status, code, end.ended, reply)
                row.head, row.tail = end.head[:HEAD], end.tail[-TAIL:]
                row.first, row.chunks, row.times = end.first_chunk, end.chunks, end.times
                row.usage, row.reply = end.usage, end.content()
                self._put(row)

            reply.on_end(ended, collect=self.bodies, times=GAPS)
            return reply

        return watched

    def refused(self, id: str, operation: str, tenant: Tenant, error: APIError) -> None:
        """Hand on what was refused before it was a call: a row without model, steps and times."""
        now, code = perf_counter(), (error.error_code or error.type)[:64]
        self._put(
            Ended(
                id,
                time.time(),
                operation,
                "",
                False,
                tenant,
                now,
                [],
                {},
                Attempts(id, closed=True),
                of_status(error.status),
                error.status,
                code,
                now,
            )
        )

    def attempt(self, stage: str) -> Layer:
        """What goes around a model."""

        def around(inner: StageCall) -> StageCall:
            async def attempted(call: Call) -> Reply:
                attempts: Attempts | None = call.record.whole.decisions.get(self._own)
                if attempts is None:
                    return await inner(call)
                attempt = Attempt(stage, perf_counter())
                attempts.attempts.append(attempt)
                try:
                    reply = await inner(call)
                except BaseException as error:
                    outcome, status, code = told(error, call)
                    charged = isinstance(error, asyncio.CancelledError) or status == 504
                    self._attempted(call, attempts, attempt, outcome, status, code, charged)
                    raise
                attempt.model = reply.model
                if reply.body is not None:
                    attempt.usage = reply.usage
                    outcome = of_status(reply.status)
                    charged = reply.status < 400
                    self._attempted(call, attempts, attempt, outcome, reply.status, None, charged)
                    return reply

                def ended(end: End) -> None:
                    outcome, code = of_end(end, reply.status, call)
                    attempt.first, attempt.chunks, attempt.usage = end.first_chunk, end.chunks, end.usage
                    self._attempted(call, attempts, attempt, outcome, reply.status, code, reply.status < 400)

                reply.on_end(ended)
                return reply

            return attempted

        return around

    def _attempted(
        self,
        call: Call,
        attempts: Attempts,
        attempt: Attempt,
        outcome: str,
        status: int,
        error: str | None,
        charged: bool,
    ) -> None:
        attempt.ended = perf_counter()
        attempt.outcome, attempt.status, attempt.error = outcome, status, error
        spent: Spent | None = call.record.whole.decisions.get(Spent) if charged else None
        # The layer that charges is inside of this one: the attempt's charge is the last one.
        if spent is not None and spent.charges and spent.charges[-1].stage == attempt.stage:
            attempt.charge = spent.charges[-1]
        if attempts.closed:
            self._put(attempts)

    def _row(
        self,
        call: Call,
        attempts: Attempts,
        outcome: str,
        status: int,
        error: str | None,
        ended: float,
        reply: Reply | None = None,
    ) -> Ended:
        attempts.closed = True
        found = call.record.decisions
        return Ended(
            call.id,
            time.time(),
            call.operation,
            call.model[:LONGEST],
            call.streaming,
            call.tenant,
            call.received,
            call.record.steps,
            {kind: found[kind] for kind in self._wanted if kind in found},
            attempts,
            outcome,
            status,
            error,
            ended,
            reply.model if reply is not None else None,
            request=call.raw if self.bodies and len(call.raw) <= self.bodies else None,
        )

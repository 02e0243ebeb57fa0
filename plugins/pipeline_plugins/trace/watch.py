"""Following calls: what must be known while they run, and no more.

Spans of stages are made at the end of what the graph has recorded anyway. Attempts alone get
their ids when they begin, since the model's server is told of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from time import perf_counter

import structlog

from pipeline import Call, End, Reply
from pipeline.stage import Layer, StageCall
from pipeline_plugins.outcome import of_end, of_status, told
from pipeline_plugins.trace.context import Attempt, Ended, Trace, begin


class Watch:
    """The layers of a tracer; `put` takes what ended and is to be kept, and must not wait.

    ratio      share of the traces begun here that are kept
    errors     whether calls that failed are kept in any case
    propagate  whether models' servers are told of the trace
    collect    bytes of a stream to keep, 0 for none
    """

    def __init__(
        self,
        put: Callable[[Ended], None],
        *,
        ratio: float,
        errors: bool = True,
        propagate: bool = True,
        collect: int = 0,
    ) -> None:
        self._put = put
        self._ratio = ratio
        self._errors = errors
        self._propagate = propagate
        self._collect = collect
        # Where its trace is in a call's record: a second tracer has its own.
        self._own = type("Followed", (), {})

    def entry(self, inner: StageCall) -> StageCall:
        """What goes around the graph's entry."""

        async def followed(call: Call) -> Reply:
            trace = begin(call.headers, self._ratio)
            call.record.decisions[self._own] = trace
            if trace.sampled:
                structlog.contextvars.bind_contextvars(trace_id=f"{trace.trace:032x}")
            try:
                reply = await inner(call)
            except BaseException as error:
                outcome, status, code = told(error, call)
                self._ended(trace, call, outcome, status, code, perf_counter())
                raise
            if reply.body is not None:
                code = str(reply.status) if reply.status >= 400 else None
                self._ended(trace, call, of_status(reply.status), reply.status, code, perf_counter(), reply)
                return reply

            def ended(end: End) -> None:
                outcome, code = of_end(end, reply.status, call)
                self._ended(trace, call, outcome, reply.status, code, end.ended, reply, end)

            reply.on_end(ended, collect=self._collect if trace.sampled else 0)
            return reply

        return followed

    def attempt(self, stage: str, provider: str) -> Layer:
        """What goes around a model."""

        def around(inner: StageCall) -> StageCall:
            async def followed(call: Call) -> Reply:
                trace: Trace | None = call.record.whole.decisions.get(self._own)
                if trace is None:
                    return await inner(call)
                attempt = trace.begin(stage, provider, call if call.record.helps is not None else None)
                sent = call.with_outbound(trace.outbound(attempt.span)) if self._propagate else call
                try:
                    reply = await inner(sent)
                except BaseException as error:
                    attempt.outcome, _, attempt.error = told(error, call)
                    attempt.ended = perf_counter()
                    raise
                attempt.model = reply.model
                if reply.body is not None:
                    attempt.ended = perf_counter()
                    attempt.outcome, attempt.usage = of_status(reply.status), reply.usage
                    attempt.error = str(reply.status) if reply.status >= 400 else None
                else:
                    reply.on_end(lambda end: _streamed(attempt, call, reply, end))
                return reply

            return followed

        return around

    def _ended(
        self,
        trace: Trace,
        call: Call,
        outcome: str,
        status: int,
        error: str | None,
        ended: float,
        reply: Reply | None = None,
        end: End | None = None,
    ) -> None:
        if trace.sampled or (self._errors and outcome == "failed"):
            clock = time.time() - perf_counter()
            self._put(Ended(trace, call, clock, outcome, status, error, ended, reply, end))


def _streamed(attempt: Attempt, call: Call, reply: Reply, end: End) -> None:
    attempt.ended, attempt.first, attempt.usage = end.ended, end.first_chunk, end.usage
    attempt.outcome, attempt.error = of_end(end, reply.status, call)

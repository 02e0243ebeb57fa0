"""Spans of a call that has ended, by OpenTelemetry's conventions for generative AI (1.42, development).

The call itself is a `SERVER` span, each passage along an edge one of the stage that it leads
to, and each attempt at a model a `CLIENT` span below its stage's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from pipeline import Call, Usage
from pipeline.call import Step
from pipeline.errors import APIError
from pipeline.kinds import Cached, Exposed, Limited, Retrieved, Routed, Validated
from pipeline.price import Spent
from pipeline.redaction import redactor
from pipeline_plugins.trace.content import messages_of
from pipeline_plugins.trace.context import Attempt, Ended, new_id

SCOPE = InstrumentationScope("llm-pipeline")

OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}
"""The conventions' names of operations, where they differ from ours."""

REQUEST = {
    "frequency_penalty": "frequency_penalty",
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "n": "choice.count",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "temperature": "temperature",
    "top_p": "top_p",
}
"""Fields of a request that say nothing of what is asked, and the conventions' names for them."""

FINISH = re.compile(rb'"finish_reason":\s?"(\w{1,32})"')

ANSWER_ID = re.compile(rb'"id":\s?"([\w.:-]{1,128})"')

LONGEST = 256
"""Characters kept of a name that a client wrote."""


class Spans:
    """Makes the spans of calls. `plugins` has that of each stage; with `content` texts are in them."""

    def __init__(self, resource: Resource, plugins: Mapping[str, str], *, content: bool = False) -> None:
        self._resource = resource
        self._plugins = plugins
        self._content = content

    def of(self, ended: Ended) -> list[ReadableSpan]:
        """All spans of a call, its own first."""
        return list(_Tree(ended, self._resource, self._plugins, content=self._content).spans())


class _Tree:
    """One call's spans on their way."""

    def __init__(
        self, ended: Ended, resource: Resource, plugins: Mapping[str, str], *, content: bool
    ) -> None:
        self._ended = ended
        self._resource = resource
        self._plugins = plugins
        self._content = content
        self._state = TraceState.from_header([ended.trace.state]) if ended.trace.state else TraceState()
        self._steps = list(ended.call.record.steps)
        self._ids = [new_id(64) for _ in self._steps]
        self._ends = [step.ended or ended.ended for step in self._steps]

    def spans(self) -> Iterator[ReadableSpan]:
        ended, trace = self._ended, self._ended.trace
        attempts = [(attempt, self._stage_of(attempt)) for attempt in list(trace.attempts)]
        for attempt, at in attempts:
            self._prolong(at, attempt.ended or ended.ended)
        yield self._call()
        for at, step in enumerate(self._steps):
            yield self._step(at, step)
        for attempt, at in attempts:
            yield self._attempt(attempt, self._ids[at] if at is not None else trace.span)

    def _call(self) -> ReadableSpan:
        ended, call = self._ended, self._ended.call
        attributes = {
            **_request(call),
            **_response(ended),
            **_decisions(call),
            "http.request.method": "POST",
            "pipeline.request.id": call.id,
            "pipeline.key": call.tenant.key,
            "pipeline.owner": call.tenant.owner,
            "pipeline.outcome": ended.outcome,
        }
        if self._content:
            attributes |= messages_of(ended)
        name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
        first = ended.end.first_chunk if ended.end is not None else None
        return self._span(
            name,
            ended.trace.span,
            ended.trace.parent,
            call.received,
            # The first passage ends as the call does, a moment after this was noted.
            max([ended.ended, *self._ends]),
            attributes,
            SpanKind.SERVER,
            failed=ended.outcome == "failed",
            error=ended.error,
            first=first,
            remote=True,
        )

    def _step(self, at: int, step: Step) -> ReadableSpan:
        parent = self._parent(at)
        error = None if step.outcome in ("ok", "running") else step.outcome
        attributes = {"pipeline.stage": step.stage, "pipeline.edge": step.edge}
        if (plugin := self._plugins.get(step.stage)) is not None:
            attributes["pipeline.plugin"] = plugin
        return self._span(
            step.stage,
            self._ids[at],
            self._ids[parent] if parent is not None else self._ended.trace.span,
            step.started,
            self._ends[at],
            attributes,
            failed=error is not None and error not in _blameless(),
            error=error,
        )

    def _attempt(self, attempt: Attempt, parent: int) -> ReadableSpan:
        attributes = {
            **_request(attempt.asked or self._ended.call),
            **_usage(attempt.usage),
            "gen_ai.provider.name": attempt.provider,
            "pipeline.target": attempt.stage,
            "pipeline.outcome": attempt.outcome,
        }
        if attempt.model is not None:
            attributes["gen_ai.response.model"] = attempt.model
        if attempt.first is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = attempt.first - attempt.started
        return self._span(
            f"{attributes['gen_ai.operation.name']} {attempt.model or attributes['gen_ai.request.model']}",
            attempt.span,
            parent,
            attempt.started,
            attempt.ended or self._ended.ended,
            attributes,
            SpanKind.CLIENT,
            # To whoever asks, an error of its own is one, too.
            failed=attempt.outcome in ("failed", "refused"),
            error=attempt.error,
            first=attempt.first,
        )

    def _stage_of(self, attempt: Attempt) -> int | None:
        """The passage to a model's stage within which an attempt began."""
        return self._within(attempt.stage, attempt.started, len(self._steps))

    def _parent(self, at: int) -> int | None:
        """The passage to the stage that made another one."""
        step = self._steps[at]
        return self._within(step.source, step.started, at) if step.source else None

    def _within(self, stage: str, moment: float, before: int) -> int | None:
        for at in range(before - 1, -1, -1):
            step = self._steps[at]
            if step.stage == stage and step.started <= moment <= (step.ended or self._ended.ended):
                return at
        return None

    def _prolong(self, at: int | None, end: float) -> None:
        """Have a passage, and those that it is part of, last until what they led to is over: a stream."""
        while at is not None and self._ends[at] < end:
            self._ends[at] = end
            at = self._parent(at)

    def _span(
        self,
        name: str,
        id: int,
        parent: int,
        started: float,
        ended: float,
        attributes: dict[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        failed: bool,
        error: str | None = None,
        first: float | None = None,
        remote: bool = False,
    ) -> ReadableSpan:
        if error is not None:
            attributes["error.type"] = error
        events = (Event("gen_ai.first_chunk", timestamp=self._time(first)),) if first is not None else ()
        return ReadableSpan(
            name=name,
            context=self._context(id),
            parent=self._context(parent, remote=remote) if parent else None,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=kind,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=self._time(started),
            end_time=self._time(ended),
            instrumentation_scope=SCOPE,
        )

    def _context(self, id: int, *, remote: bool = False) -> SpanContext:
        return SpanContext(self._ended.trace.trace, id, remote, TraceFlags(TraceFlags.SAMPLED), self._state)

    def _time(self, moment: float) -> int:
        return int((moment + self._ended.clock) * 1e9)


def _request(call: Call) -> dict[str, Any]:
    body = call.body
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(call.operation, call.operation),
        "gen_ai.provider.name": "pipeline",
        # Clients put keys into the wrong field, too.
        "gen_ai.request.model": redactor.redact(call.model[:LONGEST]),
    }
    if call.streaming:
        attributes["gen_ai.request.stream"] = True
    for name, known in REQUEST.items():
        value = body.get(name)
        if isinstance(value, int | float):
            attributes[f"gen_ai.request.{known}"] = value
    return attributes


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }


def _response(ended: Ended) -> dict[str, Any]:
    reply, end = ended.reply, ended.end
    attributes: dict[str, Any] = {}
    if ended.status:
        attributes["http.response.status_code"] = ended.status
    if reply is None:
        return attributes
    if reply.model is not None:
        attributes["gen_ai.response.model"] = reply.model
    attributes |= _usage(end.usage if end is not None else reply.usage)
    if end is not None and end.first_chunk is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = end.first_chunk - ended.call.received
    head = end.head if end is not None else reply.body or b""
    if (id := ANSWER_ID.search(head.partition(b'"choices"')[0])) is not None:
        attributes["gen_ai.response.id"] = id[1].decode()
    finish = FINISH.findall(end.tail if end is not None else reply.body or b"")
    if finish:
        attributes["gen_ai.response.finish_reasons"] = [reason.decode() for reason in finish]
    return attributes


def _decisions(call: Call) -> dict[str, Any]:
    """What stages decided."""
    record = call.record
    attributes: dict[str, Any] = {}
    if (limited := record.decision(Limited)) is not None:
        attributes |= {"pipeline.limit.admitted": limited.admitted, "pipeline.limit.rule": limited.rule}
    if (cached := record.decision(Cached)) is not None:
        attributes["pipeline.cache.result"] = cached.result
    if (retrieved := record.decision(Retrieved)) is not None:
        attributes["pipeline.rag.collection"] = retrieved.collection
        attributes["pipeline.rag.passages"] = retrieved.passages
    if (routed := record.decision(Routed)) is not None:
        attributes |= {"pipeline.route.target": routed.target, "pipeline.route.reason": routed.reason}
    if (valid := record.decision(Validated)) is not None:
        attributes |= {
            "pipeline.validate.passed": valid.passed,
            "pipeline.validate.failed": list(valid.failed),
        }
        attributes["pipeline.validate.retries"] = valid.retries
        attributes |= {f"pipeline.validate.score.{name}": score for name, score in valid.scores.items()}
    if (spent := record.decision(Spent)) is not None:
        attributes["pipeline.cost.usd"] = spent.usd
    if (exposed := record.decision(Exposed)) is not None:
        attributes |= {f"pipeline.experiment.{name}": variant for name, variant in exposed.variants.items()}
    return attributes


def _blameless() -> set[str]:
    """Names of errors that are no fault of the server's: refusals, and a client that left."""
    return {*_refusals(APIError), "CancelledError", "GeneratorExit"}


def _refusals(kind: type[APIError]) -> Iterator[str]:
    for below in kind.__subclasses__():
        if below.status < 500:
            yield below.__name__
        yield from _refusals(below)

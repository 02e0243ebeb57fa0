"""Sending one example through a graph, as the server sends a request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import structlog

from pipeline import Call, Reply
from pipeline.call import Tenant
from pipeline.errors import APIError
from pipeline.graph import Graph
from pipeline.kinds import Cached, Retrieved, Routed, Validated
from pipeline.price import Spent
from pipeline.server.calls import OPERATIONS
from pipeline.wire import sse
from pipeline.wire.check import check
from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.reuse import Reused

log = structlog.get_logger("pipeline.eval")

MODELS = dict(OPERATIONS.values())
"""What the body of each operation must look like."""


class Asker:
    """Asks an open graph for answers.

    request  fields that a chat request gets where its row has none
    owner    whom calls are of whose example does not say
    seconds  after which a call is given up
    """

    def __init__(self, graph: Graph, request: Mapping[str, Any], owner: str, seconds: float) -> None:
        self._graph = graph
        self._request = request
        self._owner = owner
        self._seconds = seconds
        hook = graph.plugins.hook
        self._started = hook.pipeline_call_started if hook.pipeline_call_started.get_hookimpls() else None
        self._ended = hook.pipeline_call_ended if hook.pipeline_call_ended.get_hookimpls() else None

    async def __call__(self, example: Example, received: float) -> Outcome:
        """What becomes of an example; whatever goes wrong with it is noted, not raised.

        Its times count from `received`, a time of `perf_counter`.
        """
        outcome = Outcome(example.id)
        body = {**self._request, **example.body} if example.operation == "chat" else dict(example.body)
        try:
            check(MODELS[example.operation], body)
        except APIError as error:
            return _failed(outcome, error)
        call = Call(
            id=f"eval_{os.urandom(12).hex()}",
            operation=example.operation,
            body=body,
            tenant=Tenant(key="eval", owner=example.owner or self._owner, admin=True),
            deadline=asyncio.get_running_loop().time() + self._seconds,
            received=received,
        )
        try:
            async with asyncio.timeout_at(call.deadline):
                await self._send(call, outcome)
        except Exception as error:
            _failed(outcome, error)
        outcome.seconds = perf_counter() - received
        _note(call, outcome)
        return outcome

    async def _send(self, call: Call, outcome: Outcome) -> None:
        if self._started is not None:
            self._started(call=call)
        try:
            reply = await self._graph(call)
        except BaseException as error:
            if self._ended is not None:
                self._ended(call=call, reply=None, error=error)
            raise
        if self._ended is not None:
            self._ended(call=call, reply=reply, error=None)
        outcome.status = reply.status
        body = await _whole(reply, call, outcome) if reply.streaming else reply.json
        _read(body or {}, reply, outcome)


async def _whole(reply: Reply, call: Call, outcome: Outcome) -> dict[str, Any] | None:
    """A stream put together; notes when its first chunk came."""
    parts: list[bytes] = []
    try:
        async for chunk in reply:
            if not parts:
                outcome.first = perf_counter() - call.received
            parts.append(chunk)
    finally:
        await reply.aclose()
    return sse.assemble(b"".join(parts))


def _read(body: Mapping[str, Any], reply: Reply, outcome: Outcome) -> None:
    if reply.status >= 400:
        error = body.get("error") or {}
        outcome.error, outcome.message = error.get("code") or error.get("type"), error.get("message")
        return
    outcome.outcome = "completed"
    outcome.answer, outcome.finish = answer_of(body)
    outcome.model = reply.model or body.get("model")
    usage = reply.usage
    if usage is not None:
        outcome.prompt_tokens, outcome.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        outcome.completion_tokens = usage.completion_tokens


def answer_of(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Text and finish reason of a whole answer's first choice; None for what it does not have."""
    choice: Mapping[str, Any] = next(iter(body.get("choices") or ()), {})
    answer = choice.get("text") if "text" in choice else (choice.get("message") or {}).get("content")
    return answer if isinstance(answer, str) else None, choice.get("finish_reason")


def _failed(outcome: Outcome, error: Exception) -> Outcome:
    outcome.outcome = "failed"
    if isinstance(error, APIError):
        outcome.status, outcome.message = error.status, error.message
        outcome.error = error.error_code or error.type
    elif isinstance(error, TimeoutError):
        outcome.status, outcome.error = 504, "timeout"
    else:
        log.error("a stage failed", id=outcome.id, exc_info=error)
        outcome.status, outcome.error = 500, type(error).__name__
    return outcome


def _note(call: Call, outcome: Outcome) -> None:
    """What the stages decided; of what was reused, the time that it once took."""
    found = call.record.decision
    if (cached := found(Cached)) is not None:
        outcome.cache = cached.result
    if (routed := found(Routed)) is not None:
        outcome.route = routed.target
    if (valid := found(Validated)) is not None:
        outcome.valid, outcome.retries = valid.passed, valid.retries
    if (spent := found(Spent)) is not None:
        outcome.usd, outcome.saved_usd = spent.usd, sum(spent.saved.values())
    if (retrieved := found(Retrieved)) is not None:
        outcome.passages = retrieved.texts
    if (reused := found(Reused)) is not None:
        outcome.reused = reused.answers
        outcome.seconds += reused.seconds
        if outcome.first is not None:
            outcome.first += reused.first

"""`route=cascade`: the first target answers, and the next where its answer is not good enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
from pydantic import Field

from pipeline import Call, Edges, End, Model, Reply
from pipeline.errors import APIError
from pipeline.kinds import Routed
from pipeline.wire import sse
from pipeline_plugins.route.answer import confidence, flaw, without_logprobs, without_logprobs_in_events
from pipeline_plugins.route.targets import Routing, Target, Targets

CONTEXT_TOO_LONG = "context_length_exceeded"

log = structlog.get_logger("pipeline.route")


class Cascade:
    """Asks targets in the graph's order, cheapest first, until an answer will do.

    An answer will not do when

    - the target fails (5xx, 429), does not have the room for the prompt, or rejects its own
      answer (422): a target may be a sub-graph in which a `validate` stage checks it;
    - it is empty, a refusal, or not the JSON that was asked for;
    - its confidence is below `min_confidence`: the geometric mean of its tokens'
      probabilities, `exp(mean(logprob))`. Logprobs are asked for where the target declares
      that it has them, and taken out again where the client did not ask. Without them, and
      for tool calls, the other checks decide alone.

    The last target's answer is passed on as it is. A streamed answer of an earlier one is
    held back until it is whole and judged: the client then gets it at once, but later. Only
    the last target's stream flows.
    """

    class Config(Routing):
        """When to escalate."""

        min_confidence: float | None = Field(
            0.7, ge=0, le=1, description="Least confidence of an answer that will do; null: it is not judged."
        )
        patience: float | None = Field(
            None,
            gt=0,
            le=86_400,
            description="Seconds that a target may take before the next; null: no bound.",
        )
        max_bytes: int = Field(
            16_777_216, ge=1024, le=2**31, description="Bytes of a stream that are held; more escalates."
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.config = config
        self.targets = Targets(next, config)
        self._logprobs: dict[str, bool] = {}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def open(self) -> None:
        """Learn which targets give logprobs."""
        for name, edge in self.targets.edges.items():
            self._logprobs[name] = all("logprobs" in model.capabilities for model in edge.models)

    async def __call__(self, call: Call) -> Reply:
        """Ask one after the other. Raises `APIError` when none can serve the call, or the last fails."""
        choices = self.targets.choices(call)
        reason = "first" if len(choices) > 1 else "the only one that can serve it"
        for target in choices[:-1]:
            reply, why = await self._try(call, target, Routed(target.name, reason))
            if reply is not None:
                return reply
            reason = f"{target.name}: {why}"
        return await self.targets.send(call, choices[-1], Routed(choices[-1].name, reason))

    async def _try(self, call: Call, target: Target, routed: Routed) -> tuple[Reply | None, str]:
        """A target's reply if it will do, or why not. The client's own mistakes are raised."""
        asked = self._with_logprobs(call, target)
        try:
            async with asyncio.timeout(self.config.patience) as patience:
                reply = await self.targets.send(asked, target, routed)
                if reply.status >= 400:
                    return await _refusal(reply)
                if reply.body is not None:
                    return self._judge_body(call, reply, strip=asked is not call)
                return await self._judge_stream(call, reply, strip=asked is not call)
        except APIError as error:
            if not (_escalates(error.status) or error.error_code == CONTEXT_TOO_LONG):
                raise
            return None, type(error).__name__
        except TimeoutError:
            if not patience.expired():
                raise
            return None, f"took longer than {self.config.patience:g} s"
        except Exception:
            log.exception("a target broke", target=target.name)
            return None, "it broke"

    def _with_logprobs(self, call: Call, target: Target) -> Call:
        if self.config.min_confidence is None or not self._logprobs[target.name]:
            return call
        if call.operation not in ("chat", "completion") or call.needs & {"logprobs", "tools"}:
            return call
        return call.derive(logprobs=True if call.operation == "chat" else 0)

    def _judge_body(self, call: Call, reply: Reply, *, strip: bool) -> tuple[Reply | None, str]:
        if call.operation not in ("chat", "completion"):
            return reply, ""
        why = self._objection(call, reply.json)
        if why:
            return None, why
        if not strip:
            return reply, ""
        plain = Reply.of(without_logprobs(reply.json), status=reply.status, usage=reply.usage)
        plain.headers, plain.model = reply.headers, reply.model
        return plain, ""

    async def _judge_stream(self, call: Call, reply: Reply, *, strip: bool) -> tuple[Reply | None, str]:
        ends: list[End] = []
        reply.on_end(ends.append)
        parts, size = [], 0
        try:
            async for chunk in reply:
                parts.append(chunk)
                size += len(chunk)
                if size > self.config.max_bytes:
                    return None, "its answer is too long to be held back"
        finally:
            await reply.aclose()
        content = b"".join(parts)
        answer = sse.assemble(content)
        why = self._objection(call, answer or {})
        if why:
            return None, why
        if strip:
            content = without_logprobs_in_events(content)
        usage = ends[0].usage if ends else None
        held = Reply(chunks=_once(content), headers=reply.headers, usage=usage, model=reply.model)
        return held, ""

    def _objection(self, call: Call, answer: dict[str, object]) -> str:
        """Why an answer will not do; empty if it will."""
        why = flaw(answer, json=bool(call.needs & {"json_schema", "json_object"}))
        if why or self.config.min_confidence is None:
            return why
        sure = confidence(answer)
        if sure is not None and sure < self.config.min_confidence:
            return f"confidence {sure:.2f}"
        return ""


async def _refusal(reply: Reply) -> tuple[Reply | None, str]:
    """A refusal that is the client's to know, or why the next target is asked."""
    too_long = reply.body is not None and CONTEXT_TOO_LONG.encode() in reply.body
    if not _escalates(reply.status) and not too_long:
        return reply, ""
    await reply.aclose()
    return None, f"status {reply.status}"


def _escalates(status: int) -> bool:
    return status >= 500 or status in (422, 429)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content

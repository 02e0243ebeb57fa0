"""`route=fallback`: targets in order, the next where one is not ready or fails."""

from __future__ import annotations

import structlog
from pydantic import BaseModel, ConfigDict

from pipeline import Call, Edge, Edges, Reply
from pipeline.errors import APIError, InternalError
from pipeline.kinds import Routed
from pipeline_plugins.attempts import begin, is_failure
from pipeline_plugins.route.direct import unknown_model

log = structlog.get_logger("pipeline.route")


class Fallback:
    """Passes each call to the first target that serves it and is ready; on failure to the next.

    Targets that are not ready come last, for none may be. A failure is a 5xx, a 429, or a
    stream that breaks before its first chunk; the client's own mistakes are its to know.
    Each target is tried once: trying one again is not this stage's to do.
    """

    class Config(BaseModel):
        """Nothing to choose."""

        model_config = ConfigDict(extra="forbid")

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = next

    async def __call__(self, call: Call) -> Reply:
        """Route along the order. Raises the last target's error, `ModelNotFound` where none fits."""
        fitting = [(name, edge) for name, edge in self.targets.items() if edge.offers(call)]
        if not fitting:
            raise unknown_model(call, self.targets)
        order = sorted(fitting, key=lambda target: not target[1].ready())
        reason = "first" if order[0] is fitting[0] else f"{fitting[0][0]} is not ready"
        for name, edge in order[:-1]:
            reply, failure = await self._try(name, edge, call, reason)
            if reply is not None:
                return reply
            reason = f"{name}: {failure}"
        name, edge = order[-1]
        self._note(call, name, reason)
        return await edge(call)

    async def _try(self, name: str, edge: Edge, call: Call, reason: str) -> tuple[Reply | None, str]:
        """A target's reply, or why it failed. The client's own mistakes are raised."""
        self._note(call, name, reason)
        try:
            reply = await edge(call)
            if is_failure(reply.status):
                await reply.aclose()
                return None, f"status {reply.status}"
            await begin(reply)
        except APIError as error:
            if not is_failure(error.status):
                raise
            return None, type(error).__name__
        except Exception:
            log.exception("a target broke", id=call.id, target=name)
            return None, InternalError.__name__
        return reply, ""

    def _note(self, call: Call, name: str, reason: str) -> None:
        call.record.decide(Routed(name, reason))
        call.record.headers["x-pipeline-route"] = name

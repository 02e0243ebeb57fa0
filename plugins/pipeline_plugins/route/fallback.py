"""`route=fallback`: targets in order, the next where one is not ready or fails."""

from __future__ import annotations

import structlog

from pipeline import Call, Edges, Model, Reply
from pipeline.errors import APIError, InternalError
from pipeline.kinds import Routed
from pipeline_plugins.attempts import begin, is_failure
from pipeline_plugins.route.targets import Routing, Target, Targets

log = structlog.get_logger("pipeline.route")


class Fallback:
    """Passes each call to the first target that serves it and is ready; on failure to the next.

    Targets that are not ready come last, for none may be. A failure is a 5xx, a 429, or a
    stream that breaks before its first chunk; the client's own mistakes are its to know.
    Each target is tried once: trying one again is not this stage's to do.
    """

    class Config(Routing):
        """Nothing to choose but names."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route along the order. Raises the last target's error, or why no target can serve the call."""
        able = self.targets.able(call)
        order = sorted(able, key=lambda target: not target.edge.ready())
        reason = "first" if order[0] is able[0] else f"{able[0].name} is not ready"
        for target in order[:-1]:
            reply, failure = await self._try(target, call, reason)
            if reply is not None:
                return reply
            reason = f"{target.name}: {failure}"
        return await self.targets.send(call, order[-1], Routed(order[-1].name, reason))

    async def _try(self, target: Target, call: Call, reason: str) -> tuple[Reply | None, str]:
        """A target's reply, or why it failed. The client's own mistakes are raised."""
        try:
            reply = await self.targets.send(call, target, Routed(target.name, reason))
            if is_failure(reply.status):
                await reply.aclose()
                return None, f"status {reply.status}"
            await begin(reply)
        except APIError as error:
            if not is_failure(error.status):
                raise
            return None, type(error).__name__
        except Exception:
            log.exception("a target broke", target=target.name)
            return None, InternalError.__name__
        return reply, ""

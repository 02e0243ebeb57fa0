"""`monitor=log`: one line per call, when its reply has ended."""

from __future__ import annotations

import asyncio
from contextvars import Context
from random import random
from time import perf_counter
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, End, Reply
from pipeline.errors import APIError
from pipeline.kinds import Cached, Routed
from pipeline_plugins.outcome import of_end, of_status, told

SPAN = 1.0
"""Seconds over which refused calls are counted."""

LONGEST = 64
"""Characters logged of a model's name, which clients write."""


class Log:
    """Logs id, model, the stages passed with their milliseconds, tokens and outcome.

    Bodies, keys and header values are never logged.
    """

    class Config(BaseModel):
        """What to log."""

        model_config = ConfigDict(extra="forbid")

        success: bool = Field(True, description="Log calls that went well, too.")
        sample: float = Field(
            1.0, ge=0, le=1, description="Share of the calls that went well that is logged; others all are."
        )
        stages: bool = Field(True, description="Name each stage passed, with its milliseconds.")
        refused: int = Field(
            100,
            ge=0,
            le=10**6,
            description="Lines a second for refused calls, so that a storm of them floods no log; "
            "one line more says how many there were besides.",
        )

    def __init__(self, config: Config, next: Edge) -> None:
        self.config = config
        self.next = next
        self.log = structlog.get_logger("pipeline.call")
        self._from = 0.0
        self._refused = 0
        self._unsaid = 0
        self._telling: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Say what was not logged."""
        if self._telling is not None:
            self._telling.cancel()
            self._tell()

    async def __call__(self, call: Call) -> Reply:
        """Pass the call on; log it when its reply ends, or at once if it fails."""
        try:
            reply = await self.next(call)
        except asyncio.CancelledError as error:
            outcome, _, code = told(error, call)
            line = self._line(call, outcome, perf_counter())
            self.log.info("call", **(line if code is None else {"error": code, **line}))
            raise
        except APIError as error:
            now = perf_counter()
            outcome = of_status(error.status)
            if outcome == "failed" or self._has_room(now):
                line = self._line(call, outcome, now)
                self.log.info("call", status=error.status, error=error.error_code, **line)
            raise
        except Exception as error:
            self.log.info("call", error=type(error).__name__, **self._line(call, "failed", perf_counter()))
            raise

        def ended(end: End) -> None:
            self._ended(call, reply, end)

        reply.on_end(ended)
        return reply

    def _has_room(self, now: float) -> bool:
        """Whether one more refused call is to have a line of its own."""
        if now - self._from >= SPAN:
            self._from, self._refused = now, 0
        self._refused += 1
        if self._refused <= self.config.refused:
            return True
        if self._telling is None:
            # In a context of its own: the line is about no single request.
            loop, nobodys = asyncio.get_running_loop(), Context()
            self._telling = loop.call_later(SPAN, self._tell, context=nobodys)
        self._unsaid += 1
        return False

    def _tell(self) -> None:
        self._telling = None
        unsaid, self._unsaid = self._unsaid, 0
        self.log.info("more calls were refused", calls=unsaid)

    def _ended(self, call: Call, reply: Reply, end: End) -> None:
        outcome, error = of_end(end, reply.status, call)
        if outcome == "completed" and (not self.config.success or random() >= self.config.sample):
            return
        if outcome == "refused" and not self._has_room(end.ended):
            return
        line = self._line(call, outcome, end.ended)
        if reply.model is not None:
            line["answered_by"] = reply.model
        if reply.status != 200:
            line["status"] = reply.status
        if end.usage is not None:
            line["prompt_tokens"] = end.usage.prompt_tokens
            line["completion_tokens"] = end.usage.completion_tokens
        if end.chunks:
            line["chunks"] = end.chunks
        if end.first_chunk is not None:
            line["first_chunk_ms"] = _ms(end.first_chunk - call.received)
        if error is not None:
            line["error"] = error
        self.log.info("call", **line)

    def _line(self, call: Call, outcome: str, ended: float) -> dict[str, Any]:
        record = call.record
        line: dict[str, Any] = {
            "request_id": call.id,
            "operation": call.operation,
            "model": call.model[:LONGEST],
            "outcome": outcome,
            "ms": _ms(ended - call.received),
        }
        if self.config.stages:
            line["stages"] = {step.stage: _ms((step.ended or ended) - step.started) for step in record.steps}
        if (routed := record.decision(Routed)) is not None:
            line["route"] = routed.target
        if (cached := record.decision(Cached)) is not None:
            line["cache"] = cached.result
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

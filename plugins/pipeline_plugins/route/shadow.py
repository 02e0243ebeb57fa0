"""`route=shadow`: another target answers a share of the calls, too, and nobody waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from random import random
from time import perf_counter
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, End, Metric, Model, Reply, hookimpl
from pipeline.errors import APIError
from pipeline.graph import Graph
from pipeline.kinds import Answered

log = structlog.get_logger("pipeline.route")


class Shadow:
    """Passes every call on along `next`, and copies of a share along `shadow`.

    The client gets what `next` answers, when it answers. The copy has a record and a
    deadline of its own, goes on when the client leaves, and its reply is read to the end
    and discarded, once plugins have compared the two: `pipeline_mirrored`. Copies beyond
    `concurrency` are not made.
    """

    class Config(BaseModel):
        """How much is mirrored, and its bounds."""

        model_config = ConfigDict(extra="forbid")

        share: float = Field(0.1, ge=0, le=1, description="Share of the calls that are mirrored.")
        concurrency: int = Field(
            16, ge=1, le=65_536, description="Copies under way at a time; no more are made."
        )
        timeout: float = Field(60.0, gt=0, le=86_400, description="Seconds that a copy may take.")
        drain: float = Field(5.0, ge=0, le=3600, description="Seconds that copies get when the server stops.")
        max_bytes: int = Field(
            1_048_576, ge=0, le=2**31, description="Bytes of each streamed answer that are kept to compare."
        )

    def __init__(self, config: Config, next: Edge, shadow: Edge, name: str = "shadow") -> None:
        self.config = config
        self.next = next
        self.shadow = shadow
        self.name = name
        self.under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._outcomes: Counter[str] = Counter()
        self._compare: Callable[..., Any] | None = None

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that answer clients."""
        return self.next.models

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn who compares."""
        hook = graph.plugins.hook.pipeline_mirrored
        self._compare = hook if hook.get_hookimpls() else None

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How many copies came to which end."""
        samples: dict[tuple[str, ...], float] = {
            (self.name, outcome): n for outcome, n in self._outcomes.items()
        }
        yield Metric(
            "pipeline_shadow_calls_total",
            "Mirrored calls by outcome; `dropped` where too many were under way.",
            "counter",
            samples,
            ("stage", "outcome"),
        )

    async def close(self) -> None:
        """Give copies that are under way their time, then end them."""
        self._closing = True
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=self.config.drain)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def __call__(self, call: Call) -> Reply:
        """Pass on, and mirror by chance."""
        if random() >= self.config.share or self._closing:
            return await self.next(call)
        ended = self._mirror(call)
        if ended is None or self._compare is None:
            return await self.next(call)
        sent = perf_counter()
        try:
            reply = await self.next(call)
        except BaseException as error:
            _settle(ended, (None, 0, sent, error))
            raise
        status = reply.status
        reply.on_end(lambda end: _settle(ended, (end, status, sent, None)), collect=self.config.max_bytes)
        return reply

    def _mirror(self, call: Call) -> asyncio.Future[_Ending] | None:
        """Start a copy, if it can be made. What is returned waits for how the call itself ends."""
        if self.under_way >= self.config.concurrency:
            self._outcomes["dropped"] += 1
            return None
        loop = asyncio.get_running_loop()
        copy = _copy(call, loop.time() + self.config.timeout)
        if not self.shadow.offers(copy):
            copy = copy.derive(model="default")
            if not self.shadow.offers(copy):
                return None
        ended: asyncio.Future[_Ending] = loop.create_future()
        self.under_way += 1
        task = loop.create_task(self._follow(call, copy, ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ended

    async def _follow(self, call: Call, copy: Call, ended: asyncio.Future[_Ending]) -> None:
        """See the copy to its end, and have it compared when the call has ended, too."""
        try:
            ending = await self._ask(copy)
        finally:
            self.under_way -= 1
        try:
            mirrored = _answered(self.shadow.target, ending)
            self._outcomes[mirrored.outcome] += 1
            if self._compare is None:
                return
            async with asyncio.timeout_at(call.deadline):
                answer = _answered(self.next.target, await ended)
            self._compare(call=call, answer=answer, mirrored=mirrored)
        except TimeoutError:
            pass  # a reply that nobody ended: there is nothing to compare with
        except Exception:
            log.exception("comparing answers failed", stage=self.name)

    async def _ask(self, copy: Call) -> _Ending:
        sent = perf_counter()
        ends: list[End] = []
        try:
            async with asyncio.timeout(self.config.timeout):
                reply = await self.shadow(copy)
                try:
                    reply.on_end(ends.append, collect=self.config.max_bytes)
                    if reply.streaming:
                        async for _ in reply:
                            pass
                finally:
                    await reply.aclose()
        except Exception as error:
            if not isinstance(error, (APIError, TimeoutError)):
                log.warning("a shadow broke", stage=self.name, error=type(error).__name__)
            return None, 0, sent, error
        return ends[0], reply.status, sent, None


_Ending = tuple[End | None, int, float, BaseException | None]
"""A reply's end and status, when its call was sent, and the error in place of a reply."""


def _copy(call: Call, deadline: float) -> Call:
    """The same request, with nothing that happens to it shared."""
    return Call(
        id=call.id,
        operation=call.operation,
        raw=call.raw,
        body=call.body,
        deadline=deadline,
        received=call.received,
        tenant=call.tenant,
        headers=call.headers,
    )


def _settle(ended: asyncio.Future[_Ending], ending: _Ending) -> None:
    if not ended.done():
        ended.set_result(ending)


def _answered(target: str, ending: _Ending) -> Answered:
    end, status, sent, error = ending
    if end is None:
        cancelled = isinstance(error, (asyncio.CancelledError, TimeoutError))
        status = error.status if isinstance(error, APIError) else 0
        return Answered(target, "cancelled" if cancelled else "failed", status, perf_counter() - sent)
    outcome = end.outcome if status < 400 else "failed"
    first = end.first_chunk - sent if end.first_chunk is not None else None
    try:
        body = end.assembled()
    except ValueError:
        body = None
    return Answered(target, outcome, status, end.ended - sent, first, end.usage, body)

"""`limit=concurrency`: so many calls at once; the others wait in a short line, or are turned away."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
from itertools import count
from time import monotonic
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline import Call, Edge, End, Reply, hookimpl
from pipeline.errors import Forbidden, Overloaded
from pipeline.hookspecs import Metric
from pipeline.kinds import Limited
from pipeline_plugins.limit.line import Line, Waiter
from pipeline_plugins.limit.rate import StoreConfig, counts, retry_after
from pipeline_plugins.limit.rules import Demand, Limit, Rules
from pipeline_plugins.limit.scope import Reached, Scope
from pipeline_plugins.limit.slots import Leases, Slots
from pipeline_plugins.redis_link import RedisDown, RedisLink, ResponseError, metrics

POLL = 0.05
"""Seconds between two looks whether another process has freed a slot in the Redis."""

OWED = 10_000
"""Leases to be freed later that are remembered; those beyond end by themselves."""

UNKNOWN = 1.0
"""Seconds after which to try again, while no call has ended yet."""

SMOOTHING = 0.1
"""Weight of the latest call in the mean time that a slot is held."""


class Together(BaseModel):
    """So many calls at once for each subject of a scope."""

    model_config = ConfigDict(extra="forbid")

    concurrent: int | None = Field(None, ge=1, le=10**6, description="Calls that may run at once.")
    scope: Scope = Field(
        "global", description="Counted together: each `key`, `owner` or `model` apart, or `global`."
    )
    models: list[str] = Field(
        default_factory=list, max_length=1000, description="Models that it is for; empty: all."
    )


class Concurrency:
    """Lets so many calls run at once. A slot is free when its reply has ended, however it ends.

    Calls beyond that wait, tenants in turn, until `queue_timeout`; one that would
    certainly wait longer, or finds `queue` calls waiting, is refused at once.
    """

    class Config(StoreConfig, Together):
        """One rule right here, or several under `rules`."""

        rules: list[Together] = Field(
            default_factory=list, max_length=100, description="More rules; all must hold."
        )
        keys: bool = Field(True, description="`concurrent` of a key replaces or adds to the limit per key.")
        queue: int = Field(100, ge=0, le=100_000, description="Calls that may wait.")
        queue_timeout: float = Field(10, ge=0, le=3600, description="Seconds that a call may wait.")
        lease: float = Field(
            15, ge=1, le=600, description="Seconds after which a killed process's slots in Redis are free."
        )

        @model_validator(mode="after")
        def _says_something(self) -> Concurrency.Config:
            if any(rule.concurrent is None for rule in self.rules):
                raise ValueError("each of `rules` needs `concurrent`")
            return self

    def __init__(self, config: Config, next: Edge, name: str) -> None:
        self.config = config
        self.next = next
        self.name = name
        self.reached = Reached(next)
        limits = [
            Limit("concurrent", rule.concurrent, rule.scope, tuple(sorted(rule.models)))
            for rule in (config, *config.rules)
            if rule.concurrent is not None
        ]
        self.enforces = frozenset({"concurrent"}) if config.keys else frozenset()
        self.rules = Rules(limits, self.reached, {"concurrent": "concurrent"} if config.keys else {})
        self.slots = Slots()
        self.line = Line()
        self.admitted = 0
        self.refused = 0
        self._held_for = 0.0
        self._process = os.urandom(8).hex()
        self._ids = count()
        self._leased: dict[str, Sequence[Demand]] = {}
        self._owed: dict[str, Sequence[Demand]] = {}
        """Leases that the Redis has or may have, to be freed once it answers."""
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._link: RedisLink | None = None
        self._leases: Leases | None = None
        if config.store == "redis":
            url = config.redis.get_secret_value()
            self._link = RedisLink(url, timeout=config.redis_timeout, user=name)
            self._leases = Leases(self._link, name, config.lease)

    async def open(self) -> None:
        """Connect to Redis, if it has the slots. Raises ValueError where it refuses us."""
        if self._link is not None:
            await self._link.open()

    async def close(self) -> None:
        """Free what is leased, and disconnect."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._leases is not None and self._link is not None:
            for id, demands in [*self._leased.items(), *self._owed.items()]:
                with contextlib.suppress(RedisDown):
                    await self._leases.free(id, demands)
            await self._link.close()

    async def __call__(self, call: Call) -> Reply:
        """Pass on when there is a slot. Raises `Overloaded` where there will be none in time."""
        demands = self.rules.demands(call, self.reached.model(call), None)
        if not demands:
            return await self.next(call)
        if any(demand.limit < 1 for demand in demands):
            self.refused += 1
            raise Forbidden("This key may not run any call.", code="no_concurrency")
        id = f"{self._process}.{next(self._ids)}"
        try:
            # With Redis a slot may be free before those that wait have been tried: they go first.
            behind = self._leases is not None and self.line.wants(demands)
            if behind or await self._take(id, demands) is not None:
                await self._wait(call, id, demands)
        except Overloaded:
            self.refused += 1
            call.record.decide(Limited(False, _rule(self.slots.full(demands) or demands[0])))
            raise
        self.admitted += 1
        call.record.decide(Limited(True))
        started = monotonic()
        try:
            reply = await self.next(call)
        except BaseException:
            self._free(id, demands, started)
            raise

        def ended(end: End) -> None:
            self._free(id, demands, started)

        reply.on_end(ended)
        return reply

    async def _take(self, id: str, demands: Sequence[Demand]) -> Demand | None:
        """Take slots now, if they are there; else the demand for which there is none."""
        if self._leases is None:
            return self.slots.take(demands)
        owed = self._owed.pop(id, None) is not None  # it must not be freed once it is leased
        try:
            full = await self._leases.take(id, demands)
        except RedisDown as error:
            if owed or error.sent:
                self._owe(id, demands)
            if self.config.on_failure == "local":
                return self.slots.take(demands)
            raise Overloaded(
                "The store of the slots does not answer.",
                code="limits_unavailable",
                headers=((b"retry-after", b"1"),),
            ) from None
        except asyncio.CancelledError:
            # It may have been taken just now.
            self._free_later(id, demands)
            raise
        if full is None:
            self._leased[id] = demands
            self._run("renew", self._renew)
        elif owed:
            self._owe(id, demands)
        return full

    async def _wait(self, call: Call, id: str, demands: Sequence[Demand]) -> None:
        """Wait in line for slots."""
        allowed = min(self.config.queue_timeout, call.remaining)
        expected = self._expected(call.tenant.key, demands)
        if len(self.line) >= self.config.queue or expected > allowed:
            raise self._overloaded(demands, expected)
        waiter = Waiter(call.tenant.key, id, demands)
        self.line.add(waiter)
        if self._leases is not None:
            self._run("pump", self._pump)
        try:
            async with asyncio.timeout(allowed):
                await asyncio.shield(waiter.granted)
        except TimeoutError:
            if not _granted(waiter):
                raise self._overloaded(demands, max(expected, self._held_for)) from None
        except BaseException:
            if _granted(waiter):
                self._free(id, demands, None)
            raise
        finally:
            self.line.remove(waiter)
        if not waiter.granted.result():
            raise self._overloaded(demands, 1)

    def _expected(self, tenant: str, demands: Sequence[Demand]) -> float:
        """Seconds that a call would wait, as long as slots are held for as long as of late."""
        turns = ((self.line.ahead(tenant, demand.name) + 1) / demand.limit for demand in demands)
        return self._held_for * max(turns)

    def _overloaded(self, demands: Sequence[Demand], wait: float) -> Overloaded:
        full = self.slots.full(demands) or min(demands, key=lambda demand: demand.limit)
        return Overloaded(
            f"{_rule(full)} already run, and {len(self.line)} wait. Try again later.",
            headers=retry_after(wait or UNKNOWN),
        )

    def _free(self, id: str, demands: Sequence[Demand], started: float | None) -> None:
        """Give slots back, and let those that wait have them."""
        if started is not None:
            held = monotonic() - started
            self._held_for += (held - self._held_for) * (SMOOTHING if self._held_for else 1)
        leased = self._leased.pop(id, None)
        if leased is None or self._leases is None:
            self.slots.free(demands)
            self._admit_local()
        else:
            self._free_later(id, demands)
        self._freed.set()

    def _admit_local(self) -> None:
        if self._leases is not None:
            return  # the pump does it
        admitted = True
        while admitted and self.line:
            admitted = False
            for waiter in self.line.turns():
                if not waiter.granted.done() and self.slots.take(waiter.demands) is None:
                    self._grant(waiter)
                    admitted = True
                    break

    def _grant(self, waiter: Waiter) -> None:
        self.line.remove(waiter, served=True)
        waiter.granted.set_result(True)

    async def _pump(self) -> None:
        """While calls wait: try to get slots for them from the Redis."""
        while self.line:
            self._freed.clear()
            full: set[str] = set()
            for waiter in list(self.line.turns()):
                # Who comes later must not have what one before could not get.
                if waiter.granted.done() or any(demand.name in full for demand in waiter.demands):
                    continue
                if (lacking := await self._try(waiter)) is None:
                    self._freed.set()  # from the start again: it is another's turn
                    break
                full.add(lacking)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._freed.wait()

    async def _try(self, waiter: Waiter) -> str | None:
        """Get slots for one that waits. Returns the full bucket where that fails."""
        try:
            full = await self._take(waiter.id, waiter.demands)
        except Overloaded:
            if not waiter.granted.done():
                waiter.granted.set_result(False)
            self.line.remove(waiter)
            return None
        if full is not None:
            return full.name
        if waiter in self.line:
            self._grant(waiter)
        else:
            self._free(waiter.id, waiter.demands, None)
        return None

    async def _renew(self) -> None:
        """While slots are held: make their leases last."""
        while self._leased and self._leases is not None:
            await asyncio.sleep(self.config.lease / 3)
            await self._leases.renew(self._leased)

    def _run(self, name: str, work: Any) -> None:
        """Have one such task, as long as there is something for it to do."""
        running = self._running.get(name)
        if running is None or running.done():
            self._running[name] = asyncio.get_running_loop().create_task(work())

    def _free_later(self, id: str, demands: Sequence[Demand]) -> None:
        """Free a lease; at once if the Redis answers."""
        task = asyncio.get_running_loop().create_task(self._try_free(id, demands))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_free(self, id: str, demands: Sequence[Demand]) -> None:
        if self._leases is None:
            return
        try:
            await self._leases.free(id, demands)
        except ResponseError:
            pass  # the lease ends by itself
        except RedisDown:
            self._owe(id, demands)
        self._freed.set()

    def _owe(self, id: str, demands: Sequence[Demand]) -> None:
        if len(self._owed) < OWED:
            self._owed[id] = demands
            self._run("pay", self._pay)

    async def _pay(self) -> None:
        """While leases are owed: free them as soon as the Redis is back."""
        while self._owed:
            await asyncio.sleep(POLL)
            for id in list(self._owed):
                back = self._link is not None and self._link.up
                # Nothing comes between this and the command: see `_take`.
                if back and (demands := self._owed.pop(id, None)) is not None:
                    await self._try_free(id, demands)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """Calls admitted, refused and waiting, and the Redis's state."""
        yield from counts(self.name, self.admitted, self.refused)
        waiting: dict[tuple[str, ...], float] = {(self.name,): len(self.line)}
        yield Metric("pipeline_limit_waiting", "Calls that wait for a slot.", "gauge", waiting, ("stage",))
        if self._link is not None:
            yield from metrics({self.name: self._link})


def _granted(waiter: Waiter) -> bool:
    return waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.result()


def _rule(demand: Demand) -> str:
    where = "in all" if demand.scope == "global" else f"for this {demand.scope}"
    return f"{demand.limit:.0f} calls {where}"

"""What every option of `ledger` does: it keeps what became of calls, and takes feedback on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import Tenant, hookimpl
from pipeline.errors import APIError
from pipeline.graph import Graph
from pipeline.hookspecs import Metric, Route
from pipeline.plan import Plan
from pipeline.problems import ConfigError, Problem
from pipeline.server.app import is_loopback
from pipeline.stage import Layer, layered
from pipeline_plugins.ledger.bodies import Bodies, Policy
from pipeline_plugins.ledger.database import Unusable
from pipeline_plugins.ledger.feedback import PATH, Desk
from pipeline_plugins.ledger.rows import DECISIONS
from pipeline_plugins.ledger.store import Store
from pipeline_plugins.ledger.watch import Watch
from pipeline_plugins.ledger.writer import Writer

MODELS = "infer."
"""Passages to stages of this kind are attempts."""


class LedgerConfig(BaseModel):
    """What all ledgers can be told."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    flush: float = Field(
        0.25, ge=0.01, le=60, description="Seconds for which rows are gathered: what `kill -9` may lose."
    )
    queue: int = Field(
        20_000, ge=1, le=10_000_000, description="Rows that may wait for the database; more are dropped."
    )
    keep: float | None = Field(
        30.0, gt=0, le=36_500, description="Days after which calls are removed; null keeps them."
    )
    bodies: Literal["auto", "none", "redacted", "full"] = Field(
        "auto",
        description="What is kept of requests and answers. `redacted` masks by a check that can, such as "
        "`validate=pii`; `auto` is `redacted` on loopback with such a check, and `none` otherwise.",
    )
    body_bytes: int = Field(
        262_144, ge=1, le=67_108_864, description="Bytes of a body that is kept; longer ones are left out."
    )
    host: str = Field(
        "${oc.select:server.host,127.0.0.1}", description="Where the server listens: what `auto` goes by."
    )

    def store(self) -> Store:
        """Open the tables. Raises `Unavailable` or `Unusable`; blocks."""
        raise NotImplementedError

    def missing(self) -> str | None:
        """Why there is nothing to read yet; None where there may be."""
        return None


class Ledger:
    """Keeps what became of each call, and takes feedback at `POST /v1/feedback`.

    Headers and error messages are not kept, nor bodies unless `bodies` says so. Rows are
    written in batches by a thread: `kill -9` loses those of the last `flush` seconds.
    """

    def __init__(self, config: LedgerConfig) -> None:
        self.config = config
        self.writer = Writer(config.store, flush=config.flush, bound=config.queue, days=config.keep)
        self.watch = Watch(self.writer.put, DECISIONS)
        self.desk = Desk(config.store, patience=2 * config.flush)

    async def open(self) -> None:
        """Open the tables and start the thread. Raises `ConfigError` where they can't be used."""
        try:
            await asyncio.to_thread(self.writer.open)
        except (OSError, Unusable) as error:
            raise ConfigError([Problem("", f"the ledger can't be used: {error}")]) from None

    async def close(self) -> None:
        """Write what waits."""
        await asyncio.to_thread(self.writer.close)
        await self.desk.close()

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Watch attempts at each model, and calls at the entry."""
        attempt = self.watch.attempt(stage) if plugin.startswith(MODELS) else None
        return layered(self.watch.entry, attempt) if entry else attempt

    @hookimpl
    def pipeline_call_refused(self, id: str, operation: str, tenant: Tenant, error: APIError) -> None:
        """Keep what was refused before it was a call."""
        self.watch.refused(id, operation, tenant, error)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn which configuration is in force, and who can redact."""
        self.writer.config = digest(graph.plan)
        hook = graph.plugins.hook.pipeline_redact
        redact: Callable[[str], str | None] | None = None
        if hook.get_hookimpls():

            def redact(text: str) -> str | None:
                masked: str | None = hook(text=text)
                return masked

        policy = self.policy(can_redact=redact is not None)
        self.writer.bodies = Bodies(policy, redact)
        self.watch.bodies = self.config.body_bytes if policy != "none" else 0

    def policy(self, *, can_redact: bool) -> Policy:
        """What is kept of bodies. Raises `ConfigError` where that needs a check that the graph lacks."""
        wanted = self.config.bodies
        if wanted == "auto":
            return "redacted" if can_redact and is_loopback(self.config.host) else "none"
        if wanted == "redacted" and not can_redact:
            hint = (
                "Add one (`validate=pii`, say with `validate.on_failure=flag`), or set `ledger.bodies=none`."
            )
            raise ConfigError([Problem("ledger.bodies", "no check of the graph can redact.", hint)])
        return wanted

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/v1/feedback`."""
        return (Route(PATH, self.desk, methods=("POST",)),)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How the writing goes."""
        writer = self.writer
        yield number("pipeline_ledger_calls_total", "Calls written.", writer.written)
        yield number("pipeline_ledger_dropped_total", "Rows lost: queue full, or refused.", writer.dropped)
        yield number("pipeline_ledger_bodies_dropped_total", "Bodies not kept.", writer.bodies_dropped)
        yield number("pipeline_feedback_total", "Ratings taken.", self.desk.taken)
        yield number("pipeline_ledger_waiting", "Rows that wait to be written.", writer.waiting, "gauge")
        about = "1 while rows can't be written."
        yield Metric("pipeline_ledger_down", about, "gauge", {(): int(writer.down)}, across="max")


def number(name: str, about: str, value: int, type: Literal["counter", "gauge"] = "counter") -> Metric:
    """A metric without labels."""
    return Metric(name, about, type, {(): value}, across="max" if name.endswith("_down") else "sum")


def digest(plan: Plan) -> str:
    """Twelve hexadecimal digits that change with the graph or the configuration of any part of it.

    Secrets are not in it.
    """
    parts = [*plan.parts.values(), *plan.extensions]
    told = [
        plan.topology.entry,
        {name: node.edges for name, node in plan.topology.nodes.items()},
        [[part.name, part.plugin, part.config.model_dump_json()] for part in parts],
    ]
    return hashlib.sha256(orjson.dumps(told)).hexdigest()[:12]

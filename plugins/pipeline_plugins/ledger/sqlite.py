"""`ledger=sqlite`: a row for each call and each attempt, in a file of one machine."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import hookimpl
from pipeline.graph import Graph
from pipeline.hookspecs import Metric, Route
from pipeline.plan import Plan
from pipeline.problems import ConfigError, Problem
from pipeline.stage import Layer, StageCall
from pipeline_plugins.ledger.feedback import PATH, Desk
from pipeline_plugins.ledger.rows import DECISIONS
from pipeline_plugins.ledger.store import Store
from pipeline_plugins.ledger.watch import Watch
from pipeline_plugins.ledger.writer import Writer
from pipeline_plugins.state import STATE

MODELS = "infer."
"""Passages to stages of this kind are attempts."""


class SQLiteLedger:
    """Keeps what became of each call, and takes feedback at `POST /v1/feedback`.

    No bodies, headers or error messages are kept. Rows are written in batches by a thread:
    `kill -9` loses those of the last `flush` seconds, a power failure those that the kernel
    had not written.
    """

    class Config(BaseModel):
        """Where rows are kept, for how long, and how many may wait."""

        model_config = ConfigDict(extra="forbid")

        path: Path = Field(Path(f"{STATE}/ledger.sqlite"), description="The file; made where missing.")
        flush: float = Field(
            0.25, ge=0.01, le=60, description="Seconds for which rows are gathered: what `kill -9` may lose."
        )
        queue: int = Field(
            20_000, ge=1, le=10_000_000, description="Rows that may wait for the disk; more are dropped."
        )
        retain_days: float | None = Field(
            30.0, gt=0, le=36_500, description="Days after which calls are removed; null keeps them."
        )

    def __init__(self, config: Config) -> None:
        self.path = config.path.expanduser()
        self.writer = Writer(flush=config.flush, bound=config.queue, days=config.retain_days)
        self.watch = Watch(self.writer.put, DECISIONS)
        self.desk = Desk(patience=2 * config.flush)

    async def open(self) -> None:
        """Open the file and start the thread. Raises `ConfigError` where the file can't be used."""
        try:
            self.desk.store = await asyncio.to_thread(Store, self.path)
            self.writer.open(await asyncio.to_thread(Store, self.path))
        except OSError as error:
            raise ConfigError([Problem("path", f"the ledger can't be used: {error}")]) from None

    async def close(self) -> None:
        """Write what waits."""
        await asyncio.to_thread(self.writer.close)
        if self.desk.store is not None:
            self.desk.store.close()
            self.desk.store = None

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Watch attempts at each model, and calls at the entry."""
        attempt = self.watch.attempt(stage) if plugin.startswith(MODELS) else None
        if not entry:
            return attempt

        def around(inner: StageCall) -> StageCall:
            return self.watch.entry(attempt(inner) if attempt is not None else inner)

        return around

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn which configuration is in force."""
        self.writer.config = digest(graph.plan)

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/v1/feedback`."""
        return (Route(PATH, self.desk, methods=("POST",)),)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How the writing goes."""
        writer = self.writer
        yield number("pipeline_ledger_calls_total", "Calls written.", writer.written)
        yield number("pipeline_ledger_dropped_total", "Rows lost, for the queue was full.", writer.dropped)
        yield number("pipeline_feedback_total", "Ratings taken.", self.desk.taken)
        yield number("pipeline_ledger_waiting", "Rows that wait to be written.", writer.waiting, "gauge")
        yield number("pipeline_ledger_down", "1 while rows can't be written.", int(writer.failing), "gauge")


def number(name: str, about: str, value: int, type: Literal["counter", "gauge"] = "counter") -> Metric:
    """A metric without labels."""
    return Metric(name, about, type, {(): value})


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

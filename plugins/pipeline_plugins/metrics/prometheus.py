"""`metrics=prometheus`: the numbers of calls and of all stages at `/metrics`, as Prometheus reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Annotated, Any, ClassVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import APIError
from pipeline.graph import Graph
from pipeline.hookspecs import Metric, Route, hookimpl
from pipeline.stage import Layer, layered
from pipeline_plugins.metrics.collect import Collected, process
from pipeline_plugins.metrics.exposition import OPENMETRICS, TEXT, render
from pipeline_plugins.metrics.family import Snapshot, merge
from pipeline_plugins.metrics.labels import Names
from pipeline_plugins.metrics.shared import Folder
from pipeline_plugins.metrics.watch import Watch

EVERY = 0.2
"""Seconds after which a worker has written down anew what its stages count."""

FOLDER = "metrics"
"""Where the workers' files are, in the folder that they share."""

log = structlog.get_logger("pipeline.metrics")


class Prometheus:
    """Counts calls and attempts, and answers `GET /metrics` with that and what stages count.

    Of several workers any one answers for all, for those that have ended, too. What is
    counted of calls is exact at any moment. What stages count of their own accord is as
    of a moment ago (`EVERY`) in workers other than the one that answers.
    """

    class Config(BaseModel):
        """Who may read it, and which models have numbers of their own."""

        model_config = ConfigDict(extra="forbid")

        public: bool = Field(False, description="Serve it without a key; otherwise to administrators.")
        models: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
            default_factory=list,
            max_length=1000,
            description="Model names to tell apart besides those that the graph knows, where an upstream "
            "takes any; the others count as `other`.",
        )

    survives_reload: ClassVar[bool] = True
    """Its counters go on, and with them the files that other workers read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.names = Names(config.models)
        self.watch = Watch(self.names)
        self.collected = Collected(self.watch.cells)
        self._folder: Folder | None = None
        self._ask: Callable[[], Iterable[Iterable[Metric]]] = tuple
        self._writing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Write down the last of it."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        self._collect()
        self.watch.cells.close()

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Count calls at the entry, attempts at each model, and where routers send calls."""
        kind, _, name = plugin.partition(".")
        if kind == "route":
            self.watch.router(stage)
        attempt = self.watch.attempt(stage, name) if kind == "infer" else None
        return layered(self.watch.entry, attempt) if entry else attempt

    @hookimpl
    def pipeline_call_refused(self, operation: str, error: APIError) -> None:
        """Count a request that never became a call."""
        self.watch.refused(operation, error)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn the names that may be told apart, and whose numbers to collect."""
        own = {name: getattr(stage, "models", None) or () for name, stage in graph.stages.items()}
        ends = {name: own[name] for name, part in graph.plan.parts.items() if not part.loaded.edges}
        self.names.learn(ends, graph.models)
        self._ask = graph.plugins.hook.pipeline_metrics
        cells = self.watch.cells
        if graph.shared is not None and self._folder is None:
            self._folder = Folder(graph.shared / FOLDER)
            cells = self._folder.join()
            self.collected = Collected(cells)
            self._writing = asyncio.get_running_loop().create_task(self._write_often())
        self.watch.begin(cells)

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """The page's address."""
        return (Route("/metrics", self._serve, public=self.config.public, admin=not self.config.public),)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self._collect()
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        openmetrics = b"application/openmetrics-text" in accept
        snapshot = await self._snapshot()
        body = render(snapshot, openmetrics=openmetrics).encode()
        headers = [
            (b"content-type", (OPENMETRICS if openmetrics else TEXT).encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _snapshot(self) -> Snapshot:
        if self._folder is not None:
            return await asyncio.to_thread(self._folder.read)
        snapshot: Snapshot = {}
        merge(snapshot, self.watch.cells.read())
        return snapshot

    def _collect(self) -> None:
        self.collected.put(chain(chain.from_iterable(self._ask()), process()))

    async def _write_often(self) -> None:
        well = True
        while True:
            await asyncio.sleep(EVERY)
            try:
                self._collect()
                well = True
            except Exception:
                # Another plugin's, or no file can be opened: it may be well again in a moment.
                if well:
                    log.exception("what stages count could not be collected")
                well = False

"""`dashboard=web`: a page at `/dashboard` that shows what goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pipeline import hookimpl
from pipeline.hookspecs import Metric, Route
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.state import STATE

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.dashboard.reading import Reader
    from pipeline_plugins.dashboard.routes import Pages

HOUR = 3600.0

LEDGERS = "ledger."
"""Extensions of this kind keep what the dashboard shows."""


class Web:
    """Serves the dashboard of the ledger in the same configuration, to administrators.

    They log in with their key. On loopback, while nothing asks for a key, there is no login.
    """

    class Config(BaseModel):
        """How long a login holds, and how many may look."""

        model_config = ConfigDict(extra="forbid")

        path: Path = Field(
            Path(f"{STATE}/dashboard.key"),
            description="File of the random key that signs sessions, made where missing; without it all end.",
        )
        session_hours: float = Field(12.0, gt=0, le=720, description="Hours after which a login ends.")
        attempts: int = Field(5, ge=1, le=1000, description="Wrong keys that a client may send in a minute.")
        streams: int = Field(
            16, ge=1, le=1024, description="Pages that each worker keeps up to date; more look now and then."
        )
        interval: float = Field(2.0, ge=0.2, le=60, description="Seconds between two events to a page.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._reader: Reader | None = None
        self._pages: Pages | None = None

    async def close(self) -> None:
        """End all events, and close the ledger."""
        self.pipeline_draining()
        if self._reader is not None:
            await self._reader.close()

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/dashboard` and what is below it."""
        from pipeline_plugins.dashboard.assets import Assets
        from pipeline_plugins.dashboard.gate import Gate
        from pipeline_plugins.dashboard.routes import Pages
        from pipeline_plugins.dashboard.session import Attempts, Sessions, signing_key

        config, assets = self.config, Assets()
        try:
            key = signing_key(config.path.expanduser(), graph)
        except OSError as error:
            raise ConfigError([Problem("dashboard.path", f"sessions can't be signed: {error}")]) from None
        gate = Gate(graph, Sessions(key, config.session_hours * HOUR), Attempts(config.attempts), assets)
        self._reader = _reader(graph)
        self._pages = Pages(
            graph, gate, assets, self._reader, streams=config.streams, interval=config.interval
        )
        return self._pages.routes()

    @hookimpl
    def pipeline_draining(self) -> None:
        """End the streams of events."""
        if self._pages is not None:
            self._pages.live.end()

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How many follow."""
        listeners = self._pages.live.listeners if self._pages is not None else 0
        yield Metric("pipeline_dashboard_streams", "Pages that get events.", "gauge", {(): float(listeners)})


def _reader(graph: Graph) -> Reader | None:
    """What reads the ledger of the graph; None where none is kept."""
    kept = [part.config for part in graph.plan.extensions if part.plugin.startswith(LEDGERS)]
    if not kept:
        return None

    from pipeline import drawing
    from pipeline_plugins.dashboard.reading import Reader
    from pipeline_plugins.dashboard.source import Source
    from pipeline_plugins.ledger.extension import LedgerConfig

    ledger = next((config for config in kept if isinstance(config, LedgerConfig)), None)
    edges = frozenset((caller, to) for caller, _, to in drawing.edges_of(graph.plan))
    return Reader(Source(ledger.store, ledger.flush), edges) if ledger is not None else None

"""The dashboard's addresses: the page and its files, the form, figures as JSON, and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline import drawing
from pipeline.errors import APIError, NotFound
from pipeline.graph import Graph
from pipeline.hookspecs import Metric, Panel, Route
from pipeline.plan import Plan
from pipeline.server.exchange import send_json
from pipeline.wire.check import check
from pipeline_plugins.dashboard.assets import GUARDED, Assets
from pipeline_plugins.dashboard.gate import Gate, redirect
from pipeline_plugins.dashboard.live import Live
from pipeline_plugins.dashboard.window import Listing, Range, Window

if TYPE_CHECKING:
    from pipeline_plugins.dashboard.reading import Reader

PATH = "/dashboard"

LISTED = 12
"""Calls of a list."""

log = structlog.get_logger("pipeline.dashboard")

Handler = Callable[[Any], Awaitable[Any]]


class Wanted(BaseModel):
    """Which range figures are wanted of."""

    model_config = ConfigDict(extra="forbid")

    range: Range = Field("1h", description="`15m`, `1h`, `24h`, `7d` or `30d`, ending now.")


class Listed(Wanted):
    """Which calls are listed."""

    listing: Listing = Field("slowest", description="`slowest`, `failed` or `recent`.")


class Pages:
    """What answers at each address. `reader` is None where there is no ledger to read."""

    def __init__(
        self,
        graph: Graph,
        gate: Gate,
        assets: Assets,
        reader: Reader | None,
        *,
        streams: int,
        interval: float,
    ) -> None:
        self.live = Live(self._now, bound=streams, interval=interval)
        self._graph = graph
        self._gate = gate
        self._assets = assets
        self._reader = reader

    def routes(self) -> Iterable[Route]:
        """All of them. They are public to the server, for a browser sends a cookie and no key: the
        gate decides, everywhere but for the form and the page's files, which tell nothing.
        """
        yield Route(PATH, self._page, public=True)
        yield Route(f"{PATH}/", self._elsewhere, public=True)
        yield Route(f"{PATH}/login", self._gate.login, methods=("GET", "POST"), public=True)
        yield Route(f"{PATH}/logout", self._gate.logout, methods=("POST",), public=True)
        yield Route(f"{PATH}/static/*", self._file, public=True)
        yield Route(f"{PATH}/events", self._events, public=True)
        yield Route(f"{PATH}/api/about", self._json(self._about), public=True)
        yield Route(f"{PATH}/api/figures", self._json(self._figures), public=True)
        yield Route(f"{PATH}/api/panels", self._json(self._panels), public=True)
        yield Route(f"{PATH}/api/calls", self._json(self._calls), public=True)
        yield Route(f"{PATH}/api/calls/*", self._json(self._call), public=True)

    async def _now(self) -> dict[str, Any]:
        """What an event says: the last minute's seconds, and the gauges of all stages."""
        found = self._graph.plugins.hook.pipeline_metrics()
        told: dict[str, Any] = {"now": time.time(), "gauges": gauges(found)}
        if self._reader is not None:
            told["revision"] = await self._reader.ask(lambda source: source.revision())
            told["first"], told["seconds"] = await self._reader.ask(lambda source: source.seconds())
        return told

    async def _page(self, scope: Any, receive: Any, send: Any) -> None:
        if not (self._gate.open or self._gate.has_session(scope)):
            await redirect(send, b"dashboard/login")
            return
        await self._assets.send("index.html", scope, send)

    async def _elsewhere(self, scope: Any, receive: Any, send: Any) -> None:
        await redirect(send, b"../dashboard")

    async def _file(self, scope: Any, receive: Any, send: Any) -> None:
        await self._assets.send(scope["path"].removeprefix(f"{PATH}/static/"), scope, send)

    async def _events(self, scope: Any, receive: Any, send: Any) -> None:
        await self._gate.admit(scope)
        await self.live.stream(lambda: self._gate.admit(scope), send)

    def _json(self, answer: Handler) -> Callable[..., Awaitable[None]]:
        async def handle(scope: Any, receive: Any, send: Any) -> None:
            try:
                await self._gate.admit(scope)
                content = await answer(scope)
            except APIError as error:
                error.headers = (*error.headers, *GUARDED)
                raise
            await send_json(
                send, content, headers=[item for item in GUARDED if item[0] != b"x-content-type-options"]
            )

        return handle

    async def _about(self, scope: Any) -> Any:
        plan = self._graph.plan
        cells = drawing.cells(plan)
        return {
            "version": version("llm-pipeline"),
            "login": not self._gate.open,
            "ledger": self._reader is not None,
            "stages": [
                {"name": name, "plugin": plan.parts[name].plugin, "column": column, "row": row}
                for name, (column, row) in cells.items()
            ],
            "edges": [
                {"from": source, "to": target, "label": label}
                for (source, target), label in _labels(plan).items()
            ],
            "left_out": plan.elided,
        }

    async def _figures(self, scope: Any) -> Any:
        return await self._read().figures(_query(Wanted, scope).range)

    async def _panels(self, scope: Any) -> Any:
        """What other plugins have to show; one that fails does not keep the others out."""
        asked = [panel for panels in self._graph.plugins.hook.pipeline_panels() for panel in panels]
        found = await asyncio.gather(*asked, return_exceptions=True)
        for error in found:
            if isinstance(error, Exception):
                log.error("a panel of the dashboard can't be made", exc_info=error)
        return [panel for panel in found if isinstance(panel, Panel)]

    async def _calls(self, scope: Any) -> Any:
        wanted = _query(Listed, scope)
        window = Window.of(wanted.range, time.time())
        exact, calls = await self._read().ask(lambda source: source.calls(window, wanted.listing, LISTED))
        return {"range": wanted.range, "listing": wanted.listing, "exact": exact, "calls": calls}

    async def _call(self, scope: Any) -> Any:
        id: str = scope["path"].removeprefix(f"{PATH}/api/calls/")
        found = await self._read().ask(lambda source: source.call(id)) if len(id) <= 128 else None
        if found is None:
            raise NotFound(f"The ledger has no call `{id[:128]}`; it may have been removed by its age.")
        return found

    def _read(self) -> Reader:
        if self._reader is None:
            raise NotFound("No ledger is kept: set `ledger=sqlite`.", code="no_ledger")
        return self._reader


def gauges(found: Iterable[Iterable[Metric]]) -> list[dict[str, Any]]:
    """The state of stages and extensions, as they report it: every gauge with its samples."""
    return [
        {
            "name": metric.name,
            "about": metric.about,
            "labels": metric.labels,
            "samples": list(metric.samples.items()),
        }
        for metrics in found
        for metric in metrics
        if metric.type == "gauge"
    ]


def _labels(plan: Plan) -> dict[tuple[str, str], str]:
    """What to write between two stages: nothing where one way is a plain `next`, retries besides or not."""
    names: dict[tuple[str, str], list[str]] = {}
    for source, name, target in drawing.edges_of(plan):
        names.setdefault((source, target), []).append(drawing.label_of(name))
    return {pair: ", ".join(found) if all(found) else "" for pair, found in names.items()}


def _query(model: type[Any], scope: Any) -> Any:
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
    check(model, query)
    return model.model_validate(query)

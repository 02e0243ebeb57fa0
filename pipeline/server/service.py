"""What a worker serves: an application, and at a reload its successor.

A reload composes the configuration anew, builds and opens a second graph beside the first,
and lets it answer from the next request on; the first one ends its calls and is closed. A
configuration that is wrong, or a graph that can't be opened, changes nothing. It is asked
for by SIGHUP, or by an administrator at `POST /v1/admin/reload`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterable

import structlog

from pipeline.errors import APIError, InvalidRequest, Overloaded
from pipeline.graph import Graph
from pipeline.hookspecs import Route
from pipeline.plan import Plan
from pipeline.problems import ConfigError, Problem
from pipeline.server.app import App, Receive, Scope, Send, is_loopback
from pipeline.server.exchange import send_json
from pipeline.server.protocol import Protocol
from pipeline.settings import ServerConfig

RELOAD = "/v1/admin/reload"

FIXED = ("host", "port", "workers", "backlog")
"""Settings of the server that a reload can't change."""

log = structlog.get_logger("pipeline.server")

Compose = Callable[[], tuple[Plan, ServerConfig]]
"""Reads the configuration as it is now, checked. Raises `ConfigError`."""


class InvalidConfig(InvalidRequest):
    """The configuration to be loaded is wrong; the one in force goes on (400)."""

    code = "invalid_config"


class Service:
    """The application in force, which it opens, exchanges and closes.

    `failed` is the error if the first graph can't be opened; `on_failure` is called then.
    Where `others` share the port, a reload asked for over HTTP is passed to the parent
    process, which tells them all.
    """

    def __init__(
        self,
        graph: Graph,
        settings: ServerConfig,
        *,
        compose: Compose,
        on_failure: Callable[[BaseException], None],
        others: bool = False,
    ) -> None:
        self.failed: BaseException | None = None
        self.app = App(graph, settings, self._routes())
        self._compose = compose
        self._on_failure = on_failure
        self._others = others
        self._opening: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._asked = False
        self._retiring: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or follow the server's start and end."""
        if scope["type"] == "http":
            await self.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise RuntimeError("only HTTP is served")

    def drain(self) -> None:
        """Let requests come to their end: no new one will come."""
        self.app.drain()

    async def reload(self) -> None:
        """Exchange the graph for one made from the configuration as it is now.

        Raises `ConfigError`, `Overloaded` while another exchange or the start is under way,
        and what a graph raises that can't be opened. The one in force goes on then.
        """
        if not self.app.ready or (self._reloading is not None and not self._reloading.done()):
            raise Overloaded("The server is loading.", code="loading", headers=((b"retry-after", b"1"),))
        reloading = self._reloading = asyncio.create_task(self._reload())
        try:
            # Whoever asked may leave: what was begun is brought to its end.
            await asyncio.shield(reloading)
        finally:
            if not reloading.done():
                reloading.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _say(error)

    async def _reload(self) -> None:
        former = self.app
        plan, settings = await asyncio.to_thread(self._compose)
        check_fixed(former.settings, settings)
        graph = Graph.build(plan, former.graph)
        check_open(graph, settings)
        app = App(graph, settings, self._routes())
        await app.open()
        graph.take_over(former.graph)
        Protocol.settings = settings
        self.app = app
        self._retiring = asyncio.create_task(self._retire(former, self._retiring))
        self._background.add(self._retiring)
        self._retiring.add_done_callback(self._background.discard)
        log.info("reloaded", calls_on_the_former=former.requests)

    async def _retire(self, app: App, before: asyncio.Task[None] | None) -> None:
        """Close an application once its requests have ended; each has its own deadline.

        Those of the ones `before` it, too: models that it kept from them may still answer there.
        """
        if before is not None:
            await asyncio.wait([before])
        app.drain()
        await app.idle()
        try:
            await app.close()
        except Exception:
            log.exception("a former graph failed to close")
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _routes(self) -> Iterable[Route]:
        yield Route(RELOAD, self._answer, methods=("POST",), admin=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._others:
                plan, settings = await asyncio.to_thread(self._compose)
                check_fixed(self.app.settings, settings)
                check_open(Graph.build(plan), settings)
                os.kill(os.getppid(), signal.SIGHUP)
            else:
                await self.reload()
        except APIError:
            raise
        except ConfigError as error:
            raise InvalidConfig(f"Nothing was changed: {error}") from None
        except Exception as error:
            log.exception("reload failed")
            raise InvalidConfig(f"Nothing was changed: the graph can't be opened: {error}") from None
        status, state = (202, "reloading") if self._others else (200, "reloaded")
        await send_json(send, {"status": state}, status=status)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._opening = asyncio.create_task(self._open())
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up)
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _hung_up(self) -> None:
        self._asked = True
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow())
            self._background.add(self._following)
            self._following.add_done_callback(self._background.discard)

    async def _follow(self) -> None:
        """Reload as signals ask; once more for one that comes meanwhile: the configuration may be newer."""
        while self._asked:
            for task in (self._opening, self._reloading):
                if task is not None:
                    await asyncio.wait([task])
            self._asked = False
            try:
                await self.reload()
            except Exception as error:
                _say(error)

    async def _open(self) -> None:
        try:
            await self.app.open()
        except BaseException as error:
            self.failed = error
            self._on_failure(error)

    async def _close(self) -> None:
        self.drain()
        tasks = [task for task in (self._opening, self._reloading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._background, return_exceptions=True)
        await self.app.close()


def _say(error: BaseException) -> None:
    """Log why a reload changed nothing."""
    problems = [str(problem) for problem in error.problems] if isinstance(error, ConfigError) else None
    log.error("not reloaded: the former configuration goes on", problems=problems or [str(error)])


def check_fixed(former: ServerConfig, settings: ServerConfig) -> None:
    """Raises `ConfigError` if a setting differs that needs a new process."""
    changed = [name for name in FIXED if getattr(former, name) != getattr(settings, name)]
    if changed:
        hint = "Restart the server."
        raise ConfigError(Problem(f"server.{name}", "can't change by a reload.", hint) for name in changed)


def check_open(graph: Graph, settings: ServerConfig) -> None:
    """Without authentication, only this machine may reach the server. Raises `ConfigError`."""
    if is_loopback(settings.host) or graph.plugins.hook.pipeline_authenticate.get_hookimpls():
        return
    raise ConfigError(
        [
            Problem(
                "server.host",
                f"refusing to listen on `{settings.host}`: nothing asks clients for a key.",
                "Choose an option of `keys`, or bind to 127.0.0.1 behind a proxy that authenticates.",
            )
        ]
    )

"""Running the server: one process, or several that share a port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
import uvicorn
from uvicorn.supervisors import Multiprocess

from pipeline import logging
from pipeline.config import compose
from pipeline.graph import Graph
from pipeline.plan import Plan
from pipeline.server.protocol import Protocol
from pipeline.server.service import Compose, Service, check_open
from pipeline.settings import ServerConfig

STARTUP_FAILURE = 3
"""Exit status of a worker that can't start, on which the parent gives up too."""

log = structlog.get_logger("pipeline.server")


class Server(uvicorn.Server):
    """uvicorn's server, which ends without re-raising the signal that asked it to."""

    interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and SIGINT; a second SIGINT stops at once."""
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Start to drain."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)


class Supervisor(Multiprocess):
    """uvicorn's parent of several workers, which remembers why it was asked to end."""

    interrupted = False

    def handle_int(self) -> None:
        """Start to drain."""
        self.interrupted = True
        super().handle_int()

    def terminate_all(self) -> None:
        """Have every worker drain. The port is theirs from here on: a new client is refused."""
        for sock in self.sockets:
            sock.close()
        super().terminate_all()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died or hang, and say so: nobody else knows that one was killed."""
        before = list(self.processes)
        super().keep_subprocess_alive()
        for former, process in zip(before, self.processes, strict=True):
            if process is not former:
                log.error(
                    "a worker died and is replaced", worker=former.pid, exit=former.exitcode, by=process.pid
                )

    def handle_hup(self) -> None:
        """Have every worker reload; each goes on as it is where that fails."""
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, signal.SIGHUP)


class ServeError(Exception):
    """The server can't run here and now, though its configuration is right."""


@dataclass(slots=True)
class Worker:
    """What a worker process needs to compose its own graph; holds no secret.

    `shared` is a folder of this server's workers, None for one that is alone.
    """

    overrides: tuple[str, ...]
    config: Path | None
    shared: Path | None = None

    def __call__(self) -> Service:
        """Build the service; the graph is opened when the server has started."""
        # Until it can reload, a worker must not die of being told to.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        logging.configure()
        plan, settings = self.compose()
        Protocol.settings = settings
        graph = Graph.build(plan, shared=self.shared)
        return Service(
            graph, settings, compose=self.compose, on_failure=_give_up, others=settings.workers > 1
        )

    def compose(self) -> tuple[Plan, ServerConfig]:
        """The configuration as it is now. Raises `ConfigError`."""
        return compose(self.overrides, config=self.config).plan()


def _give_up(error: BaseException) -> None:
    log.error("the graph could not be opened", error=str(error))
    os._exit(STARTUP_FAILURE)


def serve(plan: Plan, settings: ServerConfig, overrides: tuple[str, ...], config: Path | None) -> int:
    """Serve until told to stop. Returns the process's exit status.

    Raises `ConfigError` for a configuration that must not be served, `ServeError` where
    the port can't be had, and what the graph raised if it could not be opened.
    """
    graph = Graph.build(plan)
    check_open(graph, settings)
    sock = _bind(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("serving", url=f"http://{host}:{sock.getsockname()[1]}", workers=settings.workers)
    try:
        if settings.workers > 1:
            with TemporaryDirectory(prefix="pipeline-") as shared:
                worker = Worker(overrides, config, Path(shared))
                supervisor = Supervisor(_uvicorn(worker, settings, factory=True), [sock])
                supervisor.run()
            if any(p.exitcode == STARTUP_FAILURE for p in supervisor.processes):
                return 1
            return 130 if supervisor.interrupted else 0
        return _serve_here(graph, settings, sock, Worker(overrides, config).compose)
    finally:
        sock.close()


def _serve_here(graph: Graph, settings: ServerConfig, sock: socket.socket, compose: Compose) -> int:
    Protocol.settings = settings

    def stop(error: BaseException) -> None:
        server.should_exit = True

    service = Service(graph, settings, compose=compose, on_failure=stop)
    server = Server(_uvicorn(service, settings))
    server.run([sock])
    if service.failed is not None:
        raise service.failed
    return 130 if server.interrupted else 0


def _uvicorn(app: Any, settings: ServerConfig, *, factory: bool = False) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=factory,
        http=Protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=settings.workers,
        backlog=settings.backlog,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.drain_timeout,  # type: ignore[arg-type]
    )


def _bind(settings: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(settings.backlog)
    except OSError as error:
        sock.close()
        raise ServeError(
            f"Can't listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            "Choose another with `server.port=` or `server.host=`; port 0 takes a free one."
        ) from None
    sock.set_inheritable(True)
    return sock

"""The ASGI application: from a request's address to the handler behind it.

Every address is a `Route` that says whether it may be used without a key; what has no
route is not found. Handlers raise `APIError`, which is answered here in OpenAI's form.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from inspect import isawaitable
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from pipeline.call import ANONYMOUS, Tenant
from pipeline.errors import (
    APIError,
    Forbidden,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from pipeline.graph import Graph
from pipeline.hookspecs import SEGMENT, Route
from pipeline.server import calls, pages
from pipeline.server.exchange import still_loading
from pipeline.server.headers import Headers
from pipeline.settings import ServerConfig

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

HOST = re.compile(rb"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")
"""What a Host header may be, in lower case."""

log = structlog.get_logger("pipeline.server")


class App:
    """What answers requests by one graph.

    It answers before the graph is open: `/health/live` at once, `/health/ready` and calls as
    soon as the models are loaded. `requests` are those under way.
    """

    def __init__(self, graph: Graph, settings: ServerConfig, routes: Iterable[Route] = ()) -> None:
        self.graph = graph
        self.settings = settings
        self.ready = False
        self.draining = False
        self.requests = 0
        self._idle: asyncio.Event | None = None
        self._ids = _ids()
        self._authenticate = _hook(graph, "pipeline_authenticate")
        self._routes: dict[str, dict[str, Route]] = {}
        self._templates: dict[str, tuple[re.Pattern[str], dict[str, Route]]] = {}
        self._prefixes: list[tuple[str, dict[str, Route]]] = []
        self._hosts = _hosts(settings)
        self._known_hosts: set[bytes] = set()
        self._add(calls.routes(self))
        self._add(pages.routes(self))
        self._add(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, under an id that its response and its log lines have."""
        self.requests += 1
        id = scope["id"] = next(self._ids)
        if "cycle" in scope:
            scope["cycle"].identify(id)
        # A request that waited for an earlier one on its connection was begun among what that had bound.
        clear_contextvars()
        bind_contextvars(request_id=id)
        try:
            route = self._find(scope)
            self._check_host(scope["headers"])
            scope["tenant"] = ANONYMOUS if route.public else await self._admit(route, scope)
            await route.app(scope, receive, send)
        except APIError as error:
            await send_error(send, error)
        except asyncio.CancelledError:
            if not scope.get("gone"):
                raise
        except Exception:
            log.exception("unhandled error", path=scope["path"][:256])
            await send_error(send, InternalError(f"The server failed; its log says why under {id}."))
        finally:
            self.requests -= 1
            if self._idle is not None and not self.requests:
                self._idle.set()

    async def open(self) -> None:
        """Open the graph and learn the addresses of its plugins. Raises what the graph raises."""
        await self.graph.open()
        for routes in self.graph.plugins.hook.pipeline_routes(graph=self.graph):
            self._add(routes)
        gc.collect()
        gc.freeze()  # what the start made stays: no collection needs to look at it again
        # Calls leave few cycles: to look for them every 700 objects takes a fifth of a request's CPU.
        gc.set_threshold(20_000, 20, 20)
        self.ready = True
        log.info(
            "ready",
            models=[m.id or "*" for m in self.graph.models],
            seconds=round(self.graph.opened_in, 3),
        )

    def drain(self) -> None:
        """Tell plugins, once, that no new request will come; those under way go on."""
        if not self.draining:
            self.draining = True
            self.graph.plugins.hook.pipeline_draining()

    async def idle(self) -> None:
        """Wait until no request is under way, once no new one comes."""
        if self.requests:
            self._idle = asyncio.Event()
            await self._idle.wait()

    async def close(self) -> None:
        """Close the graph."""
        self.ready = False
        await self.graph.close()

    def addresses(self) -> Iterable[tuple[str, dict[str, Route]]]:
        """Every path with its routes by method."""
        yield from self._routes.items()
        yield from ((path, methods) for path, (_, methods) in self._templates.items())
        for prefix, methods in self._prefixes:
            yield f"{prefix}*", methods

    def _find(self, scope: Scope) -> Route:
        path: str = scope["path"]
        methods = self._routes.get(path) or self._templated(scope)
        if methods is None:
            methods = next((found for prefix, found in self._prefixes if path.startswith(prefix)), None)
        if methods is None:
            if not self.ready:
                raise still_loading()  # plugins tell their addresses when the graph is open
            raise NotFound(f"There is no `{path[:256]}`; `GET /openapi.json` lists the addresses.")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(
                f"`{path[:256]}` takes {allowed}, not {scope['method']}.",
                headers=((b"allow", allowed.encode()),),
            )
        return route

    def _templated(self, scope: Scope) -> dict[str, Route] | None:
        for pattern, methods in self._templates.values():
            if found := pattern.fullmatch(scope["path"]):
                scope["path_params"] = found.groupdict()
                return methods
        return None

    async def _admit(self, route: Route, scope: Scope) -> Tenant:
        """Who asks, if they may use this route."""
        headers = Headers(scope["headers"])
        tenant: Tenant = ANONYMOUS
        if self._authenticate is not None:
            if headers.repeats("authorization"):
                raise Unauthorized("More than one key was sent.")
            found = self._authenticate(headers=headers)
            if isawaitable(found):
                found = await found
            if found is None:
                raise Unauthorized("A key is needed: `Authorization: Bearer KEY`.")
            tenant = found
        if route.admin:
            if not tenant.admin:
                raise Forbidden("Only an administrator's key may do this.")
            if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise Forbidden("Pages of other sites may not do this.", code="cross_site")
        return tenant

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) == 1 and hosts[0] in self._known_hosts:
            return
        found = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if found is None:
            raise InvalidRequest("One Host header is needed, with a name or an address.", code="invalid_host")
        hostname = (found["address"] or found["name"]).decode("ascii")
        if self._hosts and not any(_matches(hostname, pattern) for pattern in self._hosts):
            raise Forbidden(
                f"The host `{hostname[:128]}` is not served here. Add it to `server.allowed_hosts`.",
                code="host_not_allowed",
            )
        if len(self._known_hosts) < 64:
            self._known_hosts.add(hosts[0])

    def _add(self, routes: Iterable[Route]) -> None:
        for route in routes:
            if route.path.endswith("/*"):
                prefix = route.path[:-1]
                table = dict(self._prefixes).get(prefix)
                if table is None:
                    table = {}
                    self._prefixes.append((prefix, table))
                    self._prefixes.sort(key=lambda item: -len(item[0]))
            elif "{" in route.path:
                _, table = self._templates.setdefault(route.path, (_pattern(route.path), {}))
            else:
                table = self._routes.setdefault(route.path, {})
            for method in route.methods:
                table.setdefault(method, route)


def _ids() -> Iterator[str]:
    """Ids of requests, from the system's random numbers; many at a time, as each asking is a system call."""
    while True:
        drawn = os.urandom(12 * 256).hex()
        for at in range(0, len(drawn), 24):
            yield f"req_{drawn[at : at + 24]}"


def _pattern(path: str) -> re.Pattern[str]:
    """What a path with segments like `{id}` matches."""
    parts = ((part, SEGMENT.fullmatch(part)) for part in path.split("/"))
    return re.compile("/".join(f"(?P<{any[1]}>[^/]+)" if any else re.escape(part) for part, any in parts))


def _hook(graph: Graph, name: str) -> Any:
    """A hook's caller if some plugin implements it, so that an unused hook costs nothing."""
    caller = getattr(graph.plugins.hook, name)
    return caller if caller.get_hookimpls() else None


def _hosts(settings: ServerConfig) -> tuple[str, ...]:
    """Hosts to accept. A loopback server takes loopback names only: a web page that
    points its own name at 127.0.0.1 gets nothing (DNS rebinding).
    """
    if settings.allowed_hosts:
        return tuple(host.lower() for host in settings.allowed_hosts)
    return (*LOOPBACK, settings.host) if is_loopback(settings.host) else ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in LOOPBACK or host.startswith("127.")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or pattern == "*" or (pattern.startswith("*.") and name.endswith(pattern[1:]))


async def send_error(send: Send, error: APIError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with an error envelope. The connection closes where the body was not read."""
    body = error.body()
    start: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
        *error.headers,
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": start})
    await send({"type": "http.response.body", "body": body})

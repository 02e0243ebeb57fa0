"""The extension points that a plugin may implement, besides being a stage.

Stages are plugged in by entry point alone (group `pipeline`, name `KIND.NAME`). A stage
instance, or any object of the `extensions` in the config, may also mark methods with
`hookimpl`; they are registered with pluggy when the graph is compiled:

    from pipeline import hookimpl

    class Audit:
        class Config(BaseModel):
            path: str

        def __init__(self, config):
            self.file = open(config.path, "a")

        @hookimpl
        def pipeline_call_ended(self, call, reply, error):
            print(call.id, call.model, file=self.file)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pipeline.call import Call, Tenant
    from pipeline.graph import Graph
    from pipeline.reply import Reply

hookspec = pluggy.HookspecMarker("pipeline")
hookimpl = pluggy.HookimplMarker("pipeline")


@dataclass(slots=True, frozen=True)
class Route:
    """An address that a plugin adds to the server.

    `app` is an ASGI application (a Starlette `Route`'s endpoint, say). With `public`
    it is served without a key; the default is to ask for one like everything else.
    A `path` that ends in `/*` takes everything below it.
    """

    path: str
    app: Callable[..., Awaitable[None]]
    methods: tuple[str, ...] = ("GET",)
    public: bool = False


@hookspec
def pipeline_routes(graph: Graph) -> Iterable[Route]:
    """Return the addresses to add to the server. Called once, when the graph is open.

    A path that the server itself has cannot be taken over.
    """
    return ()


@hookspec(firstresult=True)
def pipeline_authenticate(headers: Mapping[str, str]) -> Tenant | None:
    """Say who sends a request, or raise `Unauthorized`. Called for each one.

    `headers` have names in lower case. Without an implementation the server is in open
    mode, which it refuses off the loopback interface.
    """


@hookspec
def pipeline_call_started(call: Call) -> None:
    """Observe a call before it enters the graph. Must not block or raise."""


@hookspec
def pipeline_call_ended(call: Call, reply: Reply | None, error: BaseException | None) -> None:
    """Observe a call when the graph has answered (`reply`) or failed (`error`).

    A streamed reply has just begun then: use `reply.on_end` for its end. Must not block
    or raise.
    """

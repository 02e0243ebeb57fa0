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

An extension is made anew when the configuration is reloaded, while the former one still
serves. One whose state must not exist twice sets `survives_reload = True`: it then goes on,
as long as its own configuration is the same. Where it is not, the new one's method
`join(former)`, if it has one, is called before it is opened: both serve for a while then.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipeline.call import Call, Tenant
    from pipeline.errors import APIError
    from pipeline.graph import Graph
    from pipeline.kinds import Answered
    from pipeline.price import Price
    from pipeline.reply import Reply
    from pipeline.stage import Layer

hookspec = pluggy.HookspecMarker("pipeline")
hookimpl = pluggy.HookimplMarker("pipeline")

SEGMENT = re.compile(r"\{(\w+)\}")
"""A segment of a route's path that stands for any."""


@dataclass(slots=True, frozen=True)
class Route:
    """An address that a plugin adds to the server.

    `app` is an ASGI application (a Starlette `Route`'s endpoint, say). With `public`
    it is served without a key; the default is to ask for one like everything else. With
    `admin` the key must be an administrator's. A `path` that ends in `/*` takes everything
    below it; one with segments like `{id}` takes any, and `app` finds them in the scope's
    `path_params`. The scope that `app` gets has the `Tenant` who asks under `tenant`.
    `about` and `body` are for `/openapi.json`: a line, and what a request must hold.
    """

    path: str
    app: Callable[..., Awaitable[None]]
    methods: tuple[str, ...] = ("GET",)
    public: bool = False
    admin: bool = False
    about: str = ""
    body: type[BaseModel] | None = None


Across = Literal["sum", "max", "min"]
"""How the gauges of several worker processes make one."""


@dataclass(slots=True, frozen=True)
class Metric:
    """A number to be scraped: its samples are label values, in the order of `labels`, to numbers.

    Label values must come from the configuration, never from clients. Counters of several
    worker processes are added; `across` is for gauges.
    """

    name: str
    about: str
    type: Literal["counter", "gauge"]
    samples: Mapping[tuple[str, ...], float]
    labels: tuple[str, ...] = ()
    across: Across = "sum"


@dataclass(slots=True, frozen=True)
class Panel:
    """What a plugin has a dashboard show: a table, and what there is to say of it, as plain text.

    `rows` have a text for each of `columns`, the first of which names the row. `note` is below the
    table; `alert` is what somebody should act on.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    alert: str = ""


@hookspec
def pipeline_routes(graph: Graph) -> Iterable[Route]:
    """Return the addresses to add to the server. Called once, when the graph is open.

    A path that the server itself has cannot be taken over.
    """
    return ()


@hookspec
def pipeline_opened(graph: Graph) -> None:
    """Learn that the graph is open: its models are known, `graph.plugins.hook` calls hooks.

    Called once, before the first call, for what a stage or extension prepares from others.
    """


@hookspec
def pipeline_draining() -> None:
    """Learn that no new request will come: end what would go on until its client leaves.

    Called once, when the server stops or a reload has put another graph in this one's place,
    while calls under way are answered. Must not block or raise.
    """


@hookspec
def pipeline_layer(stage: str, plugin: str, entry: bool) -> Layer | None:
    """Wrap a stage, say each model's: return a function from its callable to another.

    Called for every stage when the graph is built, with its name, its plugin's
    `KIND.NAME`, and whether calls come in at it (`entry`). A layer is on every way to the
    stage, and belongs to extensions: stages themselves are placed by the graph. What a
    layer returns may have a method `ready`, as stages may: see `pipeline.stage.Stage`.
    """


@hookspec(firstresult=True)
def pipeline_price(model: str) -> Price | None:
    """Return a model's price by its name, None where unknown. Must not block."""


@hookspec(firstresult=True)
def pipeline_version(source: str) -> Awaitable[str] | None:
    """Return the version that a source of answers has now, None where it is another plugin's.

    `source` is what the same plugin has put into a call's `record.sources`. Asked before a kept
    answer is given again, so it should take far less time than a new one.
    """


@hookspec
def pipeline_metrics() -> Iterable[Metric]:
    """Return the numbers that an operator watches. Called at every scrape."""
    return ()


@hookspec
def pipeline_panels() -> Iterable[Awaitable[Panel]]:
    """Return what a dashboard should show besides its own figures.

    Called whenever a page is brought up to date, for each page. Must not block: what takes long is
    awaited, and kept for the next time.
    """
    return ()


@hookspec(firstresult=True)
def pipeline_authenticate(headers: Mapping[str, str]) -> Tenant | Awaitable[Tenant] | None:
    """Say who sends a request, or raise `Unauthorized`. Called for each one.

    `headers` have names in lower case. What needs no waiting is best returned as it is;
    an awaitable is awaited. Without an implementation the server is in open mode, which
    it refuses off the loopback interface.
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


@hookspec
def pipeline_call_refused(id: str, operation: str, tenant: Tenant, error: APIError) -> None:
    """Observe a request that never became a call: malformed, too large, a model that its key may not use.

    One without a good key has no tenant and is not told. Must not block or raise.
    """


@hookspec(firstresult=True)
def pipeline_redact(text: str) -> str | None:
    """Return a text with what is personal in it masked. Called off the way of calls, in any thread."""


@hookspec
def pipeline_mirrored(call: Call, answer: Answered, mirrored: Answered) -> None:
    """Compare the client's answer with the one that another target gave to the same call.

    Called when both have ended, possibly after the call. Both may hold text of the client's:
    mind where it goes. Must not block or raise.
    """

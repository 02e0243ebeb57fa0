"""What a stage is: an async callable that owns its outgoing edges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

from pipeline.call import Call, Step, Tenant
from pipeline.price import Price
from pipeline.reply import Reply

DEFAULT_NAMES = frozenset({"default", "auto"})
"""Model names that every target answers to."""


@dataclass(slots=True, frozen=True)
class Model:
    """A model that can be reached along an edge, and what it can do.

    `id` None stands for any name: an upstream that decides for itself.
    `capabilities` are words such as `tools`, `json_schema`, `vision`, `logprobs`, see
    `pipeline.wire.needs`; empty where unknown, and then no call is kept from the model.
    `context_window` is in tokens, None where unknown. `price` is filled in when the graph
    opens, where an extension knows it. `count` gives a call's prompt tokens by the model's
    own tokenizer, where that is at hand and cheap next to the call itself.
    """

    id: str | None
    operations: frozenset[str]
    aliases: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    context_window: int | None = None
    owned_by: str = "pipeline"
    created: int = 0
    price: Price | None = None
    count: Callable[[Call], int] | None = field(default=None, compare=False)

    def allowed(self, tenant: Tenant, name: str) -> bool:
        """Whether a tenant may use this model, asked for by `name`."""
        allowed = tenant.models
        if allowed is None or name in allowed or self.id in allowed:
            return True
        return any(alias in allowed for alias in self.aliases)

    def offered(self, call: Call) -> bool:
        """Whether this model may answer a call: its operation, its model's name, its tenant, its needs."""
        named = self.serves(call.operation, call.model) and self.allowed(call.tenant, call.model)
        return named and self.able(call)

    def able(self, call: Call) -> bool:
        """Whether this model can do what the call needs, as far as it declares what it can do."""
        return not self.capabilities or call.needs <= self.capabilities

    def serves(self, operation: str, name: str) -> bool:
        """Whether this model answers `operation` under the name that a client wrote."""
        if operation not in self.operations:
            return False
        return self.id is None or name == self.id or name in DEFAULT_NAMES or name in self.aliases


@runtime_checkable
class Stage(Protocol):
    """The contract of every stage; nothing needs to inherit from it.

    A stage class has a nested pydantic `Config`. Its `__init__` takes `config` and
    one parameter per edge: annotated `Edge` for one that the graph must give,
    `Edge | None` for one that it may, `Edges` for any number of named targets.

    It may also have
      `models`            the models that it serves itself; without it, those of its edges
      `async open()`      called once before the first call, targets first; raises `ConfigError`
                          for a value that turns out wrong, its path counted from `Config`
      `async close()`     called once after the last call, in reverse order
      `files`             paths of what it loaded, a model's weights say, once it is open
      `ready()`           whether a call is worth sending now, for routers to ask; cheap, and
                          without it always; what a layer returns may have it too
      methods marked with `hookimpl`, see `pipeline.hookspecs`
    """

    Config: ClassVar[type[BaseModel]]

    async def __call__(self, call: Call) -> Reply:
        """Answer the call, or pass it on along an edge."""
        ...


StageCall = Callable[[Call], Awaitable[Reply]]
"""What an edge awaits."""

Ready = Callable[[], bool]
"""Whether a stage, or what lies behind it, can take a call now."""

Layer = Callable[[StageCall], StageCall]
"""What an extension puts around a stage, see `pipeline.hookspecs.pipeline_layer`."""


def layered(outer: Layer, inner: Layer | None) -> Layer:
    """Two layers as one; None is none. For a graph's entry that is at the same time a model, say."""
    if inner is None:
        return outer
    return lambda stage: outer(inner(stage))


class Edge:
    """A way to another stage: await it with a call. Times and records each passage.

    `models` are those reachable through it, known once the graph is open.
    """

    __slots__ = ("_ready", "_stage", "models", "name", "source", "target")

    def __init__(
        self, source: str, name: str, target: str, stage: StageCall, ready: Ready | None = None
    ) -> None:
        self.source = source
        self.name = name
        self.target = target
        self.models: tuple[Model, ...] = ()
        self._stage = stage
        self._ready = ready

    async def __call__(self, call: Call) -> Reply:
        """Pass the call to the target stage and return its reply."""
        step = Step(self, perf_counter())
        call.record.steps.append(step)
        try:
            reply = await self._stage(call)
        except BaseException as error:
            step.ended = perf_counter()
            step.outcome = type(error).__name__
            raise
        step.ended = perf_counter()
        step.outcome = "ok"
        return reply

    @property
    def always_ready(self) -> bool:
        """Whether nothing behind this edge ever says that it is not ready."""
        return self._ready is None

    def ready(self) -> bool:
        """Whether a call is worth sending now: the target takes it, and some way through it is ready."""
        return self._ready is None or self._ready()

    def offers(self, call: Call) -> bool:
        """Whether some model behind this edge may answer a call."""
        return any(model.offered(call) for model in self.models)

    def __repr__(self) -> str:
        return f"<Edge {self.source}.{self.name} -> {self.target}>"


class Edges(Mapping[str, Edge]):
    """Named edges to any number of targets, in the order that the graph lists them."""

    __slots__ = ("_edges",)

    def __init__(self, edges: Mapping[str, Edge]) -> None:
        self._edges = dict(edges)

    def __getitem__(self, name: str) -> Edge:
        return self._edges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._edges)

    def __len__(self) -> int:
        return len(self._edges)


def readiness(parts: Iterable[object], edges: Iterable[Edge]) -> Ready | None:
    """Whether a stage is ready: each of `parts` (itself, its layers) that has a say, and one of its edges.

    None where that is always so. Made once when the graph is built, so that asking looks nothing up.
    """
    own: list[Ready] = [part.ready for part in parts if hasattr(part, "ready")]
    ways = list(edges)
    if any(edge.always_ready for edge in ways):
        ways = []
    if not own and not ways:
        return None

    def ready() -> bool:
        return all(check() for check in own) and (not ways or any(edge.ready() for edge in ways))

    return ready

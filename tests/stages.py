"""Stages for tests: each does one thing that a graph can ask of a stage."""

from importlib.metadata import EntryPoint
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Edges, Model, Reply
from pipeline.plugins import Registry
from pipeline.problems import ConfigError, Problem


class Empty(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Answer:
    """Answers with a text; notes when it was opened and closed."""

    events: ClassVar[list[str]] = []

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        text: str = "hello"
        times: int = Field(1, ge=1, le=5)

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.name = name
        self.models = (Model(name, frozenset({"chat"})),)

    async def open(self) -> None:
        self.events.append(f"open {self.name}")

    async def close(self) -> None:
        self.events.append(f"close {self.name}")

    async def __call__(self, call: Call) -> Reply:
        return Reply.of({"text": self.config.text * self.config.times, "model": call.model})


class Pass:
    """Passes on."""

    Config = Empty

    def __init__(self, config: Empty, next: Edge) -> None:
        self.next = next

    async def __call__(self, call: Call) -> Reply:
        return await self.next(call)


class Many:
    """Passes on along the edge that the model's name says, else the first."""

    Config = Empty

    def __init__(self, config: Empty, next: Edges) -> None:
        self.next = next

    async def __call__(self, call: Call) -> Reply:
        return await self.next.get(call.model, next(iter(self.next.values())))(call)


class Retry:
    """Goes along `next`, and along `retry` if the answer has no text."""

    Config = Empty

    def __init__(self, config: Empty, next: Edge, retry: Edge | None = None) -> None:
        self.next = next
        self.retry = retry

    async def __call__(self, call: Call) -> Reply:
        reply = await self.next(call)
        if self.retry is not None and not reply.json["text"]:
            return await self.retry(call)
        return reply


class Fails:
    """Can't be opened."""

    Config = Empty

    def __init__(self, config: Empty) -> None:
        self.models = ()

    async def open(self) -> None:
        raise RuntimeError("no such device")

    async def __call__(self, call: Call) -> Reply:
        raise NotImplementedError


class Refuses:
    """Finds a value of its config wrong when it is opened."""

    class Config(BaseModel):
        field: str = "device"

    def __init__(self, config: Config) -> None:
        self.field = config.field

    async def open(self) -> None:
        raise ConfigError([Problem(self.field, "there is none.")])

    async def __call__(self, call: Call) -> Reply:
        raise NotImplementedError


def registry(**more: str) -> Registry:
    """These stages as if they were installed, and others by `kind_name="module:Class"`."""
    here = {
        "infer.answer": f"{__name__}:Answer",
        "infer.fails": f"{__name__}:Fails",
        "infer.refuses": f"{__name__}:Refuses",
        "infer.broken": "no_such_module:Nothing",
        "metrics.prometheus": "pipeline_plugins.metrics.prometheus:Prometheus",
        "monitor.pass": f"{__name__}:Pass",
        "route.many": f"{__name__}:Many",
        "validate.retry": f"{__name__}:Retry",
    }
    here |= {name.replace("_", ".", 1): value for name, value in more.items()}
    return Registry(EntryPoint(name, value, "pipeline") for name, value in here.items())

"""`POST /v1/admin/cache/invalidate`: makes what caches know unknown, by label."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline import Route
from pipeline.errors import Overloaded
from pipeline.graph import Graph
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.cache.store import StoreDown

PATH = "/v1/admin/cache/invalidate"
MAX_BODY = 4096
BODY_SECONDS = 10.0


@runtime_checkable
class Invalidates(Protocol):
    """A stage that keeps answers by the labels of `pipeline_plugins.cache.store`."""

    async def invalidate(self, label: str) -> None:
        """Make every answer with this label unknown. Raises `StoreDown`."""
        ...


class Request(BaseModel):
    """What to invalidate: exactly one of these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, min_length=1, max_length=256)
    tag: str | None = Field(None, min_length=1, max_length=64)
    owner: str | None = Field(None, min_length=1, max_length=256)
    all: bool = False

    @model_validator(mode="after")
    def _one(self) -> Request:
        if sum(map(bool, (self.model, self.tag, self.owner, self.all))) != 1:
            raise ValueError("give exactly one of `model`, `tag`, `owner` and `all: true`")
        return self

    @property
    def label(self) -> str:
        """The label that stands for it."""
        for name in ("model", "tag", "owner"):
            if (value := getattr(self, name)) is not None:
                return f"{name}:{value}"
        return "all"


def routes(graph: Graph) -> Iterable[Route]:
    """The route, for all caches of a graph together."""
    caches = [stage for stage in graph.stages.values() if isinstance(stage, Invalidates)]

    async def handle(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        body = parse(await read_body(receive, MAX_BODY, BODY_SECONDS))
        check(Request, body)
        request = Request(**body)
        try:
            for cache in caches:
                await cache.invalidate(request.label)
        except StoreDown:
            raise Overloaded("The cache's store does not answer; nothing is invalidated there.") from None
        await send_json(send, {"invalidated": request.label, "caches": len(caches)})

    return (Route(PATH, handle, methods=("POST",), admin=True),)

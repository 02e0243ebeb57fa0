"""What tests of routers share: calls, targets that answer as told, and running them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from pipeline import ANONYMOUS, Call, Edge, Edges, Model, Reply, Tenant

T = TypeVar("T")

CHAT = frozenset({"chat", "completion"})
EMBED = frozenset({"embedding"})


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def a_call(
    operation: str = "chat",
    *,
    tenant: Tenant = ANONYMOUS,
    headers: dict[str, str] | None = None,
    deadline: float = 1e9,
    **body: Any,
) -> Call:
    """A chat for `default`, or what the fields of its body say."""
    whole: dict[str, Any] = {"model": "default", **body}
    if operation == "chat":
        whole.setdefault("messages", [{"role": "user", "content": "hi"}])
    return Call(
        id="1",
        operation=operation,
        body=whole,
        deadline=deadline,
        received=0,
        tenant=tenant,
        headers=headers,
    )


def an_edge(
    name: str, *models: Model, answer: Callable[[Call], Awaitable[Reply]] | None = None, source: str = "route"
) -> Edge:
    """An edge to a target; without `answer` it says which target it is."""

    async def tell(call: Call) -> Reply:
        return Reply.of({"target": name, "model": call.model})

    edge = Edge(source, name, name, answer or tell)
    edge.models = models or (Model(name, CHAT),)
    return edge


def some_edges(*edges: Edge) -> Edges:
    return Edges({edge.name: edge for edge in edges})


def edges_of(*names: str) -> Edges:
    """Targets with a model each, of the target's name."""
    return some_edges(*(an_edge(name) for name in names))


async def taken(router: Any, call: Call) -> str:
    """The target that a router sends a call to."""
    await router(call)
    return call.record.steps[-1].stage


async def chunks_of(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(reply: Reply) -> bytes:
    """All of a reply, closed as the server closes it."""
    try:
        return b"".join([chunk async for chunk in reply])
    finally:
        await reply.aclose()

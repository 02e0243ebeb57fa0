"""Limits in front of answers that tests control."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pydantic import SecretStr

from pipeline import Call, Edge, Model, Reply, Tenant, Usage

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "four"}], "max_tokens": 10}
"""Estimated at 5 tokens of prompt and 10 of answer."""

MODELS = (
    Model("m", frozenset({"chat", "embedding"}), context_window=1000),
    Model("other", frozenset({"chat"}), aliases=("nick",)),
)

Answer = Callable[[Call], Awaitable[Reply]]


async def ok(call: Call) -> Reply:
    return Reply(body=b"{}", usage=Usage(5, 2))


def edge(answer: Answer, models: tuple[Model, ...] = MODELS) -> Edge:
    found = Edge("limit", "next", "infer", answer)
    found.models = models
    return found


def call(key: str = "k", owner: str = "o", limit: dict[str, Any] | None = None, **body: Any) -> Call:
    policy = {} if limit is None else {"limit": limit}
    tenant = Tenant(key, owner, policy=policy)
    given = {name: value for name, value in {**CHAT, **body}.items() if value is not None}
    deadline = asyncio.get_running_loop().time() + 60
    return Call(id="c", operation="chat", body=given, deadline=deadline, received=0, tenant=tenant)


@contextlib.asynccontextmanager
async def limited(
    stage: Any,
    url: str | None = None,
    answer: Answer = ok,
    models: tuple[Model, ...] = MODELS,
    name: str | None = None,
    **config: Any,
) -> AsyncIterator[Any]:
    """A limit that is open: in memory, or with `url` in that Redis."""
    if url is not None:
        config = {"store": "redis", "redis": SecretStr(url), "redis_timeout": 5, **config}
    built = stage(stage.Config(**config), edge(answer, models), name or f"limit-{uuid.uuid4().hex}")
    await built.open()
    try:
        yield built
    finally:
        await built.close()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  any condition
            await asyncio.sleep(0.005)

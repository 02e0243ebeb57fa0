"""Graphs with accounts for tests: the echo stage at a price, on either store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pipeline import Call, Tenant
from pipeline.call import ANONYMOUS
from pipeline.config import compose
from pipeline.graph import Graph

RATE = {"prompt": 1000.0, "completion": 2000.0}
"""USD per million tokens: 1 and 2 thousandths of a USD a token."""

_numbers = itertools.count()


@asynccontextmanager
async def opened(folder: Path, *overrides: str, **tree: Any) -> AsyncIterator[Graph]:
    """A graph with `infer=echo`, its accounts in `folder`, until the end of the block."""
    given = ["infer=echo", "infer@embed=none", "monitor=none", f"vars.state={folder}"]
    plan, _ = compose([*given, "+price.models.echo={prompt: 1000, completion: 2000}", *overrides]).plan()
    graph = Graph.build(plan)
    await graph.open()
    try:
        yield graph
    finally:
        await graph.close()


def chat(text: str = "a b c", *, tenant: Tenant = ANONYMOUS, **body: Any) -> Call:
    """A call that echo answers with as many tokens as `text` has words."""
    return Call(
        id=f"req_{next(_numbers)}",
        operation="chat",
        body={"model": "default", "messages": [{"role": "user", "content": text}], **body},
        deadline=asyncio.get_running_loop().time() + 30,
        received=0,
        tenant=tenant,
    )


def kept(graph: Graph) -> Any:
    """The graph's accounts."""
    return graph.plugins.get_plugin("price").accounts


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  any condition
            await asyncio.sleep(0.01)


def asks(call: Call) -> bool:
    """Whether a call has come to its model."""
    return bool(call.record.steps) and call.record.steps[-1].stage == "infer"


async def nano(graph: Graph) -> int:
    """All that was ever spent, once the journals are in the store."""
    await kept(graph).fold()
    return sum(counts[4] for counts in (await kept(graph).totals("2000-01-01", "2999-12-31")).values())

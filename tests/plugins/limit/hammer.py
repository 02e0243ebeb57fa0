"""A process that calls a limit in Redis as often as it can: `python -m tests.plugins.limit.hammer`.

Arguments: the Redis's URL, the limit's name, `token_bucket`, `sliding_window` or
`concurrency`, the limit, and the number of calls. Prints JSON.
"""

import asyncio
import json
import sys
from typing import Any

from pipeline_plugins.limit.concurrency import Concurrency
from pipeline_plugins.limit.sliding_window import SlidingWindow
from pipeline_plugins.limit.token_bucket import TokenBucket
from pipeline_plugins.redis_link import RedisLink

from pipeline import Call, Reply
from pipeline.errors import RateLimited
from tests.plugins.limit.stages import call, limited, ok


async def rate(kind: Any, url: str, name: str, limit: int, calls: int) -> dict[str, Any]:
    admitted = 0
    async with limited(kind, url, name=name, requests_per_minute=limit, on_failure="refuse") as stage:

        async def some() -> None:
            nonlocal admitted
            for _ in range(calls // 10):
                try:
                    await stage(call())
                    admitted += 1
                except RateLimited:
                    pass

        await asyncio.gather(*(some() for _ in range(10)))
    return {"admitted": admitted}


async def concurrency(url: str, name: str, limit: int, calls: int) -> dict[str, Any]:
    link = RedisLink(url, timeout=10)
    most = 0

    async def answer(made: Call) -> Reply:
        nonlocal most
        most = max(most, await link.command("INCR", f"{name}-inside"))
        await asyncio.sleep(0.002)
        await link.command("DECR", f"{name}-inside")
        return await ok(made)

    options: dict[str, Any] = {"concurrent": limit, "queue_timeout": 300, "queue": 10_000, "lease": 60}
    async with limited(Concurrency, url, answer=answer, name=name, on_failure="refuse", **options) as stage:
        stage._expected = lambda *_: 0.0  # all wait, however slow the machine
        await asyncio.gather(*(stage(call(key=f"k{n % 5}")) for n in range(calls)))
    await link.close()
    return {"most": most, "done": stage.admitted}


async def main(url: str, name: str, kind: str, limit: str, calls: str) -> None:
    if kind == "concurrency":
        said = await concurrency(url, name, int(limit), int(calls))
    else:
        stage = TokenBucket if kind == "token_bucket" else SlidingWindow
        said = await rate(stage, url, name, int(limit), int(calls))
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

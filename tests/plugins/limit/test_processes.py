"""Four processes that share one limit in Redis."""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.limit.concurrency import Concurrency

from tests.plugins.limit.stages import call, limited

ROOT = Path(__file__).parents[3]


def start(url: str, name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.plugins.limit.hammer", url, name, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def four(url: str, *arguments: str) -> list[dict[str, Any]]:
    name = uuid.uuid4().hex
    processes = [start(url, name, *arguments) for _ in range(4)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [json.loads(text) for text in said]


@pytest.mark.parametrize("kind", ["token_bucket", "sliding_window"])
def test_four_processes_admit_no_more_than_the_limit_between_them(redis_url: str, kind: str) -> None:
    limit = 300
    started = time.monotonic()
    admitted = sum(said["admitted"] for said in four(redis_url, kind, str(limit), "400"))
    seconds = time.monotonic() - started
    assert limit <= admitted
    most = limit * (1 + seconds / 60) if kind == "token_bucket" else limit * (1 + seconds // 60)
    assert admitted <= most


def test_four_processes_never_run_more_calls_than_there_are_slots(redis_url: str) -> None:
    said = four(redis_url, "concurrency", "3", "40")
    assert max(one["most"] for one in said) <= 3
    assert [one["done"] for one in said] == [40] * 4


def test_the_slots_of_a_killed_process_come_back(redis_url: str) -> None:
    name = uuid.uuid4().hex
    held = (
        "import asyncio, sys\n"
        "from pipeline_plugins.limit.concurrency import Concurrency\n"
        "from tests.plugins.limit.stages import call, limited\n"
        "async def hold(made):\n"
        "    sys.stdout.write('held\\n'); sys.stdout.flush()\n"
        "    await asyncio.sleep(600)\n"
        "async def go():\n"
        f"    options = dict(name={name!r}, concurrent=1, lease=1)\n"
        f"    async with limited(Concurrency, {redis_url!r}, hold, **options) as stage:\n"
        "        await stage(call())\n"
        "asyncio.run(go())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", held], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()

    async def go() -> None:
        async with limited(
            Concurrency, redis_url, name=name, concurrent=1, lease=1, queue_timeout=60
        ) as stage:
            await stage(call())

    asyncio.run(go())

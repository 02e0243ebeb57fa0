"""Two servers with `cache=semantic` that share an index, one of them killed."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from openai import OpenAI

from benchmarks.processes import pipeline_server


def asked(url: str, text: str) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        reply = client.chat.completions.with_raw_response.create(
            model="default", temperature=0, messages=[{"role": "user", "content": text}]
        )
        return reply.headers["x-pipeline-cache"]


@pytest.mark.parametrize("index", ["lancedb", "redis"])
def test_a_server_knows_what_another_was_asked_before_it_was_killed(
    index: str, tmp_path: Path, redis_url: str
) -> None:
    options = [
        "infer=echo",
        "infer@embed=none",
        "cache=semantic",
        f"cache.index={index}",
        "cache.store=redis",
    ]
    options += ["cache.decision=threshold", "cache.threshold=0.8", "cache.explore=0", "cache.threads=1"]
    options += [
        f"cache.redis={redis_url}",
        "cache.redis_timeout=5",
        f"cache.index_path={tmp_path}",
        "cache.index_poll=0.05",
    ]
    plants, cats = f"How do plants make their food, {index}?", f"How long do cats usually live, {index}?"
    with ExitStack() as stack:
        first = stack.enter_context(pipeline_server(*options))
        with pipeline_server(*options) as second:
            assert asked(first.url, plants) == "miss"
            assert asked(second.url, cats) == "miss"
        assert asked(first.url, cats.replace("do cats", "does a cat")) == "semantic"
        first.process.kill()
    with pipeline_server(*options) as third:
        assert asked(third.url, plants.replace("their food", "food")) == "semantic"

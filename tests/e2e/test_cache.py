"""The official client against a server with `cache=exact`, over each store."""

import asyncio
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from benchmarks import load
from benchmarks.processes import PIPELINE, pipeline_server

ASKED: dict[str, Any] = {
    "model": "default",
    "messages": [{"role": "user", "content": "one two three four five six seven eight"}],
    "temperature": 0,
}


@pytest.fixture(scope="module", params=["memory", "disk", "redis"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ["infer=echo", "infer@embed=none", "infer.latency=0.3", "infer.tokens_per_second=100"]
    options += ["cache=exact", f"cache.store={request.param}", "cache.redis_timeout=5"]
    if request.param == "redis":
        options.append(f"cache.redis={request.getfixturevalue('redis_url')}")
    folder: Path = tmp_path_factory.mktemp("cache")
    with pipeline_server(*options, f"cache.path={folder}") as server:
        yield f"{server.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        assert invalidate(url, {"all": True})[0] == 200
        yield client


def invalidate(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    address = url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(
        "POST", "/v1/admin/cache/invalidate", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    found = json.load(answer)
    connection.close()
    return answer.status, found


def asked(client: OpenAI, **changes: Any) -> tuple[str, Any]:
    reply = client.chat.completions.with_raw_response.create(**{**ASKED, **changes})
    return reply.headers["x-pipeline-cache"], reply.parse()


def test_the_second_time_is_a_hit_with_the_same_answer(client: OpenAI) -> None:
    first, answer = asked(client)
    second, again = asked(client)
    assert (first, second) == ("miss", "hit")
    assert again == answer
    assert asked(client, temperature=1)[0] == "bypass"
    assert asked(client, extra_headers={"cache-control": "no-cache"})[0] == "bypass"


def test_a_stream_is_given_again_as_the_same_stream(client: OpenAI) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    (first, stream), (second, again) = ((r, list(s)) for r, s in (asked(client, **options) for _ in range(2)))
    assert (first, second) == ("miss", "hit")
    assert again == stream
    assert len(stream) > 8
    kept, whole = asked(client)
    assert kept == "hit"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert whole.choices[0].message.content == text == ASKED["messages"][0]["content"]


def test_a_hundred_at_once_are_one_call_and_the_first_may_hang_up() -> None:
    content = ASKED["messages"][0]["content"]

    async def go(url: str) -> list[tuple[str, str]]:
        first, second = [
            await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2])) for _ in "12"
        ]
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            first[1].write(load.request(ASKED))
            await asyncio.sleep(0.3)
            second[1].write(load.request(ASKED))
            await asyncio.sleep(0.3)
            first[1].close()
            found = await asyncio.gather(*(one(client, stream=n % 2 == 0) for n in range(98)))
        assert b"x-pipeline-cache: hit" in await second[0].readuntil(b"\r\n\r\n")
        second[1].close()
        return found

    async def one(client: AsyncOpenAI, stream: bool) -> tuple[str, str]:
        reply = await client.chat.completions.with_raw_response.create(**ASKED, stream=stream)
        parsed: Any = reply.parse()
        if not stream:
            return reply.headers["x-pipeline-cache"], parsed.choices[0].message.content
        parts = [c.choices[0].delta.content or "" async for c in parsed]
        return reply.headers["x-pipeline-cache"], "".join(parts)

    # Any call that was not shared would be a miss.
    with pipeline_server("infer=echo", "infer@embed=none", "infer.latency=2", "cache=exact") as server:
        assert set(asyncio.run(go(server.url))) == {("hit", content)}


def test_an_administrator_invalidates_by_tag(client: OpenAI, url: str) -> None:
    tagged = {"extra_headers": {"x-pipeline-cache-tags": "faq"}}
    assert [asked(client, **tagged)[0] for _ in range(2)] == ["miss", "hit"]
    assert invalidate(url, {"tag": "faq"}) == (200, {"invalidated": "tag:faq", "caches": 1})
    assert asked(client)[0] == "miss"


def test_a_wrong_invalidation_is_told_what_is_right(url: str) -> None:
    for body, code, param, said in (
        ({}, "invalid_value", None, "Give exactly one of `model`, `tag`, `owner` and `all: true`."),
        ({"tag": "a", "model": "b"}, "invalid_value", None, "Give exactly one of"),
        ({"tags": "a"}, "unknown_field", "tags", "There is no field `tags`. Did you mean `tag`?"),
        ({"all": 1}, "invalid_value", "all", "`all` is invalid: input should be a valid boolean, not 1."),
    ):
        status, answer = invalidate(url, body)
        error = answer["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == (code, param)
        assert error["message"].startswith(said)


def test_embeddings_are_known_text_by_text(client: OpenAI) -> None:
    def embed(*texts: str) -> tuple[str, list[Any]]:
        reply = client.embeddings.with_raw_response.create(model="default", input=list(texts))
        return reply.headers["x-pipeline-cache"], [item.embedding for item in reply.parse().data]

    tag = str(time.time_ns())
    _, (a, b) = embed(tag + "a", tag + "b")
    assert embed(tag + "b", tag + "a") == ("hit", [b, a])
    result, (c, again) = embed(tag + "c", tag + "a")
    assert result == "miss"
    assert again == a != c


def test_owners_are_apart_and_an_owners_keys_share(tmp_path: Path) -> None:
    keys = f"keys.path={tmp_path}/keys.sqlite"

    def create(owner: str, *more: str) -> str:
        command = [PIPELINE, "keys", "create", "--name", "k", "--owner", owner, *more, "keys=sqlite", keys]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]

    secrets = [create("ana"), create("ana"), create("bob"), create("bob", "--cache", "when=never")]
    with pipeline_server("infer=echo", "infer@embed=none", "cache=exact", "keys=sqlite", keys) as server:
        found = []
        for secret in secrets:
            with OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
                found.append([asked(client)[0] for _ in range(2)])
        assert found == [["miss", "hit"], ["hit", "hit"], ["miss", "hit"], ["bypass", "bypass"]]

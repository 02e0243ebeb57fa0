"""Many clients at once, clients that leave, and the server's beginning and end."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from benchmarks.processes import PIPELINE, Process, pipeline_server, post, start, wait_ready

ECHO = ["infer=echo", "infer@embed=echo", "embed.name=e"]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with pipeline_server(*ECHO, "infer.tokens_per_second=400", "server.write_timeout=1") as server:
        yield server


def body_of(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def ask(session: aiohttp.ClientSession, url: str, text: str, stream: bool) -> str:
    async with session.post(f"{url}/v1/chat/completions", json=body_of(text, stream=stream)) as answer:
        assert answer.status == 200
        if not stream:
            return str((await answer.json())["choices"][0]["message"]["content"])
        events = [line[6:] async for line in answer.content if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]\n"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_a_hundred_clients_get_each_their_own_answer(server: Process) -> None:
    async def client(session: aiohttp.ClientSession, index: int) -> None:
        text = " ".join(f"{index}-{word}" for word in range(20))
        if index % 5 == 0:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(session, server.url, text, index % 2 == 0), 0.02)
            return
        assert await ask(session, server.url, text, index % 2 == 0) == text

    async def go() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(client(session, index) for index in range(100)))

    asyncio.run(go())


def test_a_stream_is_in_openais_form(server: Process) -> None:
    body = body_of("one two", stream=True, stream_options={"include_usage": True})

    async def go() -> tuple[str, bytes]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/v1/chat/completions", json=body) as answer,
        ):
            return answer.headers["content-type"], await answer.read()

    kind, content = asyncio.run(go())
    assert kind.startswith("text/event-stream")
    blocks = content.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    events = [json.loads(block[6:]) for block in blocks[:-2]]
    assert events[0]["choices"][0]["delta"]["content"] == ""
    assert events[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 2


def test_a_client_that_does_not_read_is_cut_off() -> None:
    with pipeline_server(*ECHO, "server.write_timeout=0.5") as server:
        text = "word " * 300_000
        data = json.dumps(body_of(text, stream=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(
            data
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.sendall(head + data)
            eventually(lambda: connections_of(server) == 1)
            eventually(lambda: connections_of(server) == 0)


def connections_of(server: Process) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in server.process.net_connections("tcp"))


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "this did not come true in time"
        time.sleep(0.02)


def test_too_many_connections_are_turned_away() -> None:
    with pipeline_server(*ECHO, "server.max_connections=4") as server:
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one_more:
            assert b" 503 " in one_more.recv(4096)
        for line in lines:
            line.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_running_streams_end_before_the_server_does(number: int, status: int) -> None:
    command = [PIPELINE, "serve", "server.port=0", *ECHO, "infer.tokens_per_second=20"]
    with start(command) as server:
        wait_ready(server.url)

        text = asyncio.run(ask_and_signal(server, body_of("a b c d e f g h i j", stream=True), number))
        assert text.endswith(b"data: [DONE]\n\n")
        assert server.process.wait(10) == status


async def ask_and_signal(server: Process, body: dict[str, Any], number: int) -> bytes:
    """Send a signal once the answer has begun; the answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", json=body) as answer,
    ):
        start = await answer.content.readany()
        server.process.send_signal(number)
        return start + await answer.read()


def test_what_outlasts_the_grace_ends_with_an_error_and_not_in_silence() -> None:
    slow = ["infer.tokens_per_second=1", "server.drain_timeout=1"]
    with start([PIPELINE, "serve", "server.port=0", *ECHO, *slow]) as server:
        wait_ready(server.url)
        body = body_of("word " * 60, stream=True)
        text = asyncio.run(ask_and_signal(server, body, signal.SIGTERM))
        assert json.loads(text.split(b"\n\n")[-2][6:])["error"]["code"] == "shutting_down"
        assert b"[DONE]" not in text
        assert server.process.wait(10) == 0


def test_a_port_in_use_is_said_and_fails(server: Process) -> None:
    command = [PIPELINE, "serve", *ECHO, f"server.port={server.port}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert f"Can't listen on 127.0.0.1:{server.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_keys_only_loopback_is_served() -> None:
    command = [PIPELINE, "serve", *ECHO, "server.host=0.0.0.0", "server.port=0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "nothing asks clients for a key" in ended.stderr


def workers_of(server: Process) -> list[psutil.Process]:
    found = []
    for process in server.process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def answered(server: Process) -> bool:
    """Whether a call is answered; a worker that is still loading refuses it with 503."""
    try:
        return bool(post(f"{server.url}/v1/chat/completions", body_of("hi"))["choices"])
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


def test_several_workers_serve_and_a_killed_one_is_replaced_which_the_log_says(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [PIPELINE, "serve", *ECHO, "server.workers=2", "server.port=0"]
    with start(["bash", "-c", f'exec "$@" 2> >(tee {log} >&2)', "bash", *command]) as server:
        wait_ready(server.url)
        for _ in range(8):
            eventually(lambda: answered(server))
        workers = workers_of(server)
        assert len(workers) == 2
        workers[0].kill()
        eventually(lambda: len(now := workers_of(server)) == 2 and workers[0] not in now)
        wait_ready(server.url)
        eventually(lambda: answered(server))
        said = [json.loads(line) for line in log.read_text().splitlines()]
        died = [line for line in said if line["event"] == "a worker died and is replaced"]
        assert [(line["worker"], line["exit"]) for line in died] == [(workers[0].pid, -signal.SIGKILL)]


def test_while_several_workers_drain_a_new_client_is_refused_at_once() -> None:
    slow = ["infer.tokens_per_second=1", "server.workers=2", "server.port=0"]
    with start([PIPELINE, "serve", *ECHO, *slow]) as server:
        wait_ready(server.url)

        async def go() -> None:
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    f"{server.url}/v1/chat/completions", json=body_of("word " * 60, stream=True)
                ) as answer,
            ):
                await answer.content.readany()
                server.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(eventually, lambda: refuses(server))
                assert server.process.is_running()
                await answer.content.readany()

        asyncio.run(go())
        assert server.process.wait(20) == 0


def refuses(server: Process) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_pages_tell_about_the_server(server: Process) -> None:
    async def go() -> tuple[Any, Any, str]:
        async with aiohttp.ClientSession(server.url) as session:
            live = await (await session.get("/health/live")).json()
            api = await (await session.get("/openapi.json")).json()
            return live, api, await (await session.get("/docs")).text()

    live, api, page = asyncio.run(go())
    assert live == {"status": "live"}
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health/ready"} <= set(api["paths"])
    assert "messages" in api["components"]["schemas"]["ChatRequest"]["properties"]
    assert "openapi.json" in page

"""The link to Redis: what becomes of commands when Redis freezes, dies or refuses."""

import asyncio
import contextlib
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.redis_connection import Address
from pipeline_plugins.redis_link import RedisDown, RedisLink, ResponseError, metrics

from tests.redis_process import BINARY, RedisProcess


@contextlib.asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[RedisLink]:
    link = RedisLink(url, **{"timeout": 5, **options})
    try:
        yield link
    finally:
        await link.close()


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 10) -> float:
    """Wait for something; the seconds that it took."""
    started = time.monotonic()
    while not await true():
        if time.monotonic() - started > seconds:
            raise AssertionError("it never came")
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def answers(link: RedisLink) -> bool:
    with contextlib.suppress(RedisDown):
        return bool(await link.command("PING") == b"PONG")
    return False


def test_commands_and_scripts_are_answered(redis_url: str) -> None:
    name = uuid.uuid4().hex

    async def go() -> None:
        async with linked(redis_url) as link:
            assert await link.command("SET", name, b"\x00\xff") == b"OK"
            assert await link.command("GET", name) == b"\x00\xff"
            assert await link.command("GET", name + "x") is None
            script = link.script("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}")
            for _ in range(2):
                assert await link.run(script, [name], [7]) == [name.encode(), b"7", b"\x00\xff"]
            await link.command("SCRIPT", "FLUSH")
            assert (await link.run(script, [name], [8]))[1] == b"8"

    asyncio.run(go())


def test_what_redis_refuses_is_told_and_harms_no_other_command(redis_url: str) -> None:
    async def go() -> None:
        async with linked(redis_url) as link:
            wrong = link.command("GET")
            right = link.command("ECHO", "a")
            refused, echoed = await asyncio.gather(wrong, right, return_exceptions=True)
            assert isinstance(refused, ResponseError)
            assert echoed == b"a"
            assert link.up

    asyncio.run(go())


def test_a_cancelled_callers_answer_goes_to_nobody(redis_url: str) -> None:
    async def go() -> None:
        async with linked(redis_url) as link:
            await link.command("PING")
            for round in range(50):
                tasks = [asyncio.create_task(link.command("ECHO", f"{round}-{n}")) for n in range(20)]
                await asyncio.sleep(0)
                for task in tasks[::3]:
                    task.cancel()
                got = await asyncio.gather(*tasks, return_exceptions=True)
                for n, answer in enumerate(got):
                    if n % 3:
                        assert answer == f"{round}-{n}".encode()
                    else:
                        assert isinstance(answer, asyncio.CancelledError)
            assert link.failures == 0

    asyncio.run(go())


def test_a_frozen_redis_delays_a_command_by_its_timeout_and_the_next_not_at_all(
    redis_process: RedisProcess, redis_logs: list[Any]
) -> None:
    async def go() -> None:
        async with linked(redis_process.url, timeout=0.3) as link:
            await until(lambda: answers(link))
            redis_process.freeze()
            redis_logs.clear()
            waiting = [link.command("PING") for _ in range(20)]
            got = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(answer) for answer in got} == {RedisDown}
            assert not link.up
            with pytest.raises(RedisDown):
                link.command("PING").send(None)  # without a wait
            redis_process.thaw()
            await until(lambda: answers(link))
            assert [line["event"] for line in redis_logs] == ["redis is down", "redis is back"]

    asyncio.run(go())


def test_a_killed_redis_is_down_at_once_and_a_restarted_one_back_within_two_seconds(
    redis_process: RedisProcess,
) -> None:
    async def go() -> None:
        async with linked(redis_process.url) as link:
            script = link.script("return 1")
            assert await link.run(script, [], []) == 1
            redis_process.kill()
            await until(lambda: _down(link))
            with pytest.raises(RedisDown):
                await link.run(script, [], [])
            redis_process.start()
            await until(lambda: answers(link))
            assert await link.run(script, [], []) == 1

    async def _down(link: RedisLink) -> bool:
        return not link.up

    asyncio.run(go())


def test_an_answer_that_is_late_because_the_loop_was_held_up_counts(redis_url: str) -> None:
    async def go() -> None:
        async with linked(redis_url, timeout=0.05) as link:
            await link.command("PING")
            task = asyncio.create_task(link.command("ECHO", "a"))
            await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251  the loop is held up on purpose
            assert await task == b"a"

    asyncio.run(go())


def test_a_wrong_password_is_told_at_the_start_and_does_not_show(redis_process: RedisProcess) -> None:
    async def go() -> None:
        async with linked(redis_process.url) as link:
            await link.command("CONFIG", "SET", "requirepass", "opensesame")
        away = redis_process.url.replace("://", "://:opensesamy@")
        async with linked(away) as link:
            with pytest.raises(ValueError, match="WRONGPASS") as caught:
                await link.open()
            assert "opensesamy" not in str(caught.value)
        async with linked(redis_process.url) as link:
            with pytest.raises(ValueError, match="user and password of its URL"):
                await link.open()
        async with linked(redis_process.url.replace("://", "://:opensesame@")) as link:
            await link.open()
            assert await link.command("PING") == b"PONG"
            await link.command("ACL", "SETUSER", "bob", "on", ">b%b", "+@all", "~*")
        async with linked(redis_process.url.replace("://", "://bob:b%25b@")) as link:
            await link.open()
            assert await link.command("ACL", "WHOAMI") == b"bob"

    asyncio.run(go())


def test_an_absent_redis_lets_the_link_open_and_serves_it_when_it_comes(redis_process: RedisProcess) -> None:
    redis_process.kill()

    async def go() -> None:
        async with linked(redis_process.url) as link:
            await link.open()
            assert not link.up
            redis_process.start()
            await until(lambda: answers(link))

    asyncio.run(go())


def test_databases_are_apart_and_two_links_share_nothing_but_the_redis(redis_process: RedisProcess) -> None:
    async def go() -> None:
        base = redis_process.url.rpartition("/")[0]
        async with linked(f"{base}/0") as one, linked(f"{base}/3") as two:
            await one.command("SET", "a", "one")
            assert await two.command("GET", "a") is None
            await one.close()
            await two.command("SET", "a", "two")
            assert await two.command("GET", "a") == b"two"
            with pytest.raises(RedisDown):
                await one.command("GET", "a")

    asyncio.run(go())


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    if BINARY is None:
        pytest.skip("needs `redis-server` on the PATH")
    command = [BINARY, "--port", "0", "--unixsocket", str(path), "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    async def go() -> None:
        await until(_there)
        async with linked(f"unix://{path}?db=2") as link:
            await until(lambda: answers(link))

    async def _there() -> bool:
        return path.exists()

    try:
        asyncio.run(go())
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("setting", "says"),
    [(("CONFIG", "SET", "maxmemory", "1"), "OOM"), (("ACL", "SETUSER", "default", "-set"), "NOPERM")],
)
def test_a_redis_that_refuses_is_no_redis_and_said_once_for_as_long_as_it_does(
    redis_process: RedisProcess,
    redis_logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    setting: tuple[str, ...],
    says: str,
) -> None:
    async def go() -> None:
        async with linked(redis_process.url) as link:
            await link.command(*setting)
            redis_logs.clear()
            for _ in range(3):
                with pytest.raises(RedisDown, match=says):
                    await link.command("SET", "a", "b")
            assert [line["event"] for line in redis_logs] == ["redis refuses a command"]
            assert (await link.command("PING"), link.up, link.failures) == (b"PONG", True, 1)
            monkeypatch.setattr("pipeline_plugins.redis_link.QUIET", 0)
            with pytest.raises(RedisDown, match=says):
                await link.command("SET", "a", "b")
            assert len(redis_logs) == link.failures == 2

    asyncio.run(go())


def test_commands_beyond_the_bound_are_refused_and_the_rest_answered(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_plugins.redis_connection.WAITING", 10)

    async def go() -> None:
        async with linked(redis_process.url) as link:
            await link.command("PING")
            got = await asyncio.gather(*(link.command("PING") for _ in range(15)), return_exceptions=True)
            assert got[:10] == [b"PONG"] * 10
            assert {type(answer) for answer in got[10:]} == {RedisDown}
            assert link.up

    asyncio.run(go())


def test_state_and_failures_are_metrics(redis_process: RedisProcess) -> None:
    redis_process.kill()

    async def go() -> None:
        async with linked(redis_process.url) as link:
            await link.open()
            up, failures = metrics({"limit": link})
            assert up.samples == {("limit",): 0.0}
            assert failures.samples == {("limit",): 1.0}

    asyncio.run(go())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://x", "expected redis://"),
        ("redis://:hush@x:port/0", "port"),
        ("redis://x/one", "database"),
        ("redis://x/0?colour=red", "`colour`"),
    ],
)
def test_an_url_that_is_wrong_is_told_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Address.read(url)
    assert "hush" not in str(caught.value)


def test_urls_are_read() -> None:
    address = Address.read("rediss://me:p%40ss@cache.example.org:7000/4")
    assert (address.host, address.port, address.user, address.password, address.database) == (
        "cache.example.org",
        7000,
        "me",
        "p@ss",
        4,
    )
    assert address.tls is not None
    assert Address.read("unix:///run/redis.sock?db=2").path == "/run/redis.sock"

"""Flights: calls under way that several clients share."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pipeline_plugins.cache.flight import Flight, Flights

from pipeline import Call, Reply, Tenant
from pipeline.errors import RateLimited
from pipeline.kinds import Limited

CHUNK = b'data: {"a":"' + b"x" * 50 + b'"}\n\n'


def test_readers_of_a_stream_too_long_to_hold_wait_for_it_without_waking_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = 0
    tell = Flight.tell

    def counted(flight: Flight) -> None:
        nonlocal told
        told += 1
        tell(flight)

    monkeypatch.setattr(Flight, "tell", counted)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield CHUNK
            await asyncio.sleep(0)
        for _ in range(500):  # turns of the loop in which nothing comes
            await asyncio.sleep(0)
        yield b"data: [DONE]\n\n"

    async def ask(call: Call) -> Reply:
        return Reply(chunks=chunks())

    async def fly(flight: Flight) -> None:
        await flight.run(ask, 60)

    async def go() -> list[bytes]:
        flights = Flights(hold=100)

        async def read() -> bytes:
            deadline = asyncio.get_running_loop().time() + 30
            body = {"model": "m", "stream": True}
            call = Call(id="", operation="chat", body=body, deadline=deadline, received=0)
            reply, _, _ = await flights.answer(b"key", call, fly)
            assert reply is not None
            return b"".join([chunk async for chunk in reply])

        return await asyncio.gather(*(read() for _ in range(3)))

    assert asyncio.run(go()) == [4 * CHUNK + b"data: [DONE]\n\n"] * 3
    assert told < 50


def test_who_joined_a_call_that_its_own_keys_limit_refused_asks_for_himself() -> None:
    asked: list[str] = []

    async def ask(call: Call) -> Reply:
        asked.append(call.tenant.key)
        await asyncio.sleep(0)
        if call.tenant.key == "poor":
            call.record.decide(Limited(False, "budget of key `poor`"))
            raise RateLimited("The budget of key `poor` is spent.")
        return Reply(body=b'{"choices": []}')

    async def fly(flight: Flight) -> None:
        await flight.run(ask, 60)

    async def go() -> list[bytes | str]:
        flights = Flights(hold=100)

        async def read(key: str) -> bytes | str:
            deadline = asyncio.get_running_loop().time() + 30
            call = Call(
                id="",
                operation="chat",
                body={"model": "m"},
                deadline=deadline,
                received=0,
                tenant=Tenant(key, "o"),
            )
            try:
                reply, _, _ = await flights.answer(b"key", call, fly)
            except RateLimited as error:
                return error.message
            assert reply is not None
            assert reply.body is not None
            return reply.body

        return await asyncio.gather(*(read(key) for key in ("poor", "rich", "poor", "rich", "rich")))

    refused, answered = "The budget of key `poor` is spent.", b'{"choices": []}'
    assert asyncio.run(go()) == [refused, answered, refused, answered, answered]
    assert asked == ["poor", "rich"]

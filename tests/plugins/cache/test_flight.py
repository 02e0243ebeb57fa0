"""Flights: calls under way that several clients share."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pipeline_plugins.cache.flight import Flight, Flights

from pipeline import Call, Reply

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

"""`monitor=log`: what a call's line says, and what it never says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from pipeline_plugins.monitor.log import Log

from pipeline import Call, Edge, Reply, Usage
from pipeline.errors import RateLimited
from pipeline.wire.responses import Stream

BODY: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "a secret"}]}


def lines(answer: Any, *, read: int | None = None, deadline: float = 1e9, **config: Any) -> list[Any]:
    """Log lines of one call that `answer` answers; a stream is read for `read` chunks."""

    async def go() -> None:
        monitor = Log(Log.Config(**config), Edge("monitor", "next", "infer", answer))
        call = Call(id="req_1", operation="chat", body=BODY, deadline=deadline, received=0)
        reply = await monitor(call)
        chunks = aiter(reply)
        for _ in range(read or 1000):
            if await anext(chunks, None) is None:
                break
        await chunks.aclose()  # type: ignore[attr-defined]

    with (
        structlog.testing.capture_logs() as captured,
        contextlib.suppress(RateLimited, RuntimeError, asyncio.CancelledError),
    ):
        asyncio.run(go())
    return captured


async def whole(call: Call) -> Reply:
    return Reply(body=b"{}", usage=Usage(3, 4), model="m")


async def streamed(call: Call) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        stream = Stream("chat", model="m", include_usage=True)
        yield stream.text("a secret")
        yield stream.end(Usage(5, 6))

    return Reply(chunks=chunks())


def test_a_line_has_id_stages_tokens_and_outcome() -> None:
    (line,) = lines(whole)
    assert line["request_id"] == "req_1"
    assert line["outcome"] == "completed"
    assert line["answered_by"] == "m"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 4)
    assert set(line["stages"]) == {"infer"}


def test_a_stream_is_logged_once_at_its_end() -> None:
    (line,) = lines(streamed)
    assert (line["outcome"], line["chunks"]) == ("completed", 2)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 6)


def test_a_stream_that_is_not_read_to_its_end_is_cancelled() -> None:
    (line,) = lines(streamed, read=1)
    assert line["outcome"] == "cancelled"


def test_a_refusal_is_logged_with_its_status() -> None:
    async def refuse(call: Call) -> Reply:
        raise RateLimited("slow down")

    (line,) = lines(refuse)
    assert (line["outcome"], line["status"], line["error"]) == ("refused", 429, "rate_limit_exceeded")


def test_a_stream_that_a_check_refuses_is_refused_in_the_words_of_the_ledger() -> None:
    async def refuse(call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            raise RateLimited("slow down")

        return Reply(chunks=chunks())

    (line,) = lines(refuse)
    assert (line["outcome"], line["error"]) == ("refused", "rate_limit_exceeded")


@pytest.mark.parametrize("answer", [streamed, None])
def test_a_call_that_its_deadline_ends_has_failed(answer: Any) -> None:
    async def cancelled(call: Call) -> Reply:
        raise asyncio.CancelledError

    (line,) = lines(answer or cancelled, read=1, deadline=-1.0)
    assert (line["outcome"], line["error"]) == ("failed", "timeout")


def test_a_bug_is_logged_as_failed() -> None:
    async def fail(call: Call) -> Reply:
        raise RuntimeError("a secret")

    (line,) = lines(fail)
    assert (line["outcome"], line["error"]) == ("failed", "RuntimeError")


def test_success_may_be_left_out() -> None:
    assert lines(whole, success=False) == []


def test_of_calls_that_went_well_a_share_is_logged_and_of_others_all(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([0.05, 0.2])
    monkeypatch.setattr("pipeline_plugins.monitor.log.random", lambda: next(draws))
    assert len(lines(whole, sample=0.1)) == 1
    assert lines(whole, sample=0.1) == []
    assert len(lines(streamed, read=1, sample=0.0)) == 1


@pytest.mark.parametrize("answer", [whole, streamed])
def test_bodies_are_never_logged(answer: Any) -> None:
    assert "secret" not in str(lines(answer))


def test_a_storm_of_refusals_has_a_few_lines_and_one_that_counts_the_rest() -> None:
    async def refused(call: Call) -> Reply:
        raise RateLimited("no")

    async def go() -> None:
        monitor = Log(Log.Config(refused=3), Edge("monitor", "next", "limit", refused))
        structlog.contextvars.bind_contextvars(request_id="req_1")
        for number in range(10):
            with pytest.raises(RateLimited):
                await monitor(Call(id=f"req_{number}", operation="chat", body=BODY, deadline=1e9, received=0))
        await monitor.close()

    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as captured:
        asyncio.run(go())
    assert [line.get("request_id") for line in captured[:3]] == ["req_0", "req_1", "req_2"]
    (rest,) = captured[3:]
    assert (rest["event"], rest["calls"]) == ("more calls were refused", 7)


def test_calls_refused_in_another_second_have_lines_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pipeline_plugins.monitor.log.perf_counter", lambda: clock[0])

    async def refused(call: Call) -> Reply:
        raise RateLimited("no")

    async def go() -> None:
        monitor = Log(Log.Config(refused=1), Edge("monitor", "next", "limit", refused))
        for _ in range(3):
            clock[0] += 1.5
            with pytest.raises(RateLimited):
                await monitor(Call(id="", operation="chat", body=BODY, deadline=1e9, received=0))
        await monitor.close()

    with structlog.testing.capture_logs() as captured:
        asyncio.run(go())
    assert [line["outcome"] for line in captured] == ["refused"] * 3


def test_an_upstreams_refusals_are_refused_calls_and_as_few_lines() -> None:
    async def refused(call: Call) -> Reply:
        return Reply(body=b"{}", status=429)

    async def go() -> None:
        monitor = Log(Log.Config(refused=2), Edge("monitor", "next", "infer", refused))
        for _ in range(5):
            await monitor(Call(id="", operation="chat", body=BODY, deadline=1e9, received=0))
        await monitor.close()

    with structlog.testing.capture_logs() as captured:
        asyncio.run(go())
    assert [(line.get("outcome"), line.get("status"), line.get("calls")) for line in captured] == [
        ("refused", 429, None),
        ("refused", 429, None),
        (None, None, 3),
    ]

"""`infer=openai` against real sockets: what passes through, and what upstreams do wrong."""

import asyncio
import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import time
from functools import partial
from pathlib import Path

import orjson
import pytest
from pipeline_plugins.infer.openai import OpenAI
from pydantic import ValidationError

from pipeline import Call, Reply, Usage
from pipeline.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    UpstreamFailed,
)
from tests.plugins.infer.upstream import COMPLETION, DONE, HELLO, LO, USAGE, Exchange, Upstream, completion

KEY = "sk-very-secret-key"
RAW = b'{ "model" : "m",\t"messages":[{"role":"user","content":"caf\xc3\xa9 \\u00e9"}], "unknown": 1.50 }'
ENVELOPE = b'{"error": {"message":"no","type":"t","param":null,"code":null}}'


def call(raw: bytes | None = None, *, operation: str = "chat", seconds: float = 20, **body) -> Call:
    if raw is None:
        raw = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body})
    deadline = asyncio.get_running_loop().time() + seconds
    return Call(id="req", operation=operation, raw=raw, deadline=deadline, received=0.0)


@contextlib.asynccontextmanager
async def served(answer=completion, **config):
    async with Upstream(answer) as upstream:
        stage = OpenAI(OpenAI.Config(base_url=upstream.url, api_key=KEY, **config))
        await stage.open()
        try:
            yield upstream, stage
        finally:
            await stage.close()


async def content(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply])


async def gather(reply: Reply, got: list[bytes]) -> None:
    async for chunk in reply:
        got.append(chunk)  # noqa: PERF401 — what came before an error is wanted


async def failure(stage: OpenAI, kind=UpstreamFailed, **body):
    """The error of a call, which must not give anything away."""
    with pytest.raises(kind) as caught:
        await content(await stage(call(**body)))
    assert KEY not in str(caught.value.envelope())
    return caught.value


def test_what_its_models_can_do_and_hold_is_as_configured():
    unknown = OpenAI(OpenAI.Config()).models[0]
    assert (unknown.capabilities, unknown.context_window) == (frozenset(), None)
    config = OpenAI.Config(models=["a", "b"], capabilities=["tools", "json_schema"], context_window=8192)
    for model in OpenAI(config).models:
        assert model.capabilities == {"tools", "json_schema", "json_object"}
        assert model.context_window == 8192
    for wrong in ({"capabilities": ["visoin"]}, {"capabilities": []}, {"context_window": 0}):
        with pytest.raises(ValidationError):
            OpenAI.Config(**wrong)


def test_bytes_pass_unchanged_both_ways():
    async def main():
        async with served() as (upstream, stage):
            reply = await stage(call(RAW))
            assert (reply.status, reply.body) == (200, COMPLETION)
            assert reply.headers == [(b"content-type", b"application/json")]
            assert reply.usage == Usage(3, 2)
            seen = upstream.seen[0]
            assert seen.body == RAW
            assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
            assert seen.headers["authorization"] == f"Bearer {KEY}"
            assert seen.headers["host"] == f"127.0.0.1:{upstream.port}"
            assert seen.headers["accept-encoding"] == "identity"

    asyncio.run(main())


def test_a_calls_own_headers_are_sent_with_it_alone():
    async def main():
        async with served() as (upstream, stage):
            await stage(call().with_outbound({"traceparent": "00-a-b-01"}))
            await stage(call())
            assert [seen.headers.get("traceparent") for seen in upstream.seen] == ["00-a-b-01", None]
            with pytest.raises(ValueError, match="line end"):
                await stage(call().with_outbound({"x": "1\r\nx-admin: 1"}))
            assert len(upstream.seen) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("operation", "path", "answers"),
    [
        ("completion", "/completions", "choices"),
        ("embedding", "/embeddings", "data"),
        ("rerank", "/rerank", "results"),
    ],
)
def test_each_operation_has_its_address(operation, path, answers):
    async def main():
        async with served(operations=[operation]) as (upstream, stage):
            upstream.answer = lambda exchange: exchange.answer(b'{"%b":[{}]}' % answers.encode())
            await stage(call(operation=operation))
            assert upstream.seen[0].path == f"/v1{path}"

    asyncio.run(main())


VECTORS = b'{"object":"list","data":[{"index":0,"embedding":[0.5]}]}'


def test_embeddings_have_no_stream():
    async def main():
        async with served() as (upstream, stage):
            upstream.answer = lambda exchange: exchange.answer(VECTORS)
            assert (await stage(call(operation="embedding", stream=True))).body == VECTORS
            assert "stream_options" not in upstream.seen[0].json

    asyncio.run(main())


def test_only_content_type_and_retry_after_come_back():
    async def answer(exchange: Exchange):
        await exchange.answer(ENVELOPE, 429, "set-cookie: a=b", "retry-after: 7", "server: x", "x-secret: y")

    async def main():
        async with served(answer) as (_, stage):
            reply = await stage(call())
            assert (reply.status, reply.body) == (429, ENVELOPE)
            assert sorted(reply.headers) == [(b"content-type", b"application/json"), (b"retry-after", b"7")]

    asyncio.run(main())


def test_connections_are_kept_and_bounded():
    async def answer(exchange: Exchange):
        await asyncio.sleep(0.005)
        await completion(exchange)

    async def main():
        async with served(answer, max_connections=3) as (upstream, stage):
            for _ in range(3):
                await stage(call())
            assert upstream.connections == 1
            replies = await asyncio.gather(*[stage(call()) for _ in range(20)])
            assert [reply.body for reply in replies] == [COMPLETION] * 20
            assert upstream.connections == 3

    asyncio.run(main())


def test_waiting_for_a_connection_ends_with_the_deadline():
    async def main():
        async with served(Exchange.until_gone, max_connections=1) as (upstream, stage):
            blocking = asyncio.create_task(stage(call()))
            await upstream.arrived.wait()
            with pytest.raises(DeadlineExceeded, match="stayed busy"):
                await stage(call(seconds=0.05))
            blocking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await blocking
            upstream.answer = completion
            assert (await stage(call())).status == 200

    asyncio.run(main())


def test_a_configured_model_replaces_the_name_and_nothing_else():
    async def main():
        async with served(model="real/name", models=["nice"]) as (upstream, stage):
            assert [m.id for m in stage.models] == ["real/name"]
            for name in ("nice", "default", "auto", "real/name"):
                assert stage.models[0].serves("chat", name)
                await stage(call(model=name, temperature=0.5))
            assert {e.json["model"] for e in upstream.seen} == {"real/name"}
            assert all(e.json["temperature"] == 0.5 for e in upstream.seen)
            with pytest.raises(ModelNotFound, match="`nice`"):
                await stage(call(model="other"))

    asyncio.run(main())


def test_configured_names_pass_on_and_others_are_refused():
    async def main():
        async with served(models=["a", "b"]) as (upstream, stage):
            assert [m.id for m in stage.models] == ["a", "b"]
            for name in ("b", "default"):
                await stage(call(model=name))
            assert [e.json["model"] for e in upstream.seen] == ["b", "a"]
            with pytest.raises(ModelNotFound, match="`a`, `b`"):
                await stage(call(model="c"))

    asyncio.run(main())


def test_default_is_the_first_model_of_the_upstream_asked_for_once():
    async def main():
        async with served() as (upstream, stage):
            assert [m.id for m in stage.models] == [None]
            raw = b'{"messages":[{"role":"user","content":"hi"}]}'
            await asyncio.gather(*[stage(call(raw)) for _ in range(10)], stage(call(model="auto")))
            assert [e.path for e in upstream.seen].count("/v1/models") == 1
            posts = [e for e in upstream.seen if e.method == "POST"]
            assert {e.json["model"] for e in posts} == {"upstream-model"}

    asyncio.run(main())


def test_a_failed_search_for_the_default_is_shared_and_then_tried_again():
    async def answer(exchange: Exchange):
        await asyncio.sleep(0.01)
        await exchange.answer(b"<html>starting</html>", 503, type="text/html")

    async def main():
        async with served(answer) as (upstream, stage):
            results = await asyncio.gather(
                *[stage(call(model="default")) for _ in range(5)], return_exceptions=True
            )
            assert all(isinstance(r, UpstreamFailed) and "set `model`" in r.message for r in results)
            assert len(upstream.seen) == 1
            upstream.answer = completion
            assert (await stage(call(model="default"))).status == 200

    asyncio.run(main())


def test_the_default_is_looked_up_anew_when_the_upstream_no_longer_has_it():
    async def serves(name: str, exchange: Exchange):
        if exchange.method == "GET":
            await exchange.answer(b'{"data":[{"id":"%b"}]}' % name.encode())
        elif exchange.json["model"] == name:
            await exchange.answer(COMPLETION)
        else:
            await exchange.answer(ENVELOPE, 404)

    async def main():
        async with served(partial(serves, "old")) as (upstream, stage):
            assert (await stage(call(model="default"))).status == 200
            upstream.answer = partial(serves, "new")
            assert (await stage(call(model="default"))).status == 404
            assert (await stage(call(model="default"))).status == 200

    asyncio.run(main())


def test_a_cancelled_search_leaves_it_to_the_next_call():
    async def main():
        async with served(Exchange.until_gone) as (upstream, stage):
            first = asyncio.create_task(stage(call(model="default")))
            second = asyncio.create_task(stage(call(model="default")))
            await upstream.arrived.wait()
            upstream.answer = completion
            first.cancel()
            assert (await second).status == 200

    asyncio.run(main())


def test_an_operation_that_is_not_configured_is_refused():
    async def main():
        async with served(operations=["chat"]) as (upstream, stage):
            with pytest.raises(InvalidRequest, match="does not do `embedding`"):
                await stage(call(operation="embedding"))
            assert upstream.seen == []

    asyncio.run(main())


def test_a_stream_passes_unchanged_when_the_client_asked_for_usage():
    raw = b'{"model":"m", "messages":[], "stream":true, "stream_options":{"include_usage":true}}'

    async def main():
        async with served() as (upstream, stage):
            reply = await stage(call(raw))
            assert await content(reply) == HELLO + LO + USAGE + DONE
            assert upstream.seen[0].body == raw
            assert reply.headers == [(b"content-type", b"text/event-stream")]
            await stage(call())
            assert upstream.connections == 1

    asyncio.run(main())


def test_chunks_arrive_as_they_are_written():
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        await exchange.chunk(HELLO)
        await go_on.wait()
        await exchange.chunk(LO + DONE)
        await exchange.chunk(b"")

    async def main():
        nonlocal go_on
        go_on = asyncio.Event()
        async with served(answer) as (_, stage):
            chunks = aiter(await stage(call(stream=True)))
            assert await anext(chunks) == HELLO
            go_on.set()
            assert await anext(chunks) == LO + DONE
            assert await anext(chunks, None) is None

    go_on: asyncio.Event
    asyncio.run(main())


def test_usage_is_asked_for_and_kept_from_a_client_that_did_not():
    async def main():
        async with served() as (upstream, stage):
            ends = []
            reply = await stage(call(stream=True, stream_options={"include_usage": False, "x": 1}))
            reply.on_end(ends.append, collect=10_000)
            assert await content(reply) == HELLO + LO + DONE
            assert reply.usage == ends[0].usage == Usage(7, 2)
            assert ends[0].assembled()["choices"][0]["message"]["content"] == "hello []"
            assert upstream.seen[0].json["stream_options"] == {"include_usage": True, "x": 1}

    asyncio.run(main())


def test_usage_can_be_left_alone():
    async def main():
        async with served(usage=False) as (upstream, stage):
            await content(await stage(call(stream=True)))
            assert "stream_options" not in upstream.seen[0].json

    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_usage_is_found_however_the_stream_is_cut(size, line_end):
    events = [event.replace(b"\n", line_end) for event in (HELLO, LO, USAGE, b": ping\n\n", DONE)]
    whole = b"".join(events)

    async def answer(exchange: Exchange):
        await exchange.stream(*[whole[i : i + size] for i in range(0, len(whole), size)])

    async def main():
        async with served(answer) as (_, stage):
            reply = await stage(call(stream=True))
            assert await content(reply) == whole.replace(events[2], b"")
            assert reply.usage == Usage(7, 2)

    asyncio.run(main())


def test_a_stream_without_length_that_ends_with_the_connection_is_fine():
    async def answer(exchange: Exchange):
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + HELLO + DONE[:-1])
        exchange.writer.close()

    async def main():
        async with served(answer) as (_, stage):
            assert await content(await stage(call(stream=True))) == HELLO + DONE[:-1]
            assert await content(await stage(call(stream=True))) == HELLO + DONE[:-1]

    asyncio.run(main())


def test_what_an_upstream_does_after_done_does_not_matter():
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        await exchange.chunk(HELLO + DONE)
        exchange.reset()

    async def main():
        async with served(answer) as (_, stage):
            assert await content(await stage(call(stream=True))) == HELLO + DONE

    asyncio.run(main())


async def _reset(exchange: Exchange):
    exchange.reset()


async def _close(exchange: Exchange):
    exchange.writer.close()


async def _end(exchange: Exchange):
    await exchange.chunk(b"")


@pytest.mark.parametrize("break_off", [_reset, _close, _end])
@pytest.mark.parametrize("half", [b"", LO[:20]])
def test_a_broken_stream_raises_after_the_last_whole_event(break_off, half):
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        await exchange.chunk(HELLO + half)
        await asyncio.sleep(0.01)
        await break_off(exchange)

    async def main():
        async with served(answer) as (upstream, stage):
            reply = await stage(call(stream=True))
            ends, got = [], []
            reply.on_end(ends.append)
            with pytest.raises(UpstreamFailed, match=f"127.0.0.1:{upstream.port}"):
                await gather(reply, got)
            assert got == [HELLO]
            assert ends[0].outcome == "failed"

    asyncio.run(main())


def test_an_endless_event_is_not_collected(monkeypatch):
    monkeypatch.setattr("pipeline_plugins.infer.openai_events.EVENT_LIMIT", 100_000)

    async def answer(exchange: Exchange):
        await exchange.start_stream()
        while True:
            await exchange.chunk(b"x" * 10_000)

    async def main():
        async with served(answer) as (upstream, stage):
            assert "without end" in (await failure(stage, stream=True)).message
            async with asyncio.timeout(5):
                await upstream.gone.wait()

    asyncio.run(main())


def test_a_slow_reader_holds_the_upstream_back():
    written = 0

    async def answer(exchange: Exchange):
        nonlocal written
        await exchange.start_stream()
        for _ in range(1000):
            await exchange.chunk(b": " + b"x" * 65_536 + b"\n\n")
            written += 65_536
        await exchange.chunk(HELLO + DONE)
        await exchange.chunk(b"")

    async def main():
        async with served(answer, between_chunks_timeout=0.5) as (_, stage):
            chunks = aiter(await stage(call(stream=True)))
            size = len(await anext(chunks))
            await asyncio.sleep(0.8)
            assert written < 500 * 65_536  # the kernel's buffers take some MB
            async for chunk in chunks:
                size += len(chunk)
            assert size == 1000 * 65_540 + len(HELLO + DONE)

    asyncio.run(main())


def test_a_refusal_of_the_key_is_the_gateways_failure():
    async def answer(exchange: Exchange):
        echoed = exchange.headers["authorization"].encode()
        await exchange.answer(b'{"error":{"message":"bad key %b"}}' % echoed, 401)

    async def main():
        async with served(answer) as (_, stage):
            for body in ({}, {"model": "default"}, {"stream": True}):
                error = await failure(stage, **body)
                assert (error.status, "refused the configured key" in error.message) == (502, True)

    asyncio.run(main())


def test_no_key_is_sent_where_none_is_configured():
    async def answer(exchange: Exchange):
        assert "authorization" not in exchange.headers
        await exchange.answer(ENVELOPE, 401)

    async def main():
        async with Upstream(answer) as upstream:
            stage = OpenAI(OpenAI.Config(base_url=upstream.url, api_key=""))
            assert "set `api_key`" in (await failure(stage)).message
            await stage.close()

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_refusals_in_the_envelope_pass_without_the_key(status, stream):
    async def answer(exchange: Exchange):
        body = ENVELOPE.replace(b'"no"', b'"no %b"' % exchange.headers["authorization"].encode())
        await exchange.answer(body, status, "retry-after: 3")

    async def main():
        async with served(answer) as (_, stage):
            reply = await stage(call(stream=stream))
            assert reply.status == status
            assert reply.body == ENVELOPE.replace(b'"no"', b'"no Bearer ***"')
            assert (b"retry-after", b"3") in reply.headers

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind"), [(404, UpstreamFailed), (500, UpstreamFailed), (429, RateLimited), (503, Overloaded)]
)
def test_foreign_error_pages_become_a_clean_excerpt(status, kind):
    async def answer(exchange: Exchange):
        page = f"<html><h1>Oh\x00 no</h1>\n{exchange.headers['authorization']}{'x' * 5000}</html>"
        await exchange.answer(page.encode(), status, "retry-after: 3", type="text/html")

    async def main():
        async with served(answer) as (_, stage):
            error = await failure(stage, kind)
            assert f"status {status}: Oh no Bearer ***xxx" in error.message
            assert len(error.message) < 350
            assert "<" not in error.message
            assert error.headers == ((b"retry-after", b"3"),)

    asyncio.run(main())


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status):
    async def main():
        async with Upstream() as elsewhere:

            async def answer(exchange: Exchange):
                await exchange.answer(b"", status, f"location: {elsewhere.url}/chat/completions")

            async with served(answer) as (_, stage):
                assert "redirect" in (await failure(stage)).message
            assert elsewhere.seen == []

    asyncio.run(main())


def _with(head: str, body: bytes = b"") -> object:
    async def answer(exchange: Exchange):
        await exchange.raw(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        exchange.writer.close()

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_reset, "without an answer"),
        (_close, "without an answer"),
        (_with("SSH-2.0-OpenSSH_9.2"), "does not speak HTTP"),
        (_with("HTTP/1.1 101 Switching\nupgrade: x\nconnection: upgrade"), "HTTP"),
        (_with("HTTP/1.1 200 OK\ncontent-length: 99\ncontent-type: application/json", b"{"), "in the middle"),
        (_with("HTTP/1.1 200 OK\ntransfer-encoding: chunked", b"5\r\n{"), "in the middle"),
        (_with("HTTP/1.1 200 OK\ntransfer-encoding: chunked\ncontent-length: 2", b"{}"), "HTTP"),
        (_with("HTTP/1.1 200 OK\nx: " + "y" * 100_000), "headers"),
        (_with("HTTP/1.1 200 OK", b"<html>Log in</html>"), "did not answer with JSON: Log in"),
        (_with("HTTP/1.1 200 OK", b'{"status":"ok"}'), "without `choices`: {"),
        (_with("HTTP/1.1 200 OK", b'{"choices":[]}'), "without `choices`"),
        (_with("HTTP/1.1 200 OK\ncontent-encoding: gzip", b"\x1f\x8b"), "compressed"),
        (_with("HTTP/1.1 204 No Content"), "status 204"),
        (_with("HTTP/1.1 200 OK\ncontent-length: 9999999999", b"{"), "bytes"),
        (_with("HTTP/1.1 200 OK", b"{" * 5000), "more than 4096 bytes"),
    ],
)
def test_nonsense_is_an_upstream_failure(answer, said):
    async def main():
        async with served(answer, max_reply_bytes=4096) as (upstream, stage):
            error = await failure(stage)
            assert said in error.message
            assert f"127.0.0.1:{upstream.port}" in error.message
            upstream.answer = completion
            assert (await stage(call())).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("events", [[DONE], [USAGE, DONE], [b": hello\n\n", DONE]])
@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_that_has_no_answer_is_an_upstream_failure(events, usage):
    async def main():
        async with served(lambda exchange: exchange.stream(*events), usage=usage) as (_, stage):
            assert "ended its stream without an answer" in (await failure(stage, stream=True)).message

    asyncio.run(main())


ERROR = b'{"error": {"message": "out of luck with sk-very-secret-key", "code": %d}}'


@pytest.mark.parametrize(
    ("code", "kind"), [(500, UpstreamFailed), (429, RateLimited), (503, Overloaded), (400, InvalidRequest)]
)
@pytest.mark.parametrize("before", [b"", HELLO])
def test_an_error_within_a_stream_is_raised_as_what_it_is(before, code, kind):
    async def answer(exchange: Exchange):
        await exchange.stream(before + b"data: " + ERROR % code + b"\n\n", DONE)

    async def main():
        async with served(answer) as (upstream, stage):
            assert "out of luck with ***" in (await failure(stage, kind, stream=True)).message
            upstream.answer = completion
            assert (await stage(call())).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("body", [ERROR % 500, b'{"error":"out of luck"}', b'{"error":[{}],"choices":[]}'])
def test_an_error_with_status_200_is_no_answer(body):
    async def answer(exchange: Exchange):
        await exchange.answer(body)

    async def main():
        async with served(answer) as (_, stage):
            assert "answered with an error: " in (await failure(stage)).message

    asyncio.run(main())


@pytest.mark.parametrize(
    "event", [HELLO.replace(b"hel", b'{\\"error\\": 1}'), HELLO.replace(b"{", b'{"error":null,', 1)]
)
def test_a_text_of_errors_is_no_error(event):
    async def answer(exchange: Exchange):
        await exchange.stream(event, DONE)

    async def main():
        async with served(answer, usage=False) as (_, stage):
            assert await content(await stage(call(stream=True))) == event + DONE

    asyncio.run(main())


def test_a_stream_that_is_none_is_a_failure():
    async def answer(exchange: Exchange):
        await exchange.answer(COMPLETION)

    async def main():
        async with served(answer) as (_, stage):
            assert "stream" in (await failure(stage, stream=True)).message

    asyncio.run(main())


def test_interim_responses_are_passed_over():
    async def answer(exchange: Exchange):
        await exchange.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await completion(exchange)

    async def main():
        async with served(answer) as (upstream, stage):
            for _ in range(2):
                assert (await stage(call())).body == COMPLETION
            assert upstream.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_nobody_asked_for_reaches_nobody(late):
    poison = b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"poison": 1}'
    sent = asyncio.Semaphore(0)

    async def answer(exchange: Exchange):
        await exchange.answer(COMPLETION)
        if late:
            await asyncio.sleep(0.01)
        await exchange.raw(poison)
        sent.release()

    async def main():
        async with served(answer) as (_, stage):
            for _ in range(5):
                assert (await stage(call())).body == COMPLETION
                await sent.acquire()
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_nothing_listening_is_said_with_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def main():
        stage = OpenAI(OpenAI.Config(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY))
        error = await failure(stage)
        assert f"127.0.0.1:{port} can't be reached: nothing listens there" in error.message
        stage = OpenAI(OpenAI.Config(base_url="http://no-such-host.invalid/v1", api_key=KEY))
        assert "no-such-host.invalid can't be reached" in (await failure(stage)).message

    asyncio.run(main())


def test_each_wait_has_its_bound():
    async def mute(exchange: Exchange):
        await exchange.until_gone()

    async def stalls(exchange: Exchange):
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + HELLO)
        await exchange.until_gone()

    async def main():
        async with served(mute, first_byte_timeout=0.05) as (_, stage):
            for body in ({}, {"stream": True}):
                error = await failure(stage, DeadlineExceeded, **body)
                assert "did not answer within 0.05 s" in error.message
        async with served(stalls, between_chunks_timeout=0.05) as (_, stage):
            for body in ({}, {"stream": True}):
                assert "fell silent" in (await failure(stage, DeadlineExceeded, **body)).message
        async with served(mute) as (upstream, stage):
            for upstream.answer in (mute, stalls):
                for stream in (False, True):
                    with pytest.raises(DeadlineExceeded, match="deadline passed"):
                        await content(await stage(call(seconds=0.05, stream=stream)))

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5


def test_a_connection_that_is_never_accepted_is_bounded():
    async def main():
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            port = full.getsockname()[1]
            stage = OpenAI(OpenAI.Config(base_url=f"http://127.0.0.1:{port}/v1", connect_timeout=0.1))
            assert "did not accept" in (await failure(stage, DeadlineExceeded)).message

    asyncio.run(main())


def test_a_steady_stream_outlives_the_bound_on_silence():
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        for _ in range(20):
            await exchange.chunk(HELLO)
            await asyncio.sleep(0.03)
        await exchange.chunk(DONE)
        await exchange.chunk(b"")

    async def main():
        async with served(answer, first_byte_timeout=0.5, between_chunks_timeout=0.5) as (_, stage):
            assert await content(await stage(call(stream=True))) == HELLO * 20 + DONE

    asyncio.run(main())


def test_a_pooled_connection_that_died_is_replaced_once():
    async def kills_second(exchange: Exchange):
        if exchange.connection == 1:
            exchange.reset()
        else:
            await completion(exchange)

    async def main():
        async with served() as (upstream, stage):
            await stage(call())
            upstream.answer = kills_second
            assert (await stage(call())).body == COMPLETION
            assert [e.connection for e in upstream.seen] == [1, 1, 2]
            upstream.answer = _reset
            await failure(stage)
            assert [e.connection for e in upstream.seen[3:]] == [2, 3]

    asyncio.run(main())


def test_a_request_that_was_being_answered_is_not_repeated():
    async def main():
        async with served() as (upstream, stage):
            await stage(call())
            upstream.answer = _with("HTTP/1.1 200 OK\ncontent-length: 99", b"{")
            await failure(stage)
            assert len(upstream.seen) == 2

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_sees_at_once_that_a_call_is_cancelled(stream):
    async def answer(exchange: Exchange):
        if stream:
            await exchange.start_stream()
            await exchange.chunk(HELLO)
        await exchange.until_gone()
        left.set()

    async def main():
        nonlocal left
        left = asyncio.Event()
        async with served(answer) as (upstream, stage):
            task = asyncio.create_task(_consume(stage, stream))
            await upstream.arrived.wait()
            await asyncio.sleep(0.01)
            task.cancel()
            async with asyncio.timeout(5):
                await left.wait()
            with pytest.raises(asyncio.CancelledError):
                await task

    left: asyncio.Event
    asyncio.run(main())


async def _consume(stage: OpenAI, stream: bool) -> bytes:
    return await content(await stage(call(stream=stream)))


@pytest.mark.parametrize("started", [False, True])
def test_a_closed_stream_hangs_up_even_if_it_was_never_read(started):
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        await exchange.chunk(HELLO)
        await exchange.until_gone()
        left.set()

    async def main():
        nonlocal left
        left = asyncio.Event()
        async with served(answer, max_connections=1) as (upstream, stage):
            reply = await stage(call(stream=True))
            if started:
                await anext(aiter(reply))
            await reply.aclose()
            async with asyncio.timeout(5):
                await left.wait()
            upstream.answer = completion
            assert (await stage(call())).status == 200

    left: asyncio.Event
    asyncio.run(main())


def test_a_reply_that_everyone_forgot_frees_its_connection_at_the_deadline():
    async def answer(exchange: Exchange):
        await exchange.start_stream()
        await exchange.until_gone()
        left.set()

    async def main():
        nonlocal left
        left = asyncio.Event()
        async with served(answer, max_connections=1) as (upstream, stage):
            await stage(call(stream=True, seconds=0.1))
            upstream.answer = completion
            assert (await stage(call())).status == 200
            assert left.is_set()

    left: asyncio.Event
    asyncio.run(main())


def test_the_pool_works_after_a_storm_of_cancellations():
    async def answer(exchange: Exchange):
        await asyncio.sleep(random.uniform(0, 0.01))
        await completion(exchange)

    async def victim(stage: OpenAI) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.015)):
                name = random.choice(["m", "default"])
                reply = await stage(call(stream=random.random() < 0.5, model=name))
                assert (await content(reply)).endswith((DONE, COMPLETION))

    async def main():
        async with served(answer, max_connections=8) as (upstream, stage):
            for _ in range(10):
                await asyncio.gather(*[victim(stage) for _ in range(40)])
            upstream.answer = completion
            async with asyncio.timeout(5):
                replies = await asyncio.gather(*[stage(call()) for _ in range(40)])
            assert [reply.body for reply in replies] == [COMPLETION] * 40
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) <= 10  # this one, and the upstream's for each connection

    asyncio.run(main())


def test_closing_ends_what_is_under_way():
    async def main():
        async with Upstream(Exchange.until_gone) as upstream:
            stage = OpenAI(OpenAI.Config(base_url=upstream.url))
            await stage.open()
            task = asyncio.create_task(stage(call()))
            await upstream.arrived.wait()
            await stage.close()
            with pytest.raises(UpstreamFailed):
                await task

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"base_url": "localhost:8001"}, "must be a URL"),
        ({"base_url": "ftp://x/v1"}, "must be a URL"),
        ({"base_url": f"http://user:{KEY}@x/v1"}, "must not hold credentials"),
        ({"base_url": "http://x/v1?a=b"}, "without `?`"),
        ({"base_url": "http://x/\r\nv1"}, "without spaces"),
        ({"base_url": "http://x:99999/v1"}, "Port out of range"),
        ({"api_key": f"{KEY}\r\nx: y"}, "`api_key`"),
        ({"headers": {"x": f"{KEY}\n"}}, "`headers`"),
        ({"headers": {"x y": KEY}}, "`headers`"),
        ({"headers": {"Content-Length": "1"}}, "connection's own"),
        ({"headers": {"Authorization": KEY}, "api_key": KEY}, "keep one"),
        ({"max_connections": 0}, "max_connections"),
    ],
)
def test_bad_configuration_is_explained_without_its_secrets(config, said):
    with pytest.raises(ValidationError) as caught:
        OpenAI.Config(**config)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


def test_secrets_are_in_no_repr_and_extra_headers_are_sent():
    async def main():
        async with served(headers={"X-Org": "org-secret"}) as (upstream, stage):
            await stage(call())
            assert upstream.seen[0].headers["x-org"] == "org-secret"
            shown = f"{stage.config!r} {stage.config.model_dump()} {stage.config.model_dump_json()} {stage!r}"
            assert KEY not in shown
            assert "org-secret" not in shown

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_verified(tmp_path: Path, monkeypatch):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} "
        f"-out {cert} -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
        timeout=30,
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)

    async def main():
        async with Upstream(tls=tls) as upstream:
            stage = OpenAI(OpenAI.Config(base_url=upstream.url, api_key=KEY))
            await stage.open()
            assert "certificate is not trusted" in (await failure(stage)).message
            await stage.close()
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
            stage = OpenAI(OpenAI.Config(base_url=upstream.url))
            await stage.open()
            assert (await stage(call())).body == COMPLETION
            assert await content(await stage(call(stream=True))) == HELLO + LO + DONE
            await stage.close()

    asyncio.run(main())


def test_tls_to_a_server_without_it_is_said():
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main():
        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        stage = OpenAI(OpenAI.Config(base_url=f"https://127.0.0.1:{port}/v1", api_key=KEY))
        await stage.open()
        assert "TLS failed" in (await failure(stage)).message
        await stage.close()
        server.close()

    asyncio.run(main())

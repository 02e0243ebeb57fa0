"""Traces of a running server, as a collector gets them over HTTP."""

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.processes import Process, pipeline_server
from tests.plugins.infer.upstream import HELLO, Exchange, Upstream, completion
from tests.plugins.trace.collector import Collector, Span, collecting

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

SERVER, MODEL = 2, 3
"""OTLP's numbers of the kinds of spans that servers and clients have."""


@dataclass
class Scene:
    server: Process
    upstream: Upstream
    collector: Collector

    def send(
        self, text: str, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[str, int, str]:
        """One request: its id, status and body."""
        body = json.dumps({"messages": [{"role": "user", "content": text}], "temperature": 0, **fields})
        request = urllib.request.Request(
            f"{self.server.url}/v1/chat/completions",
            body.encode(),
            {"content-type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.headers["x-request-id"], answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.headers["x-request-id"], error.code, error.read().decode()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    started: Future[tuple[Upstream, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with Upstream() as upstream:
            over = asyncio.Event()
            started.set_result((upstream, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    upstream, loop, over = started.result()
    try:
        with (
            collecting() as collector,
            pipeline_server(
                "infer=openai",
                f"infer.base_url={upstream.url}",
                "infer.model=m",
                "infer@embed=none",
                "resilience=standard",
                "resilience.retry.backoff=0.001",
                "trace=otlp",
                f"trace.endpoint={collector.url}",
                "trace.headers={x-collector-key: a-collectors-secret}",
                "trace.flush=0.02",
                "limit.requests_per_minute=1000",
            ) as server,
        ):
            yield Scene(server, upstream, collector)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@pytest.fixture(autouse=True)
def _well(scene: Scene) -> None:
    scene.upstream.answer = completion
    scene.upstream.seen.clear()


def named(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def test_a_call_has_a_span_for_itself_each_stage_and_its_attempt(scene: Scene) -> None:
    id, _, _ = scene.send("whole")
    spans = scene.collector.call(id)
    call = spans[0]
    assert (call.name, call.kind, call.parent, call.failed) == ("chat default", SERVER, "", False)
    above = call
    for stage in ("monitor", "limit", "cache", "route", "infer"):
        span = named(spans, stage)
        assert span.parent == above.id
        assert above.start <= span.start <= span.end <= above.end
        above = span
    attempt = named(spans, "chat m")
    assert (attempt.parent, attempt.kind) == (above.id, MODEL)
    assert len(spans) == 7
    assert call.attributes["gen_ai.operation.name"] == "chat"
    assert call.attributes["gen_ai.request.temperature"] == 0
    assert call.attributes["gen_ai.usage.input_tokens"] == 3
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert call.attributes["gen_ai.response.id"] == "chatcmpl-1"
    assert call.attributes["http.response.status_code"] == 200
    assert attempt.attributes["gen_ai.provider.name"] == "openai"
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 2
    assert scene.collector.resources[0]["service.name"] == "llm-pipeline"
    assert scene.collector.requests[0]["path"] == "/v1/traces"
    assert scene.collector.requests[0]["x-collector-key"] == "a-collectors-secret"


def test_nothing_that_was_asked_or_answered_is_in_spans(scene: Scene) -> None:
    id, _, body = scene.send("a very private question")
    assert "café" in body
    said = str([span.attributes for span in scene.collector.call(id)])
    assert "private" not in said
    assert "café" not in said


def test_a_trace_is_gone_on_with_and_passed_to_the_upstream(scene: Scene) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "vendor=1"}
    id, _, _ = scene.send("context", headers=headers)
    spans = scene.collector.call(id)
    assert (spans[0].trace, spans[0].parent) == (TRACE, CLIENT)
    (seen,) = scene.upstream.seen
    assert seen.headers["traceparent"] == f"00-{TRACE}-{named(spans, 'chat m').id}-01"
    assert seen.headers["tracestate"] == "vendor=1"


def test_a_client_that_does_not_keep_its_trace_has_no_spans_unless_the_call_fails(scene: Scene) -> None:
    trace = "1af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-{CLIENT}-00"}
    scene.send("not kept", headers=headers)
    assert scene.upstream.seen[0].headers["traceparent"].startswith(f"00-{trace}-")
    assert scene.upstream.seen[0].headers["traceparent"].endswith("-00")
    later, _, _ = scene.send("kept")
    scene.collector.call(later)
    assert not [span for span in scene.collector.spans if span.trace == trace]

    async def breaks(exchange: Exchange) -> None:
        await exchange.answer(b"oops", 500, type="text/plain")

    scene.upstream.answer = breaks
    failed, status, _ = scene.send("fails", headers=headers)
    assert status == 502
    call = scene.collector.call(failed)[0]
    assert (call.trace, call.failed, call.attributes["error.type"]) == (trace, True, "upstream_failed")


def test_a_cache_hit_has_no_attempt(scene: Scene) -> None:
    scene.send("again and again")
    id, _, _ = scene.send("again and again")
    spans = scene.collector.call(id)
    assert [span.name for span in spans] == ["chat default", "monitor", "limit", "cache"]
    assert spans[0].attributes["pipeline.cache.result"] == "hit"


def test_each_retry_is_an_attempt_of_its_own_that_the_upstream_can_tell_apart(scene: Scene) -> None:
    async def fails_once(exchange: Exchange) -> None:
        if len(scene.upstream.seen) == 1:
            await exchange.answer(b"oops", 500, type="text/plain")
        else:
            await completion(exchange)

    scene.upstream.answer = fails_once
    id, status, _ = scene.send("retried")
    assert status == 200
    spans = scene.collector.call(id)
    attempts = sorted((span for span in spans if span.kind == MODEL), key=lambda span: span.start)
    assert [span.failed for span in attempts] == [True, False]
    assert attempts[0].attributes["error.type"] == "upstream_failed"
    assert {span.parent for span in attempts} == {named(spans, "infer").id}
    told = [seen.headers["traceparent"].split("-")[2] for seen in scene.upstream.seen]
    assert told == [span.id for span in attempts]
    assert not spans[0].failed


def test_a_stream_lasts_to_its_end_and_tells_of_its_first_chunk(scene: Scene) -> None:
    id, _, body = scene.send("streamed", stream=True)
    assert body.endswith("data: [DONE]\n\n")
    spans = scene.collector.call(id)
    call, attempt = spans[0], next(span for span in spans if span.kind == MODEL)
    assert call.attributes["gen_ai.request.stream"] is True
    assert call.attributes["gen_ai.usage.output_tokens"] == 2
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert call.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert attempt.start < attempt.events["gen_ai.first_chunk"] < attempt.end
    for span in spans:
        assert span.start <= span.end <= call.end
    assert named(spans, "infer").end >= attempt.end


def test_a_client_that_leaves_has_a_cancelled_call_that_is_no_failure(scene: Scene) -> None:
    async def never_ends(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(HELLO)
        await exchange.until_gone()

    scene.upstream.answer = never_ends
    body = json.dumps({"messages": [{"role": "user", "content": "left"}], "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", scene.server.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        client.settimeout(30)
        answer = b""
        while b"hel" not in answer:
            answer += client.recv(65536)
    id = answer.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    spans = scene.collector.call(id)
    assert spans[0].attributes["pipeline.outcome"] == "cancelled"
    assert not any(span.failed for span in spans)


def test_a_refusal_is_told_and_is_no_failure(scene: Scene) -> None:
    id, status, _ = scene.send("refused", model="unknown")
    assert status == 404
    spans = scene.collector.call(id)
    assert spans[0].attributes["error.type"] == "model_not_found"
    assert spans[0].attributes["http.response.status_code"] == 404
    assert not any(span.failed for span in spans)


def test_a_key_in_place_of_a_models_name_is_masked(scene: Scene) -> None:
    id, _, _ = scene.send("refused", model="sk-0a1b2c3d4e5f-" + "AbCdEfGhIjKlMnOp")
    call = scene.collector.call(id)[0]
    assert call.name == "chat sk-***"
    assert "AbCdEf" not in str(call.attributes)

"""A collector of OTLP over HTTP, which keeps what it is sent in memory."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any] = field(compare=False)
    events: dict[str, int] = field(compare=False)


@dataclass
class Collector:
    """Everything that was exported; `status` is what exports are answered with."""

    status: int = 200
    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.requests.append({"path": path, **headers})
        if self.status != 200:
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(plain(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans.extend(map(read, scope.spans))

    def call(self, request: str) -> list[Span]:
        """All spans of a call's trace, its own first, once they are there."""
        roots: list[Span] = []

        def arrived() -> bool:
            roots[:] = [s for s in self.spans if s.attributes.get("pipeline.request.id") == request]
            return bool(roots)

        until(arrived)
        return [*roots, *(s for s in self.spans if s.trace == roots[0].trace and s not in roots)]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def read(span: Any) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        plain(span.attributes),
        {event.name: event.time_unix_nano for event in span.events},
    )


def plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [value_of(one) for one in found.values] if kind == "array_value" else found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

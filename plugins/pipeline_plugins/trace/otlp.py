"""`trace=otlp`: calls as OpenTelemetry spans, sent over HTTP to whatever collects them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from pipeline import hookimpl
from pipeline.hookspecs import Metric
from pipeline.stage import Layer, layered
from pipeline_plugins.trace.content import KEPT
from pipeline_plugins.trace.context import Ended
from pipeline_plugins.trace.exporter import Batches
from pipeline_plugins.trace.watch import Watch

if TYPE_CHECKING:
    from pipeline_plugins.trace.spans import Spans

PATH = "/v1/traces"

CLOSING = 5.0
"""Seconds for the last spans to be sent when the server stops."""


class OTLP:
    """Sends a span for each call, stage and attempt, and passes the trace on to models' servers.

    A request's `traceparent` makes its call a part of its client's trace, which is kept if
    its client keeps it.
    """

    class Config(BaseModel):
        """Where spans go, and of which calls."""

        model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

        endpoint: str = Field(
            "http://127.0.0.1:4318",
            description="Collector's base URL, to which `/v1/traces` is added unless it ends so.",
        )
        headers: dict[str, SecretStr] = Field(
            default_factory=dict, max_length=64, description="Headers of every export, say a key."
        )
        service: str = Field("llm-pipeline", min_length=1, max_length=256, description="`service.name`.")
        sample: float = Field(1.0, ge=0, le=1, description="Share of traces begun here that are kept.")
        errors: bool = Field(True, description="Keep calls that failed even if their trace is not kept.")
        propagate: bool = Field(True, description="Send `traceparent` to the servers of models.")
        content: bool = Field(
            False, description="Put what was asked and answered into spans. Mind who reads them."
        )
        flush: float = Field(2.0, ge=0.01, le=60, description="Seconds for which spans are gathered.")
        queue: int = Field(2048, ge=1, le=1_000_000, description="Calls that may wait; more are dropped.")
        timeout: Annotated[float, Field(gt=0, le=300)] = Field(
            10.0, description="Seconds for an export, retries included."
        )

        @field_validator("endpoint")
        @classmethod
        def _is_url(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be a URL such as http://127.0.0.1:4318")
            if parts.username is not None or parts.password is not None:
                raise ValueError("must not hold credentials; put the key in `headers`")
            return value.rstrip("/")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.batches: Batches[Ended] = Batches(self._send, seconds=config.flush, bound=config.queue)
        self.watch = Watch(
            self.batches.put,
            ratio=config.sample,
            errors=config.errors,
            propagate=config.propagate,
            collect=KEPT if config.content else 0,
        )
        self._spans: Spans
        self._exporter: Any = None
        self._plugins: dict[str, str] = {}

    async def open(self) -> None:
        """Get the exporter ready; it connects when there is something to send."""
        await asyncio.to_thread(self._prepare)
        self.batches.open()

    async def close(self) -> None:
        """Send what waits."""
        await asyncio.to_thread(self.batches.close, CLOSING)
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.shutdown)

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Follow calls at the entry, and attempts at each model."""
        kind, _, name = plugin.partition(".")
        self._plugins[stage] = plugin
        attempt = self.watch.attempt(stage, name) if kind == "infer" else None
        return layered(self.watch.entry, attempt) if entry else attempt

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How the sending goes."""
        batches = self.batches
        for name, about, value in (
            ("sent", "Calls whose spans were sent.", batches.sent),
            ("dropped", "Calls whose spans found no room to wait.", batches.dropped),
            ("failed", "Calls whose spans nobody took.", batches.failed),
        ):
            yield Metric(f"pipeline_trace_{name}_total", about, "counter", {(): value})
        yield Metric("pipeline_trace_waiting", "Calls whose spans wait.", "gauge", {(): batches.waiting})

    def _prepare(self) -> None:
        import logging

        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
        except ImportError:
            raise ImportError("traces need OpenTelemetry's SDK: pip install 'llm-pipeline[trace]'") from None

        from pipeline_plugins.trace.spans import Spans

        # It says the same for every batch; `Batches` says it once.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL + 1)
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", self.config.service),
                "service.version": version("llm-pipeline"),
                "service.instance.id": str(uuid.uuid4()),
            }
        )
        self._spans = Spans(resource, self._plugins, content=self.config.content)
        endpoint = self.config.endpoint
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint if endpoint.endswith(PATH) else endpoint + PATH,
            headers={name: value.get_secret_value() for name, value in self.config.headers.items()},
            timeout=self.config.timeout,
        )

    def _send(self, batch: Sequence[Ended]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = [span for ended in batch for span in self._spans.of(ended)]
        return bool(self._exporter.export(spans) is SpanExportResult.SUCCESS)

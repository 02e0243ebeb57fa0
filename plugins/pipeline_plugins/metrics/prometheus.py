"""`metrics=prometheus`: the numbers of all stages at `/metrics`, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.graph import Graph
from pipeline.hookspecs import Metric, Route, hookimpl

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Prometheus:
    """Answers `GET /metrics` with what stages and extensions count."""

    class Config(BaseModel):
        """Who may read it."""

        model_config = ConfigDict(extra="forbid")

        public: bool = Field(False, description="Serve it without a key.")

    def __init__(self, config: Config) -> None:
        self.config = config

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """The page's address."""

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            await self._serve(graph, scope, send)

        return (Route("/metrics", serve, public=self.config.public),)

    async def _serve(self, graph: Graph, scope: Any, send: Any) -> None:
        found = graph.plugins.hook.pipeline_metrics()
        metrics = merge(metric for metrics in found for metric in metrics)
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        openmetrics = b"application/openmetrics-text" in accept
        body = render(metrics, openmetrics=openmetrics).encode()
        headers = [
            (b"content-type", (OPENMETRICS if openmetrics else TEXT).encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def merge(metrics: Iterable[Metric]) -> list[Metric]:
    """One metric for each name: stages of a kind report the same ones, with other samples."""
    merged: dict[str, Metric] = {}
    for metric in metrics:
        known = merged.get(metric.name)
        if known is None:
            merged[metric.name] = metric
        else:
            samples = {**known.samples, **metric.samples}
            merged[metric.name] = Metric(known.name, known.about, known.type, samples, known.labels)
    return [merged[name] for name in sorted(merged)]


def render(metrics: Iterable[Metric], *, openmetrics: bool = False) -> str:
    """The exposition format: https://prometheus.io/docs/instrumenting/exposition_formats/.

    OpenMetrics names a counter without `_total` in its head and with it in its samples;
    the older format has `_total` in both.
    """
    lines = []
    for metric in metrics:
        name = metric.name.removesuffix("_total") if metric.type == "counter" else metric.name
        sample = f"{name}_total" if metric.type == "counter" else name
        head = name if openmetrics else sample
        lines.append(f"# HELP {head} {_escape(metric.about, quotes=openmetrics)}")
        lines.append(f"# TYPE {head} {metric.type}")
        for values, number in metric.samples.items():
            pairs = zip(metric.labels, values, strict=True)
            labels = ",".join(f'{label}="{_escape(value)}"' for label, value in pairs)
            lines.append(
                f"{sample}{{{labels}}} {_number(number)}" if labels else f"{sample} {_number(number)}"
            )
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _escape(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))

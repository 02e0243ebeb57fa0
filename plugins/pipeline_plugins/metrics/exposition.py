"""Numbers as Prometheus and OpenMetrics read them.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from pipeline_plugins.metrics.family import Family, Sampled, Snapshot

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render(snapshot: Snapshot, *, openmetrics: bool = False) -> str:
    """The page, families in the order of their names.

    OpenMetrics names a counter without `_total` in its head and with it in its samples;
    the older format has `_total` in both.
    """
    lines: list[str] = []
    for name in sorted(snapshot):
        sampled = snapshot[name]
        family = sampled.family
        base = family.name.removesuffix("_total") if family.type == "counter" else family.name
        head = f"{base}_total" if family.type == "counter" and not openmetrics else base
        lines.append(f"# HELP {head} {_escape(family.about, quotes=openmetrics)}")
        lines.append(f"# TYPE {head} {family.type}")
        lines.extend(_samples(base, sampled))
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _samples(base: str, sampled: Sampled) -> Iterator[str]:
    family = sampled.family
    for values, numbers in sampled.samples.items():
        labels = list(_labels(family, values))
        if family.type == "histogram":
            yield from _histogram(base, family, labels, numbers)
        else:
            name = f"{base}_total" if family.type == "counter" else base
            yield f"{name}{_braced(labels)} {_number(numbers[0])}"


def _histogram(base: str, family: Family, labels: list[str], numbers: list[float]) -> Iterator[str]:
    counts = list(accumulate(numbers[1:]))
    for bound, count in zip((*map(repr, family.bounds), "+Inf"), counts, strict=True):
        within = [*labels, f'le="{bound}"']
        yield f"{base}_bucket{_braced(within)} {_number(count)}"
    yield f"{base}_sum{_braced(labels)} {_number(numbers[0])}"
    yield f"{base}_count{_braced(labels)} {_number(counts[-1])}"


def _labels(family: Family, values: Iterable[str]) -> Iterator[str]:
    """An empty label is one that is not there."""
    for label, value in zip(family.labels, values, strict=True):
        if value:
            yield f'{label}="{_escape(value)}"'


def _braced(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _escape(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))

"""What an operator watches: the state of each target, and what was done about its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Literal

from pipeline.hookspecs import Across, Metric
from pipeline_plugins.resilience.target import Target

STATES = {"closed": 0, "half_open": 1, "open": 2}

ACROSS: Mapping[str, Across] = {"ready": "min", "breaker_state": "max", "ejected": "max"}
"""States of which the worst is shown, where workers differ."""

Read = Callable[[Target], float]

METRICS: tuple[tuple[str, str, Literal["counter", "gauge"], Read], ...] = (
    ("ready", "Whether routers may send calls to a target.", "gauge", Target.ready),
    (
        "breaker_state",
        "A target's circuit breaker: 0 closed, 1 half open, 2 open.",
        "gauge",
        lambda t: STATES[t.breaker.state] if t.breaker else 0,
    ),
    (
        "breaker_opened_total",
        "Times that a target's circuit breaker opened.",
        "counter",
        lambda t: t.breaker.opened_times if t.breaker else 0,
    ),
    (
        "ejected",
        "Whether a target is ejected as an outlier.",
        "gauge",
        lambda t: t.standing is not None and t.standing.ejected(monotonic()),
    ),
    (
        "ejections_total",
        "Times that a target was ejected.",
        "counter",
        lambda t: t.standing.ejected_times if t.standing else 0,
    ),
    ("concurrency_limit", "Calls that a target gets at a time at most.", "gauge", lambda t: t.limit.limit),
    ("in_flight", "Calls that a target is answering.", "gauge", lambda t: t.limit.in_flight),
    ("shed_total", "Calls refused beyond a target's limit.", "counter", lambda t: t.limit.shed),
    ("answers_total", "Attempts that a target answered.", "counter", lambda t: t.answers),
    ("failures_total", "Attempts at which a target failed.", "counter", lambda t: t.failures),
    ("retries_total", "Further attempts at a target.", "counter", lambda t: t.retries),
    (
        "retries_denied_total",
        "Retries that the retry budget did not allow.",
        "counter",
        lambda t: t.retries_denied,
    ),
    ("hedges_total", "Second attempts beside a slow one.", "counter", lambda t: t.hedges),
    ("hedges_won_total", "Second attempts that answered first.", "counter", lambda t: t.hedges_won),
)


def metrics_of(targets: Mapping[str, Target]) -> Iterable[Metric]:
    """Every metric, with one sample for each target."""
    for name, about, type, read in METRICS:
        samples: dict[tuple[str, ...], float] = {
            (target,): float(read(state)) for target, state in targets.items()
        }
        across = ACROSS.get(name, "sum")
        yield Metric(f"pipeline_target_{name}", about, type, samples, ("target",), across)

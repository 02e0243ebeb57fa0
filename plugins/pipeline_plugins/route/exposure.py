"""Taking part in an experiment: which targets it compares, how it is noted, how a call came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from pipeline import Call, Edges, End, Reply
from pipeline.kinds import Exposed, Validated
from pipeline.price import Spent
from pipeline_plugins.experiment.metric import Seen
from pipeline_plugins.outcome import of_end, told
from pipeline_plugins.route.unit import serving_names

HEADER = "x-pipeline-experiment"


class Variants:
    """The targets that an experiment compares, by operation.

    Those with a weight that have a model for the operation; none where only one target has.
    """

    def __init__(self, edges: Edges, weights: Mapping[str, float], control: str | None) -> None:
        self._edges = edges
        self._weights = weights
        self._control = control
        self._known: dict[str, frozenset[str]] = {}

    def of(self, operation: str) -> frozenset[str]:
        """Their names."""
        variants = self._known.get(operation)
        if variants is None:
            serving = serving_names(self._edges, operation)
            weighty = [name for name in serving if self._weights.get(name, 1.0) > 0]
            variants = frozenset(weighty if len(serving) > 1 else ())
            self._known[operation] = variants
        return variants

    def control(self, operation: str) -> str:
        """The one that an operation's others are compared with."""
        variants = self.of(operation)
        if self._control in variants:
            return str(self._control)
        return next(name for name in self._edges if name in variants)


def expose(call: Call, experiment: str, variant: str) -> Exposed:
    """Note in a call's record, and for its client, that it takes part."""
    exposed = call.record.growing(Exposed)
    exposed.variants[experiment] = variant
    call.record.headers[HEADER] = ", ".join(f"{name}={one}" for name, one in exposed.variants.items())
    return exposed


def when_over(
    experiment: str,
    call: Call,
    reply: Reply | None,
    error: BaseException | None,
    observe: Callable[[Call, Exposed, Seen], None],
) -> None:
    """Have `observe` told how a call came out, once it is over; nothing if it took no part."""
    exposed = call.record.decision(Exposed)
    if exposed is None or experiment not in exposed.variants:
        return
    if reply is None:
        if error is not None:
            outcome, status, _ = told(error, call)
            observe(call, exposed, _seen(call, outcome, status, perf_counter()))
        return
    status = reply.status
    reply.on_end(
        lambda end: observe(call, exposed, _seen(call, of_end(end, status, call)[0], status, end.ended, end))
    )


def _seen(call: Call, outcome: str, status: int, ended: float, end: End | None = None) -> Seen:
    valid, spent = call.record.decision(Validated), call.record.decision(Spent)
    first = end.first_chunk if end is not None else None
    usage = end.usage if end is not None else None
    return Seen(
        outcome,
        (ended - call.received) * 1000,
        (first - call.received) * 1000 if first is not None else None,
        valid.passed if valid is not None else None,
        spent.usd if spent is not None else None,
        usage.completion_tokens if usage is not None else None,
        limited=status == 429,
    )

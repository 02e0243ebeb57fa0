"""Counting calls and attempts as they end."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from operator import sub
from time import perf_counter

from pipeline import Call, End, Reply, Usage
from pipeline.call import Step
from pipeline.errors import APIError
from pipeline.kinds import Validated
from pipeline.price import Spent
from pipeline.stage import Layer, StageCall
from pipeline_plugins.metrics import families as f
from pipeline_plugins.metrics.cells import Cells
from pipeline_plugins.metrics.family import Family
from pipeline_plugins.metrics.labels import Names
from pipeline_plugins.outcome import of_end, of_status, told

GAPS = 8192
"""Chunks of a stream whose times are kept; those between later ones are not counted."""


@dataclass(slots=True)
class Series:
    """Where the numbers of one operation and model are, at the entry or at a target.

    `first`, `pace`, `gaps` and `tokens` are of streams and answers; `ends` has, by error type (empty
    for none) and outcome, where the duration and the counter of calls are.
    """

    labels: tuple[str, ...]
    first: int = 0
    pace: int = 0
    gaps: int = 0
    in_flight: int = 0
    tokens: tuple[int, int, int] = (0, 0, 0)
    ends: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Counted:
    """How many of a call's charges were counted."""

    charges: int = 0


class Watch:
    """The layers that count."""

    def __init__(self, names: Names) -> None:
        self.cells = Cells()
        self.names = names
        self._routers: set[str] = set()
        self._calls: dict[tuple[str, str], Series] = {}
        self._attempts: dict[tuple[str, str, str], Series] = {}
        self._stages: dict[str, int] = {}

    def begin(self, cells: Cells) -> None:
        """Count into these from now on, under the names that are known now."""
        self.cells = cells
        self._calls.clear()
        self._attempts.clear()
        self._stages.clear()

    def router(self, stage: str) -> None:
        """Count where this stage sends calls."""
        self._routers.add(stage)

    def entry(self, inner: StageCall) -> StageCall:
        """What goes around the graph's entry."""

        async def counted(call: Call) -> Reply:
            series = self._calls.get((call.operation, call.model)) or self._of_call(call)
            self.cells.values[series.in_flight] += 1
            try:
                reply = await inner(call)
            except BaseException as error:
                outcome, _, code = told(error, call)
                self._ended(series, call, outcome, code, perf_counter())
                raise
            if reply.body is not None:
                self._ended(series, call, of_status(reply.status), _code(reply), perf_counter())
                return reply

            def ended(end: End) -> None:
                outcome, code = of_end(end, reply.status, call)
                if outcome == "completed" and end.first_chunk is not None:
                    self._observe(series.first, f.FIRST_TOKEN, end.first_chunk - call.received)
                    if end.usage is not None and end.usage.completion_tokens > 1:
                        pace = (end.ended - end.first_chunk) / (end.usage.completion_tokens - 1)
                        self._observe(series.pace, f.PER_TOKEN, pace)
                self._ended(series, call, outcome, code, end.ended)

            reply.on_end(ended)
            return reply

        return counted

    def refused(self, operation: str, error: APIError) -> None:
        """Count a request that never became a call."""
        type = self.names.error(error.error_code or error.type)
        self._add(f.REFUSED, (f.OPERATIONS.get(operation, operation), type), 1)

    def attempt(self, stage: str, provider: str) -> Layer:
        """What goes around a model."""

        def around(inner: StageCall) -> StageCall:
            async def counted(call: Call) -> Reply:
                series = self._attempts.get((stage, call.operation, call.model)) or self._of_attempt(
                    stage, provider, call
                )
                started = perf_counter()
                try:
                    reply = await inner(call)
                except BaseException as error:
                    outcome, _, code = told(error, call)
                    self._attempted(series, call, outcome, code, perf_counter() - started)
                    raise
                if reply.body is not None:
                    seconds = perf_counter() - started
                    self._attempted(series, call, of_status(reply.status), _code(reply), seconds)
                    if reply.status < 400 and (usage := reply.usage) is not None:
                        self._used(series, usage, usage.completion_tokens, seconds)
                    return reply

                def ended(end: End) -> None:
                    outcome, code = of_end(end, reply.status, call)
                    self._attempted(series, call, outcome, code, end.ended - started)
                    if end.first_chunk is None:
                        return
                    self._observe(series.first, f.DURATION, end.first_chunk - started)
                    self._spaced(series.gaps, end)
                    if end.usage is not None:
                        after = end.usage.completion_tokens - 1
                        self._used(series, end.usage, after, end.ended - end.first_chunk)

                reply.on_end(ended, times=GAPS)
                return reply

            return counted

        return around

    def _spaced(self, at: int, end: End) -> None:
        """Count the times between chunks: sorted, so that each bucket is found once and not each time."""
        times = end.times
        if times is None or len(times) < 2:
            return
        gaps = sorted(map(sub, times[1:], times))
        values, below = self.cells.values, 0
        values[at] += times[-1] - times[0]
        for place, bound in enumerate(f.DURATION, at + 1):
            upto = bisect_right(gaps, bound, below)
            if upto > below:
                values[place] += upto - below
                below = upto
                if below == len(gaps):
                    return
        values[at + 1 + len(f.DURATION)] += len(gaps) - below

    def _observe(self, at: int, bounds: tuple[float, ...], value: float) -> None:
        values = self.cells.values
        values[at] += value
        values[at + 1 + bisect_left(bounds, value)] += 1

    def _ended(self, series: Series, call: Call, outcome: str, code: str | None, ended: float) -> None:
        values = self.cells.values
        values[series.in_flight] -= 1
        error = "" if outcome == "completed" else code or outcome
        at = series.ends.get((error, outcome))
        if at is None:
            at = self._end(series, f.REQUEST_DURATION, error, outcome, counter=f.CALLS)
        self._observe(at[0], f.DURATION, ended - call.received)
        values[at[1]] += 1
        record = call.record
        self._passed(record.steps, ended)
        found = record.decisions
        if (valid := found.get(Validated)) is not None:
            self._add(f.VALIDATED, ("passed" if valid.passed else "failed",), 1)
            self._add(f.VALIDATE_RETRIES, (), valid.retries)
        self._charged(call)
        spent: Spent | None = found.get(Spent)
        if spent is not None:
            for by, usd in spent.saved.items():
                self._add(f.SAVED, (by,), usd)

    def _passed(self, steps: list[Step], ended: float) -> None:
        """Count what each stage took itself: a passage's time, less that of those it made."""
        own: dict[str, float] = {}
        for step in steps:
            seconds = (step.ended or ended) - step.started
            via = step.via
            stage, source = via.target, via.source
            own[stage] = own.get(stage, 0.0) + seconds
            if source:
                own[source] = own.get(source, 0.0) - seconds
                if source in self._routers:
                    self._add(f.ROUTED, (source, stage), 1)
        for stage, seconds in own.items():
            at = self._stages.get(stage)
            if at is None:
                at = self._stages[stage] = self.cells.series(f.STAGE_DURATION, (stage,))
            # Passages at the same time may be longer together than the one that they are part of.
            self._observe(at, f.STAGE, seconds if seconds > 0 else 0.0)

    def _attempted(self, series: Series, call: Call, outcome: str, code: str | None, seconds: float) -> None:
        self._charged(call)
        error = "" if outcome == "completed" else code or outcome
        at = series.ends.get((error, outcome)) or self._end(series, f.OPERATION_DURATION, error, outcome)
        self._observe(at[0], f.DURATION, seconds)

    def _charged(self, call: Call) -> None:
        """Count charges once: as attempts end, which may be after their call, and as calls do."""
        record = call.record.whole
        spent: Spent | None = record.decisions.get(Spent)
        if spent is not None:
            counted = record.growing(Counted)
            for charge in spent.charges[counted.charges :]:
                self._add(f.SPENT, (self.names.model(charge.model), charge.stage), charge.usd)
            counted.charges = len(spent.charges)

    def _used(self, series: Series, usage: Usage, timed: int, seconds: float) -> None:
        """Count tokens, and the pace of those that were `timed`."""
        prompt, completion, cached = series.tokens
        self._observe(prompt, f.TOKENS, usage.prompt_tokens)
        self._observe(completion, f.TOKENS, usage.completion_tokens)
        if usage.cached_tokens:
            self.cells.values[cached] += usage.cached_tokens
        if timed > 0 and seconds > 0:
            self._observe(series.pace, f.SPEED, timed / seconds)

    def _add(self, family: Family, labels: tuple[str, ...], value: float) -> None:
        cells = self.cells
        cells.values[cells.series(family, labels)] += value

    def _of_call(self, call: Call) -> Series:
        """The series of a call's operation and model; those of unknown models are one."""
        name = self.names.model(call.model)
        key = (call.operation, name)
        series = self._calls.get(key)
        if series is None:
            cells, operation = self.cells, f.OPERATIONS.get(call.operation, call.operation)
            labels = (operation, name)
            self._calls[key] = series = Series(
                labels,
                cells.series(f.TIME_TO_FIRST_TOKEN, labels),
                cells.series(f.TIME_PER_OUTPUT_TOKEN, labels),
                in_flight=cells.series(f.IN_FLIGHT, (operation,)),
            )
        return series

    def _of_attempt(self, stage: str, provider: str, call: Call) -> Series:
        asked = self.names.model(call.model)
        name = self.names.of_stage(stage) or asked
        key = (stage, call.operation, asked)
        series = self._attempts.get(key)
        if series is None:
            cells = self.cells
            labels = (f.OPERATIONS.get(call.operation, call.operation), provider, name, stage)
            self._attempts[key] = series = Series(
                labels,
                cells.series(f.TIME_TO_FIRST_CHUNK, labels),
                cells.series(f.TOKENS_PER_SECOND, labels),
                cells.series(f.TIME_PER_CHUNK, labels),
                tokens=(
                    cells.series(f.TOKEN_USAGE, (*labels, "input")),
                    cells.series(f.TOKEN_USAGE, (*labels, "output")),
                    cells.series(f.CACHED_TOKENS, labels),
                ),
            )
        return series

    def _end(
        self, series: Series, family: Family, error: str, outcome: str, counter: Family | None = None
    ) -> tuple[int, int]:
        named = self.names.error(error) if error else ""
        at = self.cells.series(family, (*series.labels, named))
        count = self.cells.series(counter, (*series.labels, outcome)) if counter is not None else 0
        if named == error:
            series.ends[error, outcome] = (at, count)
        return at, count


def _code(reply: Reply) -> str | None:
    return str(reply.status) if reply.status >= 400 else None

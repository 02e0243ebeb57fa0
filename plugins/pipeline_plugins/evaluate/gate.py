"""`--fail-if`: conditions on a run's metrics, or on their difference from a baseline's, for CI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.problems import did_you_mean
from pipeline_plugins.evaluate.metric import MEASURES
from pipeline_plugins.evaluate.prepare import Prepared
from pipeline_plugins.evaluate.run import Done, Taken, read_manifest, read_metrics

GRAMMAR = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w.@-]*?)(?:\.(?P<figure>mean|p50|p95|low|high))?\s*"
    r"(?P<sign>[<>])\s*(?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)\s*"
)
EXPECTED = "expected METRIC<NUMBER or METRIC>NUMBER, say `quality<-0.02`, `cost_usd>10%` or `latency_s.p95>2`"


class ConditionError(ValueError):
    """A condition can't be read, or not be held to these runs."""


@dataclass(slots=True, frozen=True)
class Condition:
    """A figure of a metric that must not lie beyond a bound; `percent` is of the baseline's."""

    text: str
    metric: str
    figure: str
    sign: Literal["<", ">"]
    bound: float
    percent: bool


@dataclass(slots=True, frozen=True)
class Verdict:
    """Whether a condition holds, which is a failure, and the figures in words."""

    failed: bool
    text: str


def parse(text: str) -> Condition:
    """Read a condition. Raises `ConditionError`."""
    found = GRAMMAR.fullmatch(text)
    if found is None:
        raise ConditionError(f"`{text}` is no condition: {EXPECTED}.")
    sign: Literal["<", ">"] = "<" if found["sign"] == "<" else ">"
    percent = bool(found["percent"])
    bound = float(found["number"]) / (100 if percent else 1)
    return Condition(text.strip(), found["metric"], found["figure"] or "mean", sign, bound, percent)


class Gate:
    """Conditions on a run: on its figures, or with a `baseline` on what they differ by.

    Raises `ConditionError` before the run for what can't be held to it: a metric that nothing measures,
    a baseline of other data, a percentage of 0.
    """

    def __init__(self, conditions: Sequence[Condition], baseline: Path | None, prepared: Prepared) -> None:
        self._conditions = conditions
        self._before = _read(baseline, prepared) if baseline is not None else None
        names = [metric.name for metric in (*prepared.metrics, *MEASURES)]
        for condition in conditions:
            name = _name(condition, prepared.quality)
            if name not in names:
                raise ConditionError(f"nothing measures `{name}`. {did_you_mean(name, names)}")
            if self._before is not None:
                was = _figure(name, condition.figure, self._before, "the baseline")
                if condition.percent and was == 0:
                    what = _what(name, condition)
                    raise ConditionError(
                        f"`{condition.text}`: the baseline's {what} is 0, of which nothing is a percent."
                    )
            elif condition.percent:
                raise ConditionError(f"`{condition.text}`: percent of what? Give a `--baseline`.")

    def judge(self, done: Done) -> list[Verdict]:
        """Hold a run to them. Raises `ConditionError` for a metric that none of its examples has."""
        return [_verdict(condition, done, self._before) for condition in self._conditions]


def _name(condition: Condition, quality: str | None) -> str:
    return quality if condition.metric == "quality" and quality else condition.metric


def _what(name: str, condition: Condition) -> str:
    return f"{name}.{condition.figure}" if condition.figure != "mean" else name


def _read(folder: Path, prepared: Prepared) -> dict[str, Any]:
    try:
        manifest = read_manifest(folder)
        if manifest is None or manifest["state"] != "complete":
            raise Taken(f"{folder} has no complete run.")
        found = read_metrics(folder)
    except Taken as error:
        raise ConditionError(str(error)) from None
    if manifest["data"]["sha256"] != prepared.data.sha256:
        raise ConditionError(f"the baseline {folder} is of other data: {manifest['data']['name']}.")
    if manifest["data"]["examples"] != len(prepared.data.examples):
        raise ConditionError(
            f"the baseline {folder} has {manifest['data']['examples']} examples of the data."
        )
    return found


def _verdict(condition: Condition, done: Done, before: dict[str, Any] | None) -> Verdict:
    name = _name(condition, done.manifest["quality"])
    value = _figure(name, condition.figure, done.metrics, "this run")
    what = _what(name, condition)
    if before is None:
        said, shown = value, f"{what} is {value:.4g}"
    else:
        was = _figure(name, condition.figure, before, "the baseline")
        said = value - was
        shown = f"{what} changed by {said:+.4g}, from {was:.4g} to {value:.4g}"
        if condition.percent:
            said /= abs(was)
            shown += f" ({said:+.1%})"
    failed = said < condition.bound if condition.sign == "<" else said > condition.bound
    return Verdict(failed, f"{'FAILED' if failed else 'passed'}  {condition.text}: {shown}")


def _figure(name: str, figure: str, metrics: dict[str, Any], where: str) -> float:
    if name not in metrics:
        raise ConditionError(f"{where} does not measure `{name}`. {did_you_mean(name, metrics)}")
    return float(metrics[name][figure])

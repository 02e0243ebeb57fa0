"""Running examples through a graph: many at a time, each outcome kept as it comes, resumed after a stop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import orjson

from pipeline.graph import Graph
from pipeline.plan import Part
from pipeline.plugins import inspect_class
from pipeline.problems import ConfigError
from pipeline_plugins.evaluate import manifest as facts
from pipeline_plugins.evaluate.ask import Asker
from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.files import Digests, write_json, write_yaml
from pipeline_plugins.evaluate.journal import Journal
from pipeline_plugins.evaluate.metric import MEASURES, Metric, Scorer, measures
from pipeline_plugins.evaluate.pace import closed_loop, open_loop
from pipeline_plugins.evaluate.prepare import Prepared
from pipeline_plugins.evaluate.reuse import Reuse
from pipeline_plugins.evaluate.table import EXAMPLES, write_examples

MANIFEST, METRICS, JOURNAL = "manifest.json", "metrics.json", "examples.jsonl"
CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"
POINTS = "points"
"""Folder of a sweep's runs."""
VERSION = 1
"""Of the folder's layout."""


class Taken(ValueError):
    """The folder has another run, or something else."""


@dataclass(slots=True)
class Done:
    """A run that is complete."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    resumed: int = 0


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's folder, None if it has none. Raises `Taken` for something else of its name."""
    try:
        found: Any = orjson.loads((folder / MANIFEST).read_bytes())
    except OSError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= {"state", "digest", "data", "metrics", "overrides"}:
        raise Taken(f"{folder / MANIFEST} is not a run's manifest.")
    return found


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """What the metrics of a complete run came to. Raises `Taken` for a run that is damaged."""
    try:
        found: Any = orjson.loads((folder / METRICS).read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(folder, METRICS, error) from None
    if not isinstance(found, dict):
        raise damaged(folder, METRICS, "it is no object")
    return found


def damaged(folder: Path, file: str, why: object) -> Taken:
    """What is raised for a run of which a file is missing or is not what it was."""
    said = (why.strerror if isinstance(why, OSError) else None) or next(iter(str(why).splitlines()), "")
    return Taken(f"the run {folder} is damaged: {file}: {said}.")


def folder_for(prepared: Prepared, out: Path | None, *, fresh: bool = False) -> Path:
    """Where a run goes: `out`, or a folder of its own that an unfinished equal run is resumed in.

    Raises `Taken` if `out` has another run, or is something else.
    """
    if out is not None:
        _check_free(out, prepared)
        return out
    stem = f"{prepared.data.name[:40]}-{prepared.digest[:8]}"
    for number in range(1, 1_000_000):
        folder = Path(prepared.settings.dir).expanduser() / (stem if number == 1 else f"{stem}-{number}")
        found = read_manifest(folder)
        if found is None or (found["state"] != "complete" and not fresh):
            return folder
    raise Taken(f"{prepared.settings.dir} is full of runs `{stem}`.")


def _check_free(folder: Path, prepared: Prepared) -> None:
    """Raises `Taken` where a folder has anything but this run. One that has not begun is nobody's."""
    if folder.exists() and not folder.is_dir():
        raise Taken(f"{folder} is a file.")
    found, journal = read_manifest(folder), folder / JOURNAL
    if found is not None:
        begun = found["state"] == "complete" or (journal.is_file() and journal.stat().st_size > 0)
        if begun and found["digest"] != prepared.digest:
            said = f"{folder} has a run of another configuration or other data"
            raise Taken(f"{said}: give another --out, or delete it.")
    # Whoever was stopped while models loaded left a journal, or a file that was not yet renamed.
    elif folder.is_dir() and any(p.name != JOURNAL and not p.name.startswith(".") for p in folder.iterdir()):
        raise Taken(f"{folder} is not empty, and has no run.")


class Runner:
    """Runs one after the other in one event loop: a model that stays as it is stays loaded."""

    def __init__(self) -> None:
        self._loop = asyncio.Runner()
        self._graph: Graph | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the graph that is open, and the loop."""
        graph, self._graph = self._graph, None
        if graph is not None:
            self._loop.run(graph.close())
        self._loop.close()

    def run(
        self,
        prepared: Prepared,
        folder: Path,
        *,
        answers: Path | None = None,
        fresh: bool = False,
        what: str = "evaluating",
    ) -> Done:
        """Run what is missing in a folder, or with `fresh` all of it, and sum all of it up.

        `answers` is a file of models' answers that runs share. Raises `Busy` if another process
        runs there, `Taken` if there is another run, `ConfigError`, and `DataError` for a row that a
        scorer can't use.
        """
        found = read_manifest(folder)
        if found is not None and found["state"] == "complete" and found["digest"] == prepared.digest:
            return Done(folder, found, read_metrics(folder), len(prepared.data.examples))
        _check_free(folder, prepared)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Journal(folder / JOURNAL, fresh=fresh)) as journal:
            done = self._loop.run(self._run(prepared, folder, journal, answers, what))
            journal.remove()
        return done

    async def _run(
        self, prepared: Prepared, folder: Path, journal: Journal, answers: Path | None, what: str
    ) -> Done:
        graph = await self._open(prepared, answers)
        manifest = _manifest(prepared, graph)
        write_json(folder / MANIFEST, manifest)
        write_yaml(folder / CONFIG, prepared.config)
        write_yaml(folder / OVERRIDES, prepared.overrides)
        examples = prepared.data.examples
        known = [example.id for example in examples if example.id in journal.known]
        started = perf_counter()
        opened: list[Scorer] = []
        try:
            for name, scorer in prepared.scorers.items():
                opened.append(scorer)
                await _open_scorer(scorer, name, graph)
            late = await _all(prepared, graph, journal, what)
        finally:
            for scorer in opened:
                if hasattr(scorer, "close"):
                    await scorer.close()
        outcomes = [journal.known[example.id] for example in examples]
        manifest["seconds"] = round(perf_counter() - started, 3)
        if late is not None:
            manifest["late_s"] = round(late, 4)
        return _finish(prepared, folder, manifest, outcomes, len(known))

    async def _open(self, prepared: Prepared, answers: Path | None) -> Graph:
        plan = prepared.plan
        if answers is not None and prepared.settings.reuse:
            # First, and so around all others.
            shared = Part(
                "reuse",
                "eval.reuse",
                "eval.reuse",
                inspect_class("eval.reuse", Reuse),
                Reuse.Config(path=str(answers)),
            )
            plan = replace(plan, extensions=[shared, *plan.extensions])
        former, self._graph = self._graph, None
        graph = Graph.build(plan, former)
        try:
            await graph.open()
        finally:
            if former is not None:
                graph.take_over(former)
                await former.close()
        self._graph = graph
        return graph


async def _open_scorer(scorer: Scorer, name: str, graph: Graph) -> None:
    if not hasattr(scorer, "open"):
        return
    try:
        await scorer.open(graph)
    except ConfigError as error:
        raise ConfigError(
            replace(problem, path=f"score.{name}.{problem.path}".rstrip(".")) for problem in error.problems
        ) from None


async def _all(prepared: Prepared, graph: Graph, journal: Journal, what: str) -> float | None:
    """Ask for what is missing; then score what takes time, so that no answer waits for a judge.

    Returns how late examples that have a time were begun.
    """
    settings, known = prepared.settings, journal.known
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if settings.stream else {}
    ask = Asker(graph, {**streaming, **settings.request}, settings.owner, prepared.call_timeout)
    slow = [one for one in prepared.scorers.values() if inspect.iscoroutinefunction(one.score)]
    quick = [one for one in prepared.scorers.values() if one not in slow]

    async def answer(example: Example, due: float) -> None:
        outcome = await ask(example, due)
        outcome.scores = measures(outcome)
        for scorer in quick:
            outcome.scores |= await _score(scorer, example, outcome)
        journal.add(outcome)

    async def judge(example: Example, _: float) -> None:
        outcome = known[example.id]
        for scorer in slow:
            outcome.scores |= await _score(scorer, example, outcome)
        journal.add(outcome)

    examples = prepared.data.examples
    missing = [one for one in examples if one.id not in known]
    late = None
    if settings.speed is None:
        await closed_loop(missing, answer, settings.concurrency, what)
    else:
        late = await open_loop(missing, answer, settings.speed, what)
    wanted = {metric.name for scorer in slow for metric in scorer.metrics}
    unscored = [one for one in examples if not wanted <= known[one.id].scores.keys()]
    await closed_loop(unscored, judge, settings.concurrency, "scoring")
    return late


async def _score(scorer: Scorer, example: Example, outcome: Outcome) -> dict[str, float | None]:
    """A value for each of a scorer's metrics."""
    if outcome.failed:
        applies = not hasattr(scorer, "applies") or scorer.applies(example)
        return {metric.name: metric.failed if applies else None for metric in scorer.metrics}
    try:
        found = scorer.score(example, outcome)
        scores = await found if isinstance(found, Awaitable) else found
    except DataError as error:
        raise DataError(f"example `{example.id}`: {error}") from None
    return {metric.name: scores.get(metric.name) for metric in scorer.metrics}


def _manifest(prepared: Prepared, graph: Graph) -> dict[str, Any]:
    settings = prepared.settings
    state = Path(str((prepared.composed.values.get("vars") or {}).get("state") or settings.dir)).expanduser()
    return {
        "version": VERSION,
        "state": "running",
        "digest": prepared.digest,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "overrides": prepared.overrides,
        "quality": prepared.quality,
        "objective": settings.objective,
        "metrics": {
            metric.name: {"better": metric.better, "failed": metric.failed, "clock": metric.clock}
            for metric in (*prepared.metrics, *MEASURES)
        },
        "data": {
            "name": prepared.data.name,
            "sha256": prepared.data.sha256,
            "examples": len(prepared.data.examples),
            **({"notes": list(prepared.data.notes)} if prepared.data.notes else {}),
        },
        "models": facts.files_of(graph, Digests(state / "digests.json")),
        "plugins": facts.plugins_of(prepared.config, prepared.composed.registry),
        "packages": facts.packages(),
        "hardware": facts.hardware(),
        "git": facts.git(Path.cwd()),
        "seeds": {"eval": settings.seed, "request": settings.request.get("seed")},
    }


def _finish(
    prepared: Prepared, folder: Path, manifest: dict[str, Any], outcomes: list[Outcome], resumed: int
) -> Done:
    summary = write_results(prepared, folder, outcomes, [*prepared.metrics, *MEASURES])
    manifest |= {"state": "complete", "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    manifest["reused"] = sum(outcome.reused > 0 for outcome in outcomes)
    write_json(folder / MANIFEST, manifest)
    return Done(folder, manifest, summary, resumed)


def write_results(
    prepared: Prepared, folder: Path, outcomes: Sequence[Outcome], metrics: Sequence[Metric]
) -> dict[str, dict[str, Any]]:
    """Write a row for each example and what their metrics come to; returns the latter."""
    from pipeline_plugins.evaluate.summary import summarise

    settings = prepared.settings
    summary = summarise(
        [outcome.scores for outcome in outcomes],
        [metric.name for metric in metrics],
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    write_examples(folder / EXAMPLES, prepared.data.examples, outcomes, metrics)
    write_json(folder / METRICS, summary)
    return summary

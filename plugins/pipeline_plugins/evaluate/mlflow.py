"""Logging runs to MLflow, for those who keep theirs there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import click

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.compare import Run
from pipeline_plugins.evaluate.run import CONFIG, MANIFEST, METRICS, OVERRIDES

EXPERIMENT = "llm-pipeline"
MARK = "pipeline.run"
"""Tag by which a run is found again."""
LONGEST = 500
"""Characters of a parameter's value."""
AT_ONCE = 100
"""Parameters or metrics that one request may have."""
UNFIT = re.compile(r"[^\w./: -]")
"""Characters that MLflow takes in no name."""
KEPT = (CONFIG, OVERRIDES, MANIFEST, METRICS)


def log(runs: Sequence[Run], uri: str) -> None:
    """Log each run: its config as parameters, means and interval ends as metrics, its files as artifacts.

    One that is there already is not logged again. Raises `ConfigError` where MLflow is missing,
    `click.ClickException` where it takes no run.
    """
    # Its own seven retries take minutes to find that nobody listens.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError([Problem("--mlflow", "MLflow is missing.", "pip install mlflow-skinny")]) from None
    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
        for run in runs:
            mark = f"{run.manifest['digest'][:16]} {run.manifest['started']}"
            if not client.search_runs([experiment], f"tags.`{MARK}` = '{mark}'", max_results=1):
                _log(client, experiment, run, mark)
    except MlflowException as error:
        raise click.ClickException(f"MLflow at {uri}: {str(error).splitlines()[0]}") from None


def _log(client: Any, experiment: str, run: Run, mark: str) -> None:
    from mlflow.entities import Metric, Param

    started = _milliseconds(run.manifest["started"])
    ended = _milliseconds(run.manifest["ended"]) if "ended" in run.manifest else started
    made = client.create_run(experiment, start_time=started, tags={MARK: mark}, run_name=run.label)
    id = made.info.run_id
    for some in _pieces(sorted({UNFIT.sub("_", key): value for key, value in run.config.items()}.items())):
        client.log_batch(id, params=[Param(key, str(value)[:LONGEST]) for key, value in some])
    for some in _pieces(_figures(run)):
        client.log_batch(id, metrics=[Metric(key, value, ended, 0) for key, value in some])
    for file in KEPT:
        client.log_artifact(id, str(run.folder / file))
    client.set_terminated(id, end_time=ended)


def _figures(run: Run) -> list[tuple[str, float]]:
    """The mean of each metric under its name, and the ends of its interval."""
    return [
        (UNFIT.sub("_", name if figure == "mean" else f"{name}.{figure}"), value)
        for name, metric in run.metrics.items()
        for figure in ("mean", "low", "high")
        if (value := metric[figure]) is not None
    ]


def _pieces(found: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    left = iter(found)
    while some := list(islice(left, AT_ONCE)):
        yield some


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)

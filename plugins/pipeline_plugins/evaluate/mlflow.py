"""Logging runs to MLflow, for those who keep theirs there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.compare import Run

EXPERIMENT = "llm-pipeline"
LONGEST = 500
"""Characters of a parameter's value."""
KEPT = ("config.yaml", "overrides.yaml", "manifest.json", "metrics.json")


def log(runs: Sequence[Run], uri: str) -> None:
    """Log each run: its config as parameters, means and interval ends as metrics, its files as artifacts.

    Raises `ConfigError` where MLflow is missing.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError([Problem("--mlflow", "MLflow is missing.", "pip install mlflow-skinny")]) from None
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
    for run in runs:
        started = int(datetime.fromisoformat(run.manifest["started"]).timestamp() * 1000)
        made = client.create_run(experiment, start_time=started, run_name=run.label)
        id = made.info.run_id
        for key, value in run.config.items():
            client.log_param(id, key, str(value)[:LONGEST])
        for name, metric in run.metrics.items():
            name = name.replace("@", "_at_")
            for figure in ("mean", "low", "high"):
                client.log_metric(id, name if figure == "mean" else f"{name}.{figure}", metric[figure])
        for file in KEPT:
            client.log_artifact(id, str(run.folder / file))
        client.set_terminated(id)

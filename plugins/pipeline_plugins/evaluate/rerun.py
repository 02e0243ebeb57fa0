"""`pipeline rerun`: a run once more, from what its folder says, and whether the figures agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline_plugins.evaluate.run import Done

EPILOG = """\b
Examples:
  pipeline rerun runs/main
  pipeline rerun runs/main 'infer.api_key=${oc.env:API_KEY}'   # secrets are not kept, so give them again
  pipeline rerun runs/main --out runs/again eval.concurrency=1

With deterministic backends and `eval.concurrency=1` all figures but times are identical."""

Answers = Mapping[str, tuple[Any, ...]]

PROVENANCE = ("data", "models", "plugins", "packages", "git", "hardware")
"""Parts of a manifest that explain why figures differ."""


@click.command("rerun", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the new run; beside RUN without."
)
def command(run: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Repeat RUN from its config.yaml, and say whether the figures agree.

    Times are shown, but need not agree. Exits with 1 where another figure or an answer differs.
    """
    from pipeline_plugins.evaluate.example import DataError
    from pipeline_plugins.evaluate.prepare import prepare
    from pipeline_plugins.evaluate.quiet import quiet
    from pipeline_plugins.evaluate.run import CONFIG, Runner, Taken, read_manifest, read_metrics

    quiet()
    try:
        before = read_manifest(run)
        if before is None or before["state"] != "complete":
            raise click.UsageError(f"{run} has no complete run.")
        config = run / CONFIG
        _require_secrets(config, overrides)
        metrics, answers = read_metrics(run), _answers(run)
        prepared = prepare(overrides, config)
        prepared.overrides = [*before["overrides"], *prepared.overrides]
        with Runner() as runner:
            done = runner.run(prepared, out or _beside(run))
        return _say(before, metrics, answers, done)
    except (DataError, Taken) as error:
        raise click.UsageError(str(error)) from None


def _require_secrets(config: Path, overrides: tuple[str, ...]) -> None:
    """Raises `ConfigError` for each value that was masked and is not given, `Taken` for a damaged run."""
    import yaml

    from pipeline.config_print import MASK
    from pipeline.problems import ConfigError, Problem
    from pipeline_plugins.evaluate.compare import flat
    from pipeline_plugins.evaluate.run import damaged

    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    try:
        written = yaml.safe_load(config.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise damaged(config.parent, config.name, error) from None
    if not written:
        raise click.UsageError(f"{config.parent} was recorded: there is no configuration to repeat it from.")
    values = flat(written)
    problems = [
        Problem(
            path,
            "it was a secret, and is not kept.",
            f"Give it again: {path}='${{oc.env:NAME}}'",
            str(config),
        )
        for path, value in values.items()
        if isinstance(value, str) and MASK in value and path not in given
    ]
    if problems:
        raise ConfigError(problems)


def _beside(run: Path) -> Path:
    """The first folder `RUN-again-N` without a complete run; a sweep's points stay what they were."""
    from pipeline_plugins.evaluate.run import POINTS, read_manifest

    run = run if run.name not in ("", "..") else run.resolve()
    parent = run.parent.parent if run.parent.name == POINTS else run.parent
    number = 1
    while True:
        folder = parent / f"{run.name}-again-{number}"
        found = read_manifest(folder)
        if found is None or found["state"] != "complete":
            return folder
        number += 1


def _say(before: Mapping[str, Any], metrics: Mapping[str, Any], was: Answers, done: Done) -> int:
    """Print what is the same and what is not. Returns 1 if a figure or an answer differs."""
    from pipeline_plugins.evaluate.show import agreement

    clocks = {name for name, metric in before["metrics"].items() if metric["clock"]}
    rows = [
        (name, metrics[name]["mean"], done.metrics[name]["mean"], name in clocks)
        for name in metrics
        if name in done.metrics
    ]
    missing = sorted(set(metrics) ^ set(done.metrics))
    different = [name for name, old, new, clock in rows if old != new and not clock]
    now = _answers(done.folder)
    answers = [id for id in was if was[id] != now.get(id)] + [id for id in now if id not in was]
    changed = [part for part in PROVENANCE if before.get(part) != done.manifest.get(part)]
    agreement(rows, done.folder)
    for part in changed:
        click.echo(f"changed since: {part}")
    if missing:
        click.echo(f"measured in one of the runs only: {', '.join(missing)}")
    click.echo(f"answers that differ: {len(answers)}" + (f", the first of `{answers[0]}`" if answers else ""))
    if different or answers or missing:
        click.secho("The figures do not agree.", fg="red")
        return 1
    click.secho("The figures agree.", fg="green")
    return 0


def _answers(run: Path) -> Answers:
    """By an example's id its outcome, answer, route, cache and cost. Raises `DataError`."""
    from pipeline_plugins.evaluate.table import EXAMPLES, read_columns

    columns = ("id", "outcome", "status", "answer", "finish", "route", "cache", "usd")
    found = read_columns(run / EXAMPLES, columns)
    nothing = [None] * len(found["id"])
    rows = zip(*(found.get(name, nothing) for name in columns), strict=True)
    return dict(zip(found["id"], rows, strict=True))

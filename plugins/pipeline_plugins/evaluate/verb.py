"""`pipeline eval`: a data set through the composed graph, scored; with `-m` over many configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.evaluate.gate import Gate
    from pipeline_plugins.evaluate.run import Done

EPILOG = """\b
Examples:
  pipeline eval data=questions.jsonl 'score=[exact_match,f1]'
  pipeline eval data=questions.csv 'data.columns={prompt: question, expected: answer}' data.limit=100
  pipeline eval data=questions.jsonl 'eval.request={max_tokens: 32, temperature: 0}' eval.stream=true
  pipeline eval data=questions.jsonl score=[f1] --baseline runs/main --fail-if 'quality<-0.02'
  pipeline eval -m data=questions.jsonl score=[f1] cache=none,exact infer.slots=1,8
  pipeline eval -m experiment=semantic_cache hydra/launcher=joblib

Rows are `{id, messages, expected, …}` or `{id, prompt, …}`: JSONL, CSV, Parquet. A run that was
stopped goes on where it stopped when the same command is given again."""


@click.command("eval", epilog=EPILOG)
@with_overrides
@click.option("-m", "--multirun", is_flag=True, help="Sweep: values with commas give a run each.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the run; below `eval.dir` without."
)
@click.option("--fresh", is_flag=True, help="Begin anew where an equal run was stopped.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Run that `--fail-if` compares with.")
@click.option(
    "--fail-if",
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 if a metric's mean, or its difference from the baseline's, is so: `quality<-0.02`, "
    "`cost_usd>10%`, `latency_s.p95>0.5`. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def command(
    overrides: tuple[str, ...],
    config: Path | None,
    multirun: bool,
    out: Path | None,
    fresh: bool,
    baseline: Path | None,
    fail_if: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run a data set through the composed graph, in this process, and score the answers.

    Everything that is not an option is a Hydra override. The folder of the run has config.yaml,
    overrides.yaml, manifest.json, metrics.json and examples.parquet. Examples that fail are
    counted, and stop nothing.
    """
    from pipeline_plugins.evaluate.example import DataError
    from pipeline_plugins.evaluate.gate import ConditionError, Gate, parse
    from pipeline_plugins.evaluate.prepare import prepare
    from pipeline_plugins.evaluate.quiet import quiet
    from pipeline_plugins.evaluate.run import Runner, Taken, folder_for

    try:
        conditions = [parse(text) for text in fail_if]
    except ConditionError as error:
        raise click.BadParameter(str(error), param_hint="--fail-if") from None
    if multirun and (conditions or baseline is not None):
        raise click.UsageError("A sweep has no gate: `--baseline` and `--fail-if` are for single runs.")
    if multirun and (fresh or as_json):
        raise click.UsageError(
            "`--fresh` and `--json` are for single runs: a sweep has index.json, and begins anew in "
            "another folder."
        )
    if baseline is not None and not conditions:
        raise click.UsageError("`--baseline` is for `--fail-if`, say `--fail-if 'quality<-0.02'`.")
    quiet()
    try:
        if multirun:
            from pipeline_plugins.evaluate.sweep import sweep

            return sweep(overrides, config, out)
        prepared = prepare(overrides, config)
        gate = Gate(conditions, baseline, prepared)
        folder = folder_for(prepared, out, fresh=fresh)
        try:
            with Runner() as runner:
                done = runner.run(prepared, folder, fresh=fresh)
        except KeyboardInterrupt:
            click.echo(f"Stopped. The same command goes on in {folder}.", err=True)
            return 130
        _print(done, as_json)
        return _judge(gate, done)
    except (DataError, Taken, ConditionError) as error:
        raise click.UsageError(str(error)) from None


def _print(done: Done, as_json: bool) -> None:
    from pipeline_plugins.evaluate.show import summary

    if as_json:
        import orjson

        click.echo(orjson.dumps({"run": str(done.folder), "metrics": done.metrics}).decode())
    else:
        summary(done)


def _judge(gate: Gate, done: Done) -> int:
    """1 if some condition holds."""
    verdicts = gate.judge(done)
    for verdict in verdicts:
        click.secho(verdict.text, fg="red" if verdict.failed else "green", err=True)
    return int(any(verdict.failed for verdict in verdicts))

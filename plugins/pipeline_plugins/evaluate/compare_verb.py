"""`pipeline compare`: which of several runs is better, by how much, and how sure that is."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Examples:
  pipeline compare runs/main runs/candidate
  pipeline compare runs/sweep-1f2e3d4c --metric quality --metric latency_s
  pipeline compare runs/main runs/candidate --markdown >> "$GITHUB_STEP_SUMMARY"
  pipeline compare runs/* --html comparison.html --png front.png
  pipeline compare runs/* --mlflow http://127.0.0.1:5000

RUN is a run's folder, or a sweep's, which stands for all its points. The first is the baseline."""


@click.command("compare", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metric", "metrics", multiple=True, help="To compare; quality, cost and latency without.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Run to hold the others against.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print tables for a pull request.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with pictures.")
@click.option("--png", type=click.Path(path_type=Path), help="Write a picture of the Pareto front.")
@click.option("--mlflow", metavar="URI", help="Log each run to an MLflow tracking server or folder.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of resampling.")
def command(
    runs: tuple[Path, ...],
    metrics: tuple[str, ...],
    baseline: Path | None,
    as_markdown: bool,
    html: Path | None,
    png: Path | None,
    mlflow: str | None,
    seed: int,
) -> int:
    """Compare runs over the examples that all of them have.

    Shows each metric's mean, its paired difference from the baseline with an interval and an
    adjusted p-value, which runs no other one beats in quality, cost and latency together, and
    which config keys differ.
    """
    from pipeline_plugins.evaluate import report
    from pipeline_plugins.evaluate.compare import compare, find
    from pipeline_plugins.evaluate.example import DataError
    from pipeline_plugins.evaluate.run import Taken

    try:
        found = compare(find([baseline, *runs] if baseline is not None else runs), metrics or None, seed=seed)
    except (DataError, Taken) as error:
        raise click.UsageError(str(error)) from None
    if as_markdown:
        click.echo(report.markdown(found), nl=False)
    else:
        report.terminal(found)
    if html is not None:
        html.write_text(report.page(found), encoding="utf-8")
    if png is not None:
        from pipeline_plugins.evaluate.plot import png as draw

        draw(found, png)
    if mlflow is not None:
        from pipeline_plugins.evaluate.mlflow import log

        log(found.runs, mlflow)
    return 0

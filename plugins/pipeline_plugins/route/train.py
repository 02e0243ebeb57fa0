"""`pipeline route train`: fit the estimator of `route=capable` on labelled traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline_plugins.route.capable_curve import Curve, HeldOut
    from pipeline_plugins.route.capable_data import Labelled

EPILOG = """\b
Examples:
  pipeline route train traffic.csv.gz
  pipeline route train traffic.jsonl --out models/router --by set
  pipeline route train traffic.csv --apart topic      # how well does it do on new topics?
  pipeline route train traffic.csv --balance set      # rare kinds of prompt count for more

DATA has a column `prompt` and, for each target, `TARGET_right`: 0, 1 or a score between."""

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@click.group("route", epilog="\b\nExamples:\n  pipeline route train traffic.csv.gz --out models/router")
def command() -> None:
    """Work with learned routers."""


@command.command("train", epilog=EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, writable=True),
    default=Path("router"),
    show_default=True,
    help="Folder to save it in.",
)
@click.option("--by", help="Column to report figures by, besides all rows together.")
@click.option("--apart", help="Column whose equal values share a fold; of equal prompts always so.")
@click.option(
    "--balance", help="Column whose rarer values shall count for more: each row by one over the root."
)
@click.option(
    "--folds", type=click.IntRange(2, 20), default=5, show_default=True, help="Of the cross-validation."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds and random features."
)
def train(
    data: Path, out: Path, by: str | None, apart: str | None, balance: str | None, folds: int, seed: int
) -> int:
    """Fit a router on DATA, report its cost-quality curve, and save it.

    Every figure is on rows kept out of the fit (cross-validation).
    """
    from pipeline import logging
    from pipeline.problems import ConfigError, Problem, did_you_mean

    logging.configure(beside_an_answer=True)
    try:
        import numpy  # noqa: F401
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            [Problem("", f"training needs {error.name}.", "pip install 'llm-pipeline[route]'")]
        ) from None
    from pipeline_plugins.route.capable_data import DataError, read

    try:
        labelled = read(data)
    except DataError as error:
        raise click.BadParameter(str(error), param_hint="DATA") from None
    for option, column in (("--by", by), ("--apart", apart), ("--balance", balance)):
        if column is not None and column not in labelled.columns:
            hint = did_you_mean(column, labelled.columns)
            raise click.BadParameter(f"{data} has no column `{column}`. {hint}", param_hint=option)
    groups = labelled.columns[apart] if apart else labelled.prompts
    if len(set(groups)) < 2:
        equal = f"all rows have the same `{apart}`" if apart else "all prompts are equal"
        message = f"{data}: {equal}, so that no row can be kept out of the fit."
        raise click.BadParameter(message, param_hint="--apart" if apart else "DATA")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{out} can't be made: {error.strerror}.", param_hint="--out") from None
    metrics = _train(labelled, data.name, out, by, apart, balance, folds, seed)
    _print(metrics, labelled)
    click.echo(f"Saved in {out}. Use it: pipeline serve route=capable route.model={out} route.quality=0.95")
    return 0


def _train(
    labelled: Labelled,
    name: str,
    out: Path,
    by: str | None,
    apart: str | None,
    balance: str | None,
    folds: int,
    seed: int,
) -> dict[str, Curve]:
    from dataclasses import asdict, replace

    import numpy as np

    from pipeline.progress import track
    from pipeline_plugins.route import capable_fit as fitting
    from pipeline_plugins.route.capable_curve import HeldOut, calibration_error
    from pipeline_plugins.route.capable_store import save

    right, recipe = np.array(labelled.right), fitting.Recipe()
    groups = labelled.columns[apart] if apart else labelled.prompts
    fold = fitting.folds(groups, folds, seed)
    weights = fitting.balanced(labelled.columns[balance]) if balance else None
    with track("reading prompts", len(labelled.prompts)) as step:
        prompts = fitting.Prompts.read(labelled.prompts, step)
    with track("fitting", folds + 1) as step:
        estimates = fitting.cross_fit(prompts, right, labelled.targets, fold, recipe, seed, step, weights)
        slope, offset = fitting.calibration(estimates, right)
        fitted = fitting.fit(prompts, right, labelled.targets, recipe, seed, weights)
        step()
    held_out = HeldOut(np.clip(offset + slope * estimates, 0, 1), right)
    curves = _curves(held_out, labelled, by)
    errors = [calibration_error(held_out.estimates[:, k], right[:, k]) for k in range(right.shape[1])]
    metrics: dict[str, Any] = {
        "held_out": "cross-validation" + (f" by `{apart}`" if apart else " by row"),
        "quality": dict(zip(labelled.targets, right.mean(axis=0).tolist(), strict=True)),
        "calibration_error": dict(zip(labelled.targets, errors, strict=True)),
        "curves": {
            which: {"apgr": c.apgr, "cpt50": c.cpt(0.5), "cpt80": c.cpt(0.8)} for which, c in curves.items()
        },
    }
    settings = asdict(recipe) | ({"balance": balance} if balance else {})
    provenance = _provenance(labelled, name, folds, seed, settings, metrics)
    try:
        save(out, replace(fitted, slope=slope, offset=offset), held_out, provenance)
        (out / "curve.svg").write_text(_svg(curves))
    except OSError as error:
        raise click.ClickException(f"{out} can't be written: {error.strerror or error}.") from None
    return curves


def _provenance(
    labelled: Labelled, name: str, folds: int, seed: int, recipe: dict[str, Any], metrics: dict[str, Any]
) -> Any:
    import platform
    from datetime import UTC, datetime
    from importlib.metadata import version

    from pipeline_plugins.route.capable_store import Provenance

    versions = {package: version(package) for package in ("llm-pipeline", "numpy", "safetensors")}
    return Provenance(
        data=name,
        data_sha256=labelled.sha256,
        rows=len(labelled.prompts),
        trained=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions | {"python": platform.python_version()},
        folds=folds,
        seed=seed,
        recipe=recipe,
        metrics=metrics,
    )


def pair(held_out: HeldOut) -> tuple[int, int]:
    """The strongest and the weakest target, whose gap the curve is about."""
    means = held_out.right.mean(axis=0)
    return int(means.argmax()), int(means.argmin())


def _curves(held_out: HeldOut, labelled: Labelled, by: str | None) -> dict[str, Curve]:
    """The curve of all rows, and of each value of a column where the strong target is better."""
    import numpy as np

    from pipeline_plugins.route.capable_curve import Curve

    strong, weak = pair(held_out)
    everything = np.ones(len(labelled.prompts), bool)
    values = np.array(labelled.columns[by]) if by else np.array([])
    parts = {"all": everything} | {str(value): values == value for value in dict.fromkeys(values.tolist())}
    curves = {}
    for which, rows in parts.items():
        estimates, right = held_out.estimates[rows], held_out.right[rows]
        try:
            curves[which] = Curve.of(
                estimates[:, strong] - estimates[:, weak], right[:, strong], right[:, weak]
            )
        except ValueError as error:
            click.echo(f"No curve of {which}: {error}.", err=True)
    return curves


def _print(curves: dict[str, Curve], labelled: Labelled) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{len(labelled.prompts)} rows, targets {', '.join(labelled.targets)}; all on held-out rows"
    )
    figures = Table(box=box.SIMPLE)
    for heading in ("rows", "weak", "strong", "APGR", "CPT(50%)", "CPT(80%)"):
        figures.add_column(heading, justify="right")
    for which, curve in curves.items():
        shown = (f"{curve.weak:.3f}", f"{curve.strong:.3f}", f"{curve.apgr:.3f}")
        figures.add_row(which, *shown, f"{curve.cpt(0.5):.1%}", f"{curve.cpt(0.8):.1%}")
    console.print(figures)
    if "all" not in curves:
        return
    table = Table(box=box.SIMPLE)
    for heading in ("strong calls", "quality", "of the strongest", "gap recovered"):
        table.add_column(heading, justify="right")
    for share in SHARES:
        recovered, quality = curves["all"].at(share)
        of_strong = f"{quality / curves['all'].strong:.1%}"
        table.add_row(f"{share:.0%}", f"{quality:.3f}", of_strong, f"{recovered:.1%}")
    console.print(table)


def _svg(curves: dict[str, Curve]) -> str:
    """The curves: share of strong calls across, share of the gap recovered upwards."""
    from html import escape

    colours = ("#1f6feb", "#d1495b", "#2e933c", "#edae49", "#8250df", "#666666")
    lines, height = [], max(1.0, *(float(c.recovered.max()) for c in curves.values()), 1.0)
    for at, (which, curve) in enumerate(list(curves.items())[: len(colours)]):
        count = len(curve.recovered) - 1
        steps = [round(step * count / 200) for step in range(201)]
        points = " ".join(
            f"{40 + 400 * s / count:.1f},{320 - 300 * curve.recovered[s] / height:.1f}" for s in steps
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colours[at]}" stroke-width="2"/>')
        label = f"{escape(which[:20])}: APGR {curve.apgr:.3f}"
        lines.append(f'<text x="300" y="{240 + 14 * at}" fill="{colours[at]}">{label}</text>')
    axes = f"M40 20V320H440M40 320L440 {320 - 300 / height:.1f}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 360" '
        'font-family="sans-serif" font-size="12">'
        f'<path d="{axes}" fill="none" stroke="#999"/>'
        '<text x="240" y="345" text-anchor="middle">share of strong calls</text>'
        '<text x="14" y="170" text-anchor="middle" transform="rotate(-90 14 170)">'
        f"share of the gap recovered</text>{''.join(lines)}</svg>\n"
    )

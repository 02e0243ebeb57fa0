"""`pipeline ab`: how the experiments of `route=ab` and `route=bandit` stand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import Number
from pipeline.cli.options import overrides as with_overrides
from pipeline_plugins.ledger.options import filters, opened

EPILOG = """\b
Examples:
  pipeline ab status ledger=sqlite
  pipeline ab status ledger=sqlite graph=pair route=ab route.experiment=size --since 2026-11-01
  pipeline ab status ledger=sqlite --experiment size --control small --json

Give the overrides of the server: its `route=ab` (or `bandit`) says which variant is the control, what shares
the variants have, and which guards there are."""


@click.group("ab", epilog=EPILOG)
def command() -> None:
    """Watch experiments that run in production."""


@command.command("status", epilog=EPILOG)
@with_overrides
@click.option("--experiment", help="This one alone.")
@click.option("--control", help="The variant that others are compared with.")
@click.option(
    "--alpha",
    type=Number(0, 0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="How often a difference may be seen where there is none, over all looks.",
)
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
@filters
def status(
    overrides: tuple[str, ...],
    config: Path | None,
    experiment: str | None,
    control: str | None,
    alpha: float,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Compare variants by what the ledger has of their calls.

    Differences are variant less control, with intervals that may be looked at as often as one
    likes, and acted upon at any time. Units (sessions, users, keys) count as independent, their
    calls do not.
    """
    from pipeline_plugins.experiment.design import designs
    from pipeline_plugins.experiment.status import Design, Experiments, report
    from pipeline_plugins.ledger.store import Filter

    known = designs(overrides, config)
    with opened(overrides, config) as store:
        found = Experiments()
        found.read(store, Filter(**wanted))
        found.rate(store, Filter(**wanted))
    names = sorted(found) if experiment is None else [experiment]
    if experiment is not None and experiment not in found:
        there = ", ".join(sorted(found)) or "none"
        raise click.UsageError(f"No call of these took part in `{experiment}`. Experiments: {there}.")
    reports = []
    for name in names:
        design = known.get(name, Design())
        if control is not None:
            if control not in found[name].calls:
                there = ", ".join(sorted(found[name].calls))
                raise click.UsageError(f"`{name}` has no variant `{control}`. Variants: {there}.")
            design = Design(design.targets, control, design.weights, design.guards)
        reports.append(report(name, found[name], design, alpha))
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    else:
        from pipeline_plugins.experiment.show import show

        show(reports, wide=sys.stdout.isatty())
    return 0

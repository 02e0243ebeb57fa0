"""`pipeline check`: is this configuration right?"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import overrides as with_overrides


@click.command(
    "check", epilog="\b\nExamples:\n  pipeline check\n  pipeline check infer=openai cache=none -c my.yaml"
)
@with_overrides
def command(overrides: tuple[str, ...], config: Path | None) -> int:
    """Compose the configuration and check all of it, without loading a model.

    Every problem is reported with its key, the file or override it is from, and what
    would be right. Exits with 2 if there is any.
    """
    from pipeline.config import compose
    from pipeline.graph import Graph

    plan, _ = compose(overrides, config=config).plan()
    Graph.build(plan)
    left_out = f"; left out (none): {', '.join(plan.elided)}" if plan.elided else ""
    click.echo(f"ok: {', '.join(reversed(plan.parts))}{left_out}")
    return 0

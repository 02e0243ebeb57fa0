"""`pipeline config`: what the configuration is, and why."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import overrides as with_overrides

EPILOG = """\b
Examples:
  pipeline config
  pipeline config infer=openai --key infer
  pipeline config --no-origin > everything.yaml"""


@click.command("config", epilog=EPILOG)
@with_overrides
@click.option("--key", help="Print this part only, say `infer` or `graph.stages`.")
@click.option("--origin/--no-origin", default=True, help="Say where each value is from.")
def command(overrides: tuple[str, ...], config: Path | None, key: str | None, origin: bool) -> int:
    """Print the composed configuration, every default included, as YAML.

    Secrets are shown as ***; interpolations as they were written.
    """
    from pipeline.config import compose
    from pipeline.config_print import as_yaml

    composed = compose(overrides, config=config)
    lines = as_yaml(composed, key)
    width = min(max((len(line) for line, _ in lines), default=0), 60)
    for line, source in lines:
        if origin and source:
            click.echo(f"{line:<{width}}  {click.style(f'# {source}', dim=True)}")
        else:
            click.echo(line)
    return 0

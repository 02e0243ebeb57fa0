"""`pipeline graph`: a picture of what a configuration makes."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import overrides as with_overrides

EPILOG = """\b
Examples:
  pipeline graph
  pipeline graph --format mermaid infer=openai
  pipeline graph --format svg > graph.svg"""


@click.command("graph", epilog=EPILOG)
@with_overrides
@click.option(
    "--format", "form", type=click.Choice(["text", "mermaid", "svg"]), default="text", show_default=True
)
def command(overrides: tuple[str, ...], config: Path | None, form: str) -> int:
    """Draw the graph that the configuration compiles to."""
    from pipeline import drawing
    from pipeline.config import compose

    plan, _ = compose(overrides, config=config).plan()
    draw = {"text": drawing.as_text, "mermaid": drawing.as_mermaid, "svg": drawing.as_svg}[form]
    click.echo(draw(plan))
    return 0

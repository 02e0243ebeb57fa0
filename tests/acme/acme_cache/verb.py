"""`pipeline acme`: a verb of a package."""

import click


@click.command("acme")
@click.argument("word")
def command(word: str) -> int:
    """Say WORD."""
    click.echo(f"acme says {word}")
    return 0

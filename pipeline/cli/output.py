"""Printing for people, and cleanly into pipes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipeline.problems import Problem


def print_problems(problems: Sequence[Problem]) -> None:
    """One paragraph for each problem: what and where, then what would be right."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    click.secho(f"The configuration has {count}.", fg="red", bold=True, err=True)
    for problem in problems:
        click.echo(err=True)
        origin = click.style(f"({problem.origin})", dim=True) if problem.origin else ""
        path = click.style(problem.path, bold=True) if problem.path else ""
        if path or origin:
            click.echo("  " + "  ".join(part for part in (path, origin) if part), err=True)
        click.echo(f"    {problem.message[:1].upper()}{problem.message[1:]}", err=True)
        if problem.hint:
            click.secho(f"    {problem.hint}", fg="cyan", err=True)

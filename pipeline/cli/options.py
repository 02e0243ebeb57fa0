"""Arguments that several verbs share, and the completion of overrides."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Number(click.FloatRange):
    """A number within a range, neither infinite nor NaN, which is beyond no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if not isfinite(found):
            self.fail(f"{value} is no number to count with.", param, ctx)
        return found


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete GROUP=OPTION and KEY.PATH= of the default configuration."""
    from pipeline.config import compose
    from pipeline.config_print import effective
    from pipeline.problems import ConfigError

    given = [value for value in ctx.params.get("overrides") or () if "=" in value]
    try:
        config = compose(given, config=ctx.params.get("config"))
    except ConfigError:
        config = compose()
    key, sign, _ = incomplete.partition("=")
    if sign:
        found = [
            f"{key}={option}" for option in config.groups.get(key.partition("@")[0], ()) if option != "hydra"
        ]
    else:
        # A folder without options, of files that other programs read, is no group to choose from.
        chosen = {name for name, options in config.groups.items() if options and name != "hydra"}
        found = [f"{name}=" for name in chosen.union(_leaves(effective(config)[0], ""))]
    return [CompletionItem(text) for text in sorted(found) if text.startswith(incomplete)]


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path


def overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb `--config` and the overrides after it."""
    command = click.argument("overrides", nargs=-1, shell_complete=complete_override)(command)
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        help="Folder searched for YAML before the shipped one, or a YAML file as the primary config.",
    )(command)

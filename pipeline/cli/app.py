"""The `pipeline` command: its verbs, their common options, and how mistakes are said."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import click

VERBS: dict[str, tuple[str, str]] = {
    "serve": ("pipeline.cli.serve", "Serve the graph as an OpenAI-compatible API."),
    "ask": ("pipeline.cli.ask", "Ask the graph one question, without a server."),
    "check": ("pipeline.cli.check", "Check a configuration; report every problem at once."),
    "graph": ("pipeline.cli.graph", "Draw the graph as text, Mermaid or SVG."),
    "plugins": ("pipeline.cli.plugins", "List the installed plugins and what they can be told."),
    "config": ("pipeline.cli.config", "Print the composed configuration and where each value is from."),
    "new-plugin": ("pipeline.cli.new_plugin", "Write the beginning of a package with a plugin in it."),
}
"""Verb, the module that has its command, and its line in the help."""

COMPLETING = "_PIPELINE_COMPLETE"
"""Set in the environment when a shell asks for completions; click's own name for it."""

EPILOG = """\b
Examples:
  pipeline serve
  pipeline serve infer=openai infer.base_url=http://127.0.0.1:8001/v1
  pipeline ask "What is a llama?" infer.slots=1
  pipeline check graph.stages.monitor.next=route
  pipeline plugins infer

Everything after the verb is a Hydra override: GROUP=OPTION or KEY.PATH=VALUE."""


class Verbs(click.Group):
    """Loads a verb's module when it is called for; packages add verbs by `verb.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The built-in verbs in their order, then those of packages."""
        return [*VERBS, *sorted(self._added())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a verb's command."""
        _import_structlog()
        if name in VERBS:
            command: click.Command = importlib.import_module(VERBS[name][0]).command
            return command
        added = self._added().get(name)
        return _loaded(added) if added is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs: the built-in ones without importing any, those of packages by their own help."""
        added = {name: _about(entry) for name, entry in self._added().items()}
        with formatter.section("Verbs"):
            formatter.write_dl([(name, about) for name, (_, about) in VERBS.items()] + sorted(added.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest one."""
        if args and args[0] not in self.list_commands(ctx):
            from pipeline.problems import did_you_mean

            ctx.fail(f"No such verb `{args[0]}`. {did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    @staticmethod
    def _added() -> dict[str, EntryPoint]:
        entries = entry_points(group="pipeline")
        added = {e.name.removeprefix("verb."): e for e in entries if e.name.startswith("verb.")}
        return {name: entry for name, entry in added.items() if name not in VERBS}


def _import_structlog() -> None:
    """Import structlog, which verbs need, without rich.

    Its renderer for terminals imports all of rich to draw tracebacks that are plain text here, and
    that takes as long as importing pydantic.
    """
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        importlib.import_module("structlog")
        del sys.modules["rich"]


def _loaded(entry: EntryPoint) -> click.Command:
    """A package's verb. Raises `ClickException` that says whose it is and why it can't be had."""
    whose = f"`{entry.name}` of {entry.dist.name if entry.dist else 'a package'}"
    try:
        command = entry.load()
    except Exception as error:
        raise click.ClickException(f"{whose} fails to import: {type(error).__name__}: {error}") from None
    if not isinstance(command, click.Command):
        raise click.ClickException(f"{whose} is no click command but {type(command).__name__}.")
    return command


def _about(entry: EntryPoint) -> str:
    """What a package's verb says of itself, or where it is from if it can't be imported."""
    try:
        line: str = _loaded(entry).get_short_help_str(limit=200)
    except Exception:
        line = ""
    return line or f"From {entry.dist.name if entry.dist else 'a package'}."


@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llm-pipeline", prog_name="pipeline")
def cli() -> None:
    """A whole LLM gateway as one configuration."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line. Returns 0, 1 (the work failed), 2 (wrong input) or 130."""
    if COMPLETING in os.environ:
        importlib.import_module("pipeline.cli.completion")
    try:
        result = cli.main(list(arguments), prog_name="pipeline", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2 if isinstance(error, click.UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from pipeline.errors import APIError, RateLimited
    from pipeline.problems import ConfigError

    if isinstance(error, ConfigError):
        from pipeline.cli.output import print_problems

        print_problems(error.problems)
        return 2
    if isinstance(error, APIError):
        click.echo(f"Error: {error.message}", err=True)
        return 2 if error.status < 500 and not isinstance(error, RateLimited) else 1
    from pipeline.server.run import ServeError

    if isinstance(error, (ServeError, OSError, ValueError, ImportError)):
        click.echo(f"Error: {error}", err=True)
        return 1
    raise error

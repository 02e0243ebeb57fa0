"""`pipeline plugins`: what is installed, and what each plugin can be told."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.plugins import Loaded, Plugin

EPILOG = """\b
Examples:
  pipeline plugins
  pipeline plugins infer
  pipeline plugins infer.openai
  pipeline plugins --json | jq '.[] | select(.error)'"""


@click.command("plugins", epilog=EPILOG)
@click.argument("which", required=False)
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, config schemas included.")
def command(which: str | None, as_json: bool) -> int:
    """List the installed plugins: kind, name, package, config fields.

    WHICH is a kind, or a plugin `KIND.NAME` to see its fields. A plugin that can't be
    imported is listed with its error. This verb imports the plugins that it lists.
    """
    from pipeline.plugins import Registry
    from pipeline.problems import ConfigError, Problem, did_you_mean

    registry = Registry()
    chosen = [p for p in registry.plugins if which in (None, p.kind, p.id)]
    if which is not None and not chosen and which not in registry.kinds:
        known = [*registry.kinds, *(p.id for p in registry.plugins)]
        raise ConfigError([Problem("", f"there is no plugin or kind `{which}`.", did_you_mean(which, known))])
    described = [_describe(plugin) for plugin in chosen]
    if as_json:
        click.echo(json.dumps(described, indent=2))
    elif which is not None and "." in which:
        for one in described:
            _print_fields(one)
    else:
        _print_table(described, [which] if which else registry.kinds)
    return 0


def _describe(plugin: Plugin) -> dict[str, Any]:
    from pipeline.plugins import PluginError

    one: dict[str, Any] = {
        "kind": plugin.kind,
        "name": plugin.name,
        "distribution": plugin.distribution,
        "class": plugin.entry.value,
    }
    try:
        return {**one, **_describe_class(plugin.load())}
    except PluginError as error:
        return {**one, "error": str(error)}


def _describe_class(loaded: Loaded) -> dict[str, Any]:
    about = (loaded.cls.__doc__ or "").strip().partition("\n\n")[0]
    return {
        "about": " ".join(about.split()),
        "edges": [spec.name if spec.required else f"[{spec.name}]" for spec in loaded.edges.values()],
        "config": loaded.config.model_json_schema(),
    }


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _print_table(described: list[dict[str, Any]], kinds: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pipeline.kinds import KINDS

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("PLUGIN", "PACKAGE", "EDGES", "CONFIG"):
        table.add_column(heading, overflow="fold")
    for kind in kinds:
        about = KINDS[kind].about if kind in KINDS else "a kind of a plugin's own"
        table.add_row(f"[dim]{kind}: {about}[/dim]")
        for one in (d for d in described if d["kind"] == kind):
            name = f"  {one['kind']}.{one['name']}"
            if "error" in one:
                table.add_row(name, one["distribution"], "", f"[red]{escape(one['error'])}[/red]")
            else:
                fields = ", ".join(one["config"].get("properties", {}))
                table.add_row(name, one["distribution"], escape(" ".join(one["edges"])), fields)
    _console().print(table)


def _print_fields(one: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    console.print(f"[bold]{one['kind']}.{one['name']}[/bold]  {one['distribution']}  {one['class']}")
    if "error" in one:
        console.print(f"[red]{escape(one['error'])}[/red]")
        return
    console.print(escape(one["about"]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("FIELD", "TYPE", "DEFAULT", "MEANING"):
        table.add_column(heading, overflow="fold")
    required = one["config"].get("required", [])
    for name, field in one["config"].get("properties", {}).items():
        default = "required" if name in required else json.dumps(field.get("default"))
        table.add_row(name, _type(field), escape(default), escape(field.get("description", "")))
    console.print(table)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    return str(field.get("type", field.get("$ref", "any").rpartition("/")[2]))

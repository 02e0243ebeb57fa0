"""`pipeline new-plugin`: the beginning of a package with a plugin in it."""

from __future__ import annotations

import contextlib
import keyword
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli import plugin_templates as templates

if TYPE_CHECKING:
    from pipeline.plugins import Registry

NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


@click.command(
    "new-plugin",
    epilog="\b\nExamples:\n  pipeline new-plugin cache acme\n"
    "  pipeline new-plugin infer acme --into ~/src\n  pipeline new-plugin verb acme",
)
@click.argument("kind")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="The folder to make it in (.).")
def command(kind: str, name: str, into: Path) -> int:
    """Write a package with a plugin of KIND, called NAME: `KIND=NAME` once it is installed.

    A class with its `Config`, the entry point that registers it, and a test that sends a call
    through the graph. KIND is one of the framework's (`pipeline plugins` lists them), one of
    your own, or `verb` for a command `pipeline NAME`.
    """
    from pipeline.kinds import KINDS
    from pipeline.plugins import Registry

    for what, word in (("KIND", kind), ("NAME", name)):
        if not NAME.fullmatch(word) or keyword.iskeyword(word) or word == "none":
            raise click.UsageError(f"{what} `{word}`: expected a word such as `acme` or `acme_fast`.")
    if kind == "conf":
        raise click.UsageError("KIND `conf`: that is a package of YAML, named by an entry point alone.")
    registry = Registry()
    known = KINDS.get(kind)
    edges = known.edges if known is not None else "next"
    if "used by verbs" in edges or (known is None and kind != "verb" and _owned(registry, kind)):
        raise click.UsageError(_not_placed(registry, kind))
    folder = into / f"{name}-{kind}".replace("_", "-")
    if folder.exists():
        raise click.UsageError(f"`{folder}` is there already.")
    chosen = choice(kind, name, known is not None)
    files = written(edges, _words(kind, name), chosen)
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
        click.echo(folder / file)
    use = f"pipeline {name} --help" if kind == "verb" else f"pipeline check {shlex.join(chosen)}"
    click.echo(f"\nNext: pip install -e {folder} && pytest {folder} && {use}", err=True)
    return 0


def _words(kind: str, name: str) -> dict[str, str]:
    """What the templates have gaps for."""
    from pipeline.kinds import KINDS

    cls = "".join(word.capitalize() for word in f"{name}_{kind}".split("_"))
    return {
        "kind": kind,
        "name": name,
        "package": f"{name}-{kind}".replace("_", "-"),
        "module": f"{name}_{kind}",
        "cls": cls,
        "target": "command" if kind == "verb" else cls,
        "about": KINDS[kind].about if kind in KINDS else "a stage of a kind of its own",
    }


def choice(kind: str, name: str, known: bool) -> list[str]:
    """The overrides that choose it. A kind of one's own has no place in the graph yet."""
    if known:
        return [f"{kind}={name}"]
    return [f"+{kind}={name}", f"graph.entry={kind}", f"+graph.stages.{kind}.next=monitor"]


def written(edges: str, words: dict[str, str], chosen: list[str]) -> dict[str, str]:
    """The package's files and their text, for a kind with these usual edges."""
    test = templates.TEST
    if words["kind"] == "verb":
        module, test = templates.VERB, templates.VERB_TEST
    elif edges.startswith("none: an extension"):
        module = templates.STANDS_BESIDE
    elif edges == "none":
        module = templates.ANSWERS
    elif ":" in edges:
        module = templates.CHOOSES
    else:
        module = templates.CHECKS if "retry" in edges else templates.PASSES_ON
    lines = "\n".join(f'    "{override}",' for override in chosen)
    return {
        "pyproject.toml": templates.PROJECT.substitute(words),
        f"{words['module']}.py": module.substitute(words),
        f"test_{words['module']}.py": test.substitute(words, choice=lines),
    }


def _owned(registry: Registry, kind: str) -> bool:
    """Whether an installed package has given this word a meaning, by plugins that are no stages."""
    from pipeline.plugins import PluginError

    for name in registry.names(kind):
        with contextlib.suppress(PluginError):
            return not registry.find(f"{kind}.{name}").load().is_stage
    return False


def _not_placed(registry: Registry, kind: str) -> str:
    """Where to begin with a kind that no graph has: the contract is with those who use it."""
    modules = {plugin.entry.module for plugin in registry.plugins if plugin.kind == kind}
    sources = [(spec, found) for found in modules if (spec := find_spec(found)) and spec.origin]
    message = f"KIND `{kind}`: its plugins have no place in a graph, so there is nothing to begin with."
    if not sources:
        return message
    shortest = min(sources, key=lambda one: Path(str(one[0].origin)).stat().st_size)[1]
    return f"{message} See how `{shortest}` does it."

"""`pipeline keys`: issue, list, rotate and revoke keys, with or without a running server."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.keys.key import Key
    from pipeline_plugins.keys.store import Store

T = TypeVar("T")

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

LIMITS = {
    "rpm": ("requests_per_minute", int, "Requests per minute."),
    "tpm": ("tokens_per_minute", int, "Tokens per minute, prompt and answer."),
    "concurrent": ("concurrent", int, "Requests at the same time."),
    "usd-per-day": ("usd_per_day", float, "US dollars per day."),
    "usd-per-month": ("usd_per_month", float, "US dollars per month."),
}
"""Option, field of the key, type, help."""

EPILOG = """\b
Examples:
  pipeline keys create --name ci --owner alice
  pipeline keys create --name ci --owner alice --model small --rpm 60 --usd-per-day 5 --expires 30d
  KEY=$(pipeline keys create --name ci --owner alice --tag team=search)
  pipeline keys list --json keys=redis
  pipeline keys rotate 3f0c9a51b2d4 --grace 1h
  pipeline keys revoke 3f0c9a51b2d4"""


class Duration(click.ParamType[Any]):
    """Seconds, written as 90s, 15m, 12h, 30d or 2w."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds."""
        found = re.fullmatch(r"(\d{1,6})([smhdw])", value) if isinstance(value, str) else None
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 12h, 30d or 2w.", param, ctx)
        return int(found[1]) * UNITS[found[2]]


class Moment(click.ParamType[Any]):
    """A moment, as a duration from now, a date or an ISO 8601 time; in seconds since 1970."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds since 1970."""
        now = datetime.now().astimezone()
        try:
            when = datetime.fromisoformat(str(value)).astimezone().timestamp()
        except OverflowError:
            self.fail(f"{value!r} is before the year 1 or after 9999.", param, ctx)
        except ValueError:
            when = now.timestamp() + Duration().convert(value, param, ctx)
        if when <= now.timestamp():
            self.fail(f"{value!r} is in the past.", param, ctx)
        return int(when)


class Pair(click.ParamType[Any]):
    """NAME=VALUE."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Name and value."""
        name, sign, text = str(value).partition("=")
        if not (name and sign and text):
            self.fail(f"{value!r} is not of the form NAME=VALUE.", param, ctx)
        return name, text


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    for option, (field, type, about) in reversed(LIMITS.items()):
        command = click.option(f"--{option}", field, type=type, help=about)(command)
    return command


@click.group("keys", epilog=EPILOG)
def command() -> None:
    """Issue, list, rotate and revoke the keys that clients send.

    Works on the store that the configuration names (`keys=sqlite`, `keys=redis`), whether or
    not a server runs; servers know of it within two seconds.
    """


@command.command("create", epilog=EPILOG)
@click.option("--name", required=True, help="What the key is for.")
@click.option("--owner", required=True, help="Whom it is issued to.")
@click.option("--model", "models", multiple=True, help="A model it may use, by name or alias; all without.")
@_limits
@click.option("--expires", "expires_at", type=Moment(), help="When it ends: 30d, 2027-01-31.")
@click.option("--tag", "tags", type=Pair(), multiple=True, help="For reports: team=search.")
@click.option(
    "--cache", type=Pair(), multiple=True, help="What the key sets for caches: ttl=60, when=always."
)
@click.option("--json", "as_json", is_flag=True, help="The key and all that is kept of it, as JSON.")
@with_overrides
def create_key(overrides: tuple[str, ...], config: Path | None, as_json: bool, **given: Any) -> int:
    """Issue a key. It is printed once; only its digest is kept.

    On a terminal with a table, else alone, so that `KEY=$(pipeline keys create …)` works.
    """
    from pipeline_plugins.keys.key import KeySpec
    from pipeline_plugins.keys.store import create

    given["limits"] = {field: given.pop(field) for field, _, _ in LIMITS.values()}
    given["models"] = list(given["models"]) or None
    given["tags"] = dict(given["tags"])
    given["cache"] = {name: _scalar(text) for name, text in given["cache"]}
    spec = _checked(KeySpec, given)
    key, held = _with_store(overrides, config, lambda store: create(store, spec))
    _print_issued(key, held, as_json)
    return 0


@command.command(
    "list", epilog="\b\nExamples:\n  pipeline keys list\n  pipeline keys list --json keys=redis | jq ."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--all", "everything", is_flag=True, help="Revoked and expired keys, too.")
@with_overrides
def list_keys(overrides: tuple[str, ...], config: Path | None, as_json: bool, everything: bool) -> int:
    """List the keys, without their secrets. JSON has revoked and expired ones, too."""
    import json
    import time

    now = time.time()
    keys = _with_store(overrides, config, lambda store: store.all())
    if as_json:
        click.echo(json.dumps([key.shown(now) for key in keys], indent=2))
        return 0
    shown = [key for key in keys if everything or key.status(now) == "active"]
    _print_table(shown)
    if len(shown) < len(keys):
        click.echo(f"{len(keys) - len(shown)} more are revoked or expired; `--all` lists them.", err=True)
    return 0


@command.command("revoke", epilog="\b\nExamples:\n  pipeline keys revoke 3f0c9a51b2d4")
@click.argument("id")
@with_overrides
def revoke_key(overrides: tuple[str, ...], config: Path | None, id: str) -> int:
    """End the key ID for good. Servers refuse it within two seconds."""
    from pipeline_plugins.keys.store import revoke

    key = _with_store(overrides, config, lambda store: _known(store, id, revoke(store, id)))
    click.echo(f"revoked {key.id} ({key.name}, {key.owner})")
    return 0


@command.command("rotate", epilog="\b\nExamples:\n  NEW=$(pipeline keys rotate 3f0c9a51b2d4 --grace 1h)")
@click.argument("id")
@click.option("--grace", type=Duration(), default="0s", help="For how long the old secret stays good: 1h.")
@click.option("--json", "as_json", is_flag=True, help="The key and all that is kept of it, as JSON.")
@with_overrides
def rotate_key(overrides: tuple[str, ...], config: Path | None, id: str, grace: int, as_json: bool) -> int:
    """Give the key ID a new secret, printed once. Its id, limits and spend stay."""
    from pipeline_plugins.keys.store import rotate

    key, held = _with_store(overrides, config, lambda store: _known(store, id, rotate(store, id, grace)))
    _print_issued(key, held, as_json)
    return 0


def _with_store(overrides: tuple[str, ...], config: Path | None, work: Callable[[Store], Awaitable[T]]) -> T:
    import asyncio

    from pipeline import logging
    from pipeline.problems import ConfigError, Problem

    logging.configure()
    store = _store(overrides, config)

    async def run() -> T:
        try:
            await store.open()
        except ValueError as error:
            raise ConfigError([Problem("keys", f"can't be opened: {error}.")]) from None
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _store(overrides: tuple[str, ...], config: Path | None) -> Store:
    """The store that the configuration names; where it names none, the file's."""
    from pipeline.config import compose
    from pipeline.plan import check_model
    from pipeline.problems import ConfigError, Problem

    composed = compose(overrides, config=config)
    node = composed.values.get("keys") or {}
    if node.get("plugin") is None:
        click.echo("Note: clients are asked for keys by `pipeline serve keys=sqlite`.", err=True)
        composed = compose([*overrides, "keys=sqlite"], config=config)
        node = composed.values["keys"]
    plugin = composed.registry.find(node["plugin"]).load()
    problems: list[Problem] = []
    values = {name: value for name, value in node.items() if name != "plugin"}
    checked = check_model(plugin.config, values, "keys", problems)
    if problems:
        raise ConfigError(problems)
    store: Store | None = getattr(plugin.cls(config=checked), "store", None)
    if store is None:
        message = f"the keys of `{node['plugin']}` are not managed here."
        raise ConfigError([Problem("keys", message, "Use its own tool, or `keys=sqlite` or `keys=redis`.")])
    return store


async def _known(store: Store, id: str, work: Awaitable[T]) -> T:
    """The result of work on a key, or what to write instead of an id that is none."""
    from pipeline.problems import did_you_mean
    from pipeline_plugins.keys.store import NoSuchKey

    try:
        return await work
    except NoSuchKey:
        keys = await store.all()
    if id.startswith("sk-"):
        raise click.UsageError("Expected a key's id, as `pipeline keys list` shows it, not the key itself.")
    named = [key.id for key in keys if key.name == id]
    hint = did_you_mean(id, (key.id for key in keys)) if len(keys) <= 20 or not named else ""
    if named:
        hint = f"That is the name of {' and '.join(f'`{one}`' for one in named[:5])}."
    raise click.UsageError(f"There is no key `{id[:64]}`. {hint or 'See `pipeline keys list`.'}")


def _checked(model: Any, values: dict[str, Any]) -> Any:
    from pipeline.errors import InvalidRequest
    from pipeline.wire.check import check

    try:
        check(model, values)
    except InvalidRequest as error:
        options = {f"limits.{field}": option for option, (field, _, _) in LIMITS.items()}
        options |= {"models": "model", "tags": "tag", "expires_at": "expires"}
        field = re.split(r"\.|\[", error.param or "")[0]
        option = options.get(error.param or "") or options.get(field, field)
        raise click.UsageError(f"--{option}: {error.message}") from None
    return model(**values)


def _scalar(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _print_issued(key: Key, held: str, as_json: bool) -> None:
    import json
    import time

    if as_json:
        click.echo(json.dumps({**key.shown(time.time()), "value": held}, indent=2))
    elif sys.stdout.isatty():
        _print_table([key])
        click.echo(f"\n{click.style(held, bold=True)}\n\nThis is the only time that the key is shown.")
    else:
        click.echo(held)
        click.echo(f"The id of the key is {key.id}. It is not shown again.", err=True)


def _print_table(keys: list[Key]) -> None:
    import time

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    now = time.time()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("ID", "NAME", "OWNER", "STATUS", "MODELS", "LIMITS", "TAGS", "CREATED", "EXPIRES"):
        table.add_column(heading, overflow="fold")
    words = {field: option for option, (field, _, _) in LIMITS.items()}
    for key in keys:
        limits = ", ".join(
            f"{words[name]} {value:g}" for name, value in key.limits.model_dump(exclude_none=True).items()
        )
        cells = (
            key.id,
            key.name,
            key.owner,
            key.status(now),
            "all" if key.models is None else ", ".join(key.models),
            limits or "-",
            ", ".join(f"{name}={value}" for name, value in key.tags.items()) or "-",
            _day(key.created_at),
            _day(key.expires_at) if key.expires_at is not None else "never",
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")

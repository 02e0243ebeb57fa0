"""`pipeline collections`: list, describe, delete, restore and put in order, without a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.rag.documents import DocumentsConfig
    from pipeline_plugins.store.store import Store

T = TypeVar("T")
Work = Callable[["Store", "DocumentsConfig"], Awaitable[T]]

EPILOG = """\b
Examples:
  pipeline collections list
  pipeline collections describe handbook --owner alice
  pipeline collections versions handbook
  pipeline collections restore handbook 12
  pipeline collections compact handbook --forget
  pipeline collections delete handbook"""


@click.group("collections", epilog=EPILOG)
def command() -> None:
    """See to the collections of documents that `pipeline ingest` and clients fill.

    Works on the store that the configuration names, whether or not a server runs.
    """


def _with_owner(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--owner", default="anonymous", show_default=True, help="Whose.")(command)
    return with_overrides(command)


@command.command("list")
@_with_owner
def list_collections(overrides: tuple[str, ...], config: Path | None, owner: str) -> int:
    """List an owner's collections, a line of JSON each."""
    from pipeline_plugins.store.store import all_of

    async def work(store: Store, _: DocumentsConfig) -> list[dict[str, Any]]:
        return [found.shown() for found in await all_of(store, owner)]

    for one in _run(work, overrides, config):
        click.echo(json.dumps(one))
    return 0


@command.command("describe")
@click.argument("name")
@_with_owner
def describe(overrides: tuple[str, ...], config: Path | None, owner: str, name: str) -> int:
    """Say what a collection has, as JSON."""

    async def work(store: Store, _: DocumentsConfig) -> dict[str, Any]:
        return (await store.describe(owner, name)).shown()

    click.echo(json.dumps(_run(work, overrides, config), indent=2))
    return 0


@command.command("delete")
@click.argument("name")
@_with_owner
def delete(overrides: tuple[str, ...], config: Path | None, owner: str, name: str) -> int:
    """Delete a collection with all of its versions."""
    _run(lambda store, _: store.drop(owner, name), overrides, config)
    click.echo(f"The collection `{name}` is deleted.")
    return 0


@command.command("versions")
@click.argument("name")
@_with_owner
def list_versions(overrides: tuple[str, ...], config: Path | None, owner: str, name: str) -> int:
    """List the versions that can be restored, the latest first."""
    for version in _run(lambda store, _: store.versions(owner, name), overrides, config):
        click.echo(json.dumps(version.shown()))
    return 0


@command.command("restore")
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@_with_owner
def restore_version(
    overrides: tuple[str, ...], config: Path | None, owner: str, name: str, version: int
) -> int:
    """Make a collection what it was at a version; that is a new version."""
    _run(lambda store, _: store.restore(owner, name, version), overrides, config)
    click.echo(f"The collection `{name}` is again what it was at version {version}.")
    return 0


@command.command("compact")
@click.argument("name")
@click.option("--forget", is_flag=True, help="Remove all versions but those of the last ten minutes.")
@_with_owner
def compact(overrides: tuple[str, ...], config: Path | None, owner: str, name: str, forget: bool) -> int:
    """Put many small files into one, and what is new into the indexes."""

    def work(store: Store, settings: DocumentsConfig) -> Awaitable[None]:
        return store.tidy(owner, name, timedelta(days=0 if forget else settings.keep_days))

    _run(work, overrides, config)
    click.echo(f"The collection `{name}` is in order.")
    return 0


@command.command("index")
@click.argument("name")
@_with_owner
def build_index(overrides: tuple[str, ...], config: Path | None, owner: str, name: str) -> int:
    """Build the indexes of a collection anew."""
    _run(lambda store, _: store.rebuild(owner, name), overrides, config)
    click.echo(f"The indexes of `{name}` are new.")
    return 0


def _run(work: Work[T], overrides: tuple[str, ...], config: Path | None) -> T:
    """Do work on the store that the configuration names; the embedder is not needed for it."""
    import asyncio

    from pipeline_plugins.rag.configured import documents_of, store_at

    documents, _ = documents_of(list(overrides), config)

    async def run() -> T:
        await documents.store.open(None)
        try:
            return await work(documents.store, documents.config)
        finally:
            await documents.store.close()

    with store_at(documents.config.path):
        return asyncio.run(run())

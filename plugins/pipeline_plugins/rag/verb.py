"""`pipeline ingest`: files into a collection, with or without a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Document
    from pipeline_plugins.rag.documents import Documents, Ingested
    from pipeline_plugins.rag.read import File

BATCH = 64
BATCH_CHARACTERS = 256 * 1024
"""Documents and characters of one commit: what is read but not stored yet is all that a kill loses."""

EPILOG = """\b
Examples:
  pipeline ingest docs README.md
  pipeline ingest docs --collection handbook rag=hybrid rag.chunk_tokens=120
  pipeline ingest rows.jsonl --owner alice"""


@click.command("ingest", epilog=EPILOG)
@click.option("--collection", "name", help="Where to; `rag.collection` without, or `documents`.")
@click.option("--owner", default="anonymous", show_default=True, help="Whose: the owner of keys.")
@with_overrides
def command(overrides: tuple[str, ...], config: Path | None, name: str | None, owner: str) -> int:
    """Put files and folders into a collection: Markdown, text, HTML, JSON Lines.

    Arguments with `=` are overrides, all others paths. A document's id is its path from the
    folder above the one that is named: what has not changed is skipped, what has is replaced.
    Files that can't be read are told at the end, and the exit status is 1.
    """
    import asyncio

    from pipeline import logging
    from pipeline_plugins.rag.read import files

    logging.configure()
    paths = [Path(argument) for argument in overrides if _is_path(argument)]
    if not paths:
        raise click.UsageError("Expected a file or folder to ingest.")
    for path in paths:
        if not path.exists():
            raise click.UsageError(f"There is no file or folder `{path}`.")
    found = list(files(paths))
    documents, default = _documents([one for one in overrides if not _is_path(one)], config)
    collection = name or default or "documents"
    done, faults = asyncio.run(_ingest(documents, owner, collection, found))
    click.echo(
        f"{done.changed} documents in {done.chunks} chunks are new or changed in `{collection}`, "
        f"{done.unchanged} unchanged."
    )
    for path, reason in faults:
        click.echo(f"Not read: {path}: {reason}", err=True)
    return 1 if faults else 0


def _is_path(argument: str) -> bool:
    return "=" not in argument or Path(argument).exists()


def _documents(overrides: list[str], config: Path | None) -> tuple[Documents, str | None]:
    """The documents that the configuration names, and its collection; `rag=hybrid`'s where it names none."""
    from pipeline.config import compose
    from pipeline.plan import check_model
    from pipeline.problems import ConfigError, Problem

    composed = compose(overrides, config=config)
    node = composed.values.get("rag") or {}
    if node.get("plugin") is None:
        composed = compose([*overrides, "rag=hybrid"], config=config)
        node = composed.values["rag"]
    plugin = composed.registry.find(node["plugin"]).load()
    problems: list[Problem] = []
    values = {key: value for key, value in node.items() if key != "plugin"}
    checked: Any = check_model(plugin.config, values, "rag", problems)
    if problems:
        raise ConfigError(problems)
    make = getattr(plugin.cls, "documents_of", None)
    if make is None:
        message = f"the documents of `{node['plugin']}` are not put in here."
        raise ConfigError([Problem("rag", message, "Use its own tool, or `rag=hybrid`.")])
    return make(checked), checked.collection


async def _ingest(
    documents: Documents, owner: str, collection: str, found: list[File]
) -> tuple[Ingested, list[tuple[Path, str]]]:
    from pipeline.progress import track
    from pipeline_plugins.rag.documents import Ingested

    faults: list[tuple[Path, str]] = []
    done = Ingested(0, 0, 0)
    await documents.open()
    try:
        with track(f"ingesting into {collection}", total=len(found)) as step:
            for batch in _batches(found, faults, step):
                one = await documents.put(owner, collection, batch)
                done = Ingested(
                    done.changed + one.changed, done.unchanged + one.unchanged, done.chunks + one.chunks
                )
        if done.changed:
            await documents.store.tidy(owner, collection)
    finally:
        await documents.close()
    return done, faults


def _batches(found: list[File], faults: list[tuple[Path, str]], step: Any) -> Iterator[list[Document]]:
    """Documents to put in at once; of an id that comes twice in a run the second is a fault."""
    from pipeline_plugins.rag.read import read

    batch: list[Document] = []
    seen: set[str] = set()
    size = 0
    for file in found:
        try:
            for document in read(file):
                if document.id in seen:
                    faults.append((file.path, f"the id `{document.id}` came before in this run"))
                    continue
                seen.add(document.id)
                batch.append(document)
                size += len(document.text)
                if len(batch) >= BATCH or size >= BATCH_CHARACTERS:
                    yield batch
                    batch, size = [], 0
        except (OSError, ValueError) as error:
            faults.append((file.path, str(error)))
        step()
    if batch:
        yield batch

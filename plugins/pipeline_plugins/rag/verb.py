"""`pipeline ingest`: files and pages into a collection, with or without a running server."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import overrides as with_overrides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline_plugins.rag.documents import Documents, Ingested
    from pipeline_plugins.rag.reading import Fault

EPILOG = """\b
Examples:
  pipeline ingest docs README.md
  pipeline ingest docs --sync --collection handbook rag.chunk_tokens=120
  pipeline ingest 'reports/**/*.pdf' https://example.org/manual.html
  pipeline ingest rows.jsonl --owner alice rag.splitter=tokens
  pipeline ingest docs rag.ingest=ray
  pipeline ingest docs rag.embed.plugin=openai rag.embed.base_url=http://127.0.0.1:8080/v1"""


@click.command("ingest", epilog=EPILOG)
@click.option("--collection", "name", help="Where to; `rag.collection` without, or `documents`.")
@click.option("--owner", default="anonymous", show_default=True, help="Whose: the owner of keys.")
@click.option("--sync", is_flag=True, help="Delete the documents of files that are gone, too.")
@with_overrides
def command(overrides: tuple[str, ...], config: Path | None, name: str | None, owner: str, sync: bool) -> int:
    """Put files, folders, patterns and web pages into a collection.

    Arguments with `=` are overrides, all others what to read: Markdown, text, HTML, PDF, DOCX, CSV,
    JSON, JSON Lines and source code. A document's id is its path from the folder above the one that
    is named: what has not changed is skipped, what has is replaced. What can't be read is told at the
    end, and the exit status is 1.
    """
    import asyncio

    from pipeline import logging
    from pipeline_plugins.rag.configured import documents_of, store_at

    logging.configure()
    named = [argument for argument in overrides if _is_source(argument)]
    if not named:
        raise click.UsageError("Expected a file, a folder, a pattern or an address to ingest.")
    documents, default = documents_of([one for one in overrides if not _is_source(one)], config)
    collection = name or default or "documents"
    with store_at(documents.config.path):
        done, faults = asyncio.run(_ingest(documents, owner, collection, named, sync))
    gone = f", {done.deleted} deleted" if done.deleted else ""
    click.echo(
        f"{done.changed} documents in {done.chunks} chunks are new or changed in `{collection}`, "
        f"{done.unchanged} unchanged{gone}."
    )
    for fault in faults:
        what = fault.what if fault.what.isprintable() else repr(fault.what)
        click.echo(f"Not read: {what}: {fault.reason}", err=True)
    return 1 if faults else 0


def _is_source(argument: str) -> bool:
    from pipeline_plugins.rag.fetch import is_url

    return "=" not in argument or is_url(argument) or Path(argument).exists()


async def _ingest(
    documents: Documents, owner: str, collection: str, named: Sequence[str], sync: bool
) -> tuple[Ingested, list[Fault]]:
    from pipeline.progress import track
    from pipeline_plugins.rag.choice import below
    from pipeline_plugins.rag.ingest import ingestion_of
    from pipeline_plugins.rag.sources import source_of

    try:
        limit = documents.config.max_file_bytes
        sources = [source_of(argument, documents.readers, limit) for argument in named]
        total = sum(source.bytes(gone=sync) for source in sources)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from None
    keep = timedelta(days=documents.config.keep_days)
    with below("rag"):
        ingestion = ingestion_of(documents, owner, collection, sync=sync, keep=keep)
        await documents.open()
    try:
        with track(f"ingesting into {collection}", total=total, of_bytes=True) as step:
            done = await ingestion.run(sources, step)
    finally:
        await documents.close()
    return done, ingestion.reading.faults

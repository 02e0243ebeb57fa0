"""Documents that are open for a piece of work."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.rag.documents import Documents, DocumentsConfig


def within(folder: Path, work: Any, **config: Any) -> Any:
    """The result of work on documents that are opened for it."""
    pytest.importorskip("lancedb")

    async def run() -> Any:
        documents = Documents(DocumentsConfig(path=str(folder), **config))
        await documents.open()
        try:
            return await work(documents)
        finally:
            await documents.close()

    return asyncio.run(run())

"""`pipeline ingest`, killed at any moment: the collection stays readable, the next run finishes the work."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb")

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.documents import Documents, DocumentsConfig

DOCUMENTS = 150
OFTEN = """
import sys
from pipeline_plugins.rag import ingest, reading
from pipeline.cli.app import run
ingest.COMMIT_CHUNKS, ingest.TIDY_COMMITS, reading.BATCH = 12, 3, 6  # many moments at which to be killed
sys.exit(run(sys.argv[1:]))
"""


def write(folder: Path, generation: int) -> None:
    """Documents of several chunks: some that never change, some that do, some that come and go."""
    for number in range(DOCUMENTS):
        path = folder / f"{number}.md"
        if number % 10 == generation:
            path.unlink(missing_ok=True)
            continue
        version = generation if number % 3 else 0
        path.write_text(
            "\n\n".join(f"Part {part} of {number}, version {version}. " * 12 for part in range(3))
        )


def ingesting(folder: Path, store: Path) -> subprocess.Popen[bytes]:
    arguments = ["ingest", str(folder), "--sync", "--collection", "notes", f"rag.path={store}"]
    command = [sys.executable, "-c", OFTEN, *arguments, "rag.embed=echo", "rag.chunk_tokens=64"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)  # what it says of a failure is shown with it


def manifests(store: Path) -> set[str]:
    """What changes with every commit."""
    return {path.name for path in store.rglob("*.manifest")}


def content(store: Path) -> list[tuple[Any, ...]]:
    """All chunks of the collection, as a search reads them; none where it has not been made yet."""

    async def read() -> list[tuple[Any, ...]]:
        documents = Documents(DocumentsConfig(path=str(store), embed=Choice(plugin="echo")))
        await documents.open()
        try:
            if "notes" not in await documents.store.names("anonymous"):
                return []
            await documents.search("anonymous", "notes", "part", k=1)
            table = await documents.store.table("anonymous", "notes")
            rows = await table.query().select(["document", "ordinal", "start", "text"]).to_arrow()
            return sorted(tuple(row.values()) for row in rows.to_pylist())
        finally:
            await documents.close()

    return asyncio.run(read())


def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    folder, store = tmp_path / "docs", tmp_path / "store"
    folder.mkdir()
    moments = random.Random(int(time.time()))
    for generation in range(3):
        write(folder, generation)
        before = manifests(store)
        process = ingesting(folder, store)
        started = time.monotonic()
        while process.poll() is None and manifests(store) == before:
            assert time.monotonic() - started < 60
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = content(store)
        assert not [key for key, count in Counter(row[:2] for row in found).items() if count > 1]
    last = ingesting(folder, store)
    assert last.wait(timeout=120) == 0
    again = ingesting(folder, tmp_path / "anew")
    assert again.wait(timeout=120) == 0
    assert content(store) == content(tmp_path / "anew")
    assert {row[0] for row in content(store)} == {f"docs/{path.name}" for path in folder.iterdir()}

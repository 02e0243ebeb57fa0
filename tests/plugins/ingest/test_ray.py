"""`rag.ingest=ray`: the same chunks as in one process, and the same words about what is wrong."""

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import run

pytest.importorskip("lancedb")

from pipeline_plugins.store.lancedb import LanceDB

INGEST = "import sys; from pipeline.cli.app import run; sys.exit(run(['ingest', *sys.argv[1:]]))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(5):
        (docs / f"{number}.md").write_text(
            "".join(f"# Part {part}\nOf {number}. " * 20 + "\n" for part in range(4))
        )
    rows = "".join(f'{{"id": "r{n}", "text": "Row {n} of a file."}}\n' for n in range(200))
    (docs / "rows.jsonl").write_text(rows)
    (docs / "latin.txt").write_bytes(b"caf\xe9")
    return docs


def ingested(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", INGEST, "--collection", "notes", "rag.embed=echo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def chunks(path: Path) -> list[tuple[Any, ...]]:
    """All that is stored, in one order."""

    async def read() -> list[tuple[Any, ...]]:
        store = LanceDB(LanceDB.Config(path=str(path)))
        await store.open(None)
        table = await store.table("anonymous", "notes")
        rows = (await table.query().to_arrow()).to_pylist()
        await store.close()
        return sorted(tuple(map(str, row.values())) for row in rows)

    return asyncio.run(read())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra `ray`)")
def test_ray_stores_the_same_chunks_and_tells_the_same(folder: Path, tmp_path: Path) -> None:
    plain = ingested(str(folder), f"rag.path={tmp_path}/plain")
    far = ingested(str(folder), f"rag.path={tmp_path}/far", "rag.ingest=ray")
    assert (far.returncode, far.stdout.splitlines()[-1]) == (1, plain.stdout.splitlines()[-1])
    assert "latin.txt: no UTF-8 at byte 3" in far.stderr
    assert chunks(tmp_path / "far") == chunks(tmp_path / "plain")
    (folder / "latin.txt").unlink()
    (folder / "0.md").unlink()
    (folder / "rows.jsonl").write_text('{"id": "r0", "text": "Row 0 of a file."}\n')
    again = ingested(str(folder), "--sync", f"rag.path={tmp_path}/far", "rag.ingest=ray")
    told = "0 documents in 0 chunks are new or changed in `notes`, 5 unchanged, 200 deleted."
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, told)


def test_without_ray_it_is_said_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(["ingest", str(folder), "rag.embed=echo", f"rag.path={tmp_path}/rag", "rag.ingest=ray"]) == 2
    assert "extra `ray`" in capsys.readouterr().err


def test_what_is_known_is_known_whatever_its_fingerprint_ends_with() -> None:
    import numpy as np
    from pipeline_plugins.ingest import ray

    ids = [str(number) for number in range(2000)]
    fingerprints = [ray._fingerprint(id, "digest") for id in ids]
    assert any(one.endswith(b"\0") for one in fingerprints)
    cutter = object.__new__(ray.Cutter)
    cutter._known = np.sort(np.array(fingerprints, dtype="S16"))
    assert all(cutter._is_known(id, "digest") for id in ids)
    assert not any(cutter._is_known(id, "another") for id in ids)

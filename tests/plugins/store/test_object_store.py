"""Collections in a bucket, by moto's S3 server: `pip install 'moto[server]'` in an environment of its own.

That is more than sixty packages, so none of them is locked here: what runs is a `moto_server` on the path.
"""

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipeline_plugins.rag.chunk import Chunk, Document, Piece
from pipeline_plugins.store.lancedb import LanceDB

from pipeline.cli.app import run

MOTO = shutil.which("moto_server")

pytestmark = pytest.mark.skipif(MOTO is None, reason="there is no `moto_server` on the path")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server with a bucket `docs`."""
    assert MOTO is not None
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as lines:
        process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", "0"], stdout=lines, stderr=lines)
    try:
        while (found := re.search(r"http://127\S+", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        urllib.request.urlopen(urllib.request.Request(f"{found[0]}/docs", method="PUT")).close()
        yield found[0]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's address, with what is needed to reach it in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return f"{server}/docs"


def test_a_collection_in_a_bucket_does_what_one_in_a_folder_does(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("a", "b", "c"):
        (notes / f"{name}.md").write_text(f"# Note {name}\n\nThe pump {name} runs.")
    where = "rag.path=s3://docs/rag"

    def done(*arguments: str) -> str:
        assert run([*arguments, where]) == 0
        return capsys.readouterr().out

    def described() -> dict[str, int]:
        return dict(json.loads(done("collections", "describe", "notes")))

    ingest = ("ingest", "notes", "--sync", "--collection", "notes", "rag.embed=echo")
    assert "3 documents in 3 chunks are new" in done(*ingest)
    before = described()["version"]
    assert "0 documents in 0 chunks are new or changed in `notes`, 3 unchanged" in done(*ingest)
    assert described()["version"] == before
    (notes / "a.md").write_text("Another pump.")
    (notes / "b.md").unlink()
    assert "1 documents in 1 chunks are new or changed in `notes`, 1 unchanged, 1 deleted" in done(*ingest)
    assert described()["documents"] == 2
    done("collections", "restore", "notes", str(before))
    assert described()["documents"] == 3
    done("collections", "index", "notes")
    done("collections", "compact", "notes", "--forget")
    assert described()["chunks"] == 3
    assert "<Key>" in urllib.request.urlopen(f"{bucket}?list-type=2&prefix=rag/").read().decode()
    done("collections", "delete", "notes")
    assert "<Key>" not in urllib.request.urlopen(f"{bucket}?list-type=2&prefix=rag/").read().decode()


def test_two_writers_of_a_bucket_lose_nothing_of_each_other(bucket: str) -> None:
    def chunks(id: str, count: int, digest: str) -> list[Chunk]:
        windows = np.eye(8, dtype=np.float32)[:1]
        return [Chunk(Document(id, "x" * count), Piece(at, at + 1), windows, digest) for at in range(count)]

    async def write(store: LanceDB, writer: str) -> None:
        for count in (3, 1, 4):
            new = {id: chunks(id, count, f"{writer}{count}") for id in (writer, "both")}
            await store.replace("alice", "notes", new)

    async def work() -> Counter[str]:
        stores = [LanceDB(LanceDB.Config(path="s3://docs/two")) for _ in range(2)]
        await asyncio.gather(*(store.open("echo") for store in stores))
        await asyncio.gather(*(store.create("alice", "notes", 8) for store in stores))
        await asyncio.gather(*map(write, stores, "ab"))
        table = await stores[0].table("alice", "notes")
        found = await table.query().where("document != ''").to_arrow()
        assert len({row["digest"] for row in found.to_pylist() if row["document"] == "both"}) == 1
        return Counter(found.column("document").to_pylist())

    assert asyncio.run(work()) == {"a": 4, "b": 4, "both": 4}

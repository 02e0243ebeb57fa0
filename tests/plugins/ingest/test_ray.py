"""`rag.ingest=ray`: the same chunks as in one process, and the same words about what is wrong."""

import asyncio
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.rag.choice import Choice
from pydantic import ValidationError

from pipeline.cli.app import run
from pipeline.errors import UpstreamFailed
from pipeline.problems import ConfigError

pytest.importorskip("lancedb")
pytest.importorskip("numpy")

import numpy as np
from pipeline_plugins.ingest import ray, ray_cluster
from pipeline_plugins.ingest.ray import Ray
from pipeline_plugins.rag.documents import DocumentsConfig
from pipeline_plugins.read.reader import File
from pipeline_plugins.store.lancedb import LanceDB

INGEST = "import sys; from pipeline.cli.app import run; sys.exit(run(['ingest', *sys.argv[1:]]))"


with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra `ray`)"
)


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


@with_ray
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
    ids = [str(number) for number in range(2000)]
    fingerprints = [ray._fingerprint(id, "digest") for id in ids]
    assert any(one.endswith(b"\0") for one in fingerprints)
    cutter = object.__new__(ray.Cutter)
    cutter._known = np.sort(np.array(fingerprints, dtype="S16"))
    assert all(cutter._is_known(id, "digest") for id in ids)
    assert not any(cutter._is_known(id, "another") for id in ids)


CLUSTER = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
node = {"object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
for gpus in json.loads(sys.argv[1]):
    cluster.add_node(num_cpus=1, num_gpus=gpus, **node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def cluster(*gpus: int) -> Iterator[str]:
    """The address of a cluster with a node of one core for each number, which is of its GPUs."""
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER, json.dumps(gpus)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


@with_ray
def test_a_cluster_cuts_and_embeds_and_the_driver_alone_stores(folder: Path, tmp_path: Path) -> None:
    plain = ingested(str(folder), f"rag.path={tmp_path}/plain")
    run = [str(folder), f"rag.path={tmp_path}/far", "rag.ingest.plugin=ray"]
    with cluster(0, 0) as address:
        far = ingested(
            *run, f"rag.ingest.address={address}", "rag.ingest.cutters=2", "rag.ingest.embedders=2"
        )
        assert (far.returncode, far.stdout) == (1, plain.stdout)
        assert chunks(tmp_path / "far") == chunks(tmp_path / "plain")
        few = ingested(*run, f"rag.ingest.address={address}", "rag.ingest.embedders=4")
        assert few.returncode == 2
        assert "Ray has 2 cores, too few for 5 workers with 0.5 each" in few.stderr
        none = ingested(*run, f"rag.ingest.address={address}", "rag.ingest.gpus=1")
        assert none.returncode == 2
        assert "rag.ingest.gpus" in none.stderr
        assert "Ray has 0 GPUs" in none.stderr
        other = ingested(*run, f"rag.ingest.address={address.rpartition(':')[0]}:{unused()}")
        assert (other.returncode, "rag.ingest.address" in other.stderr) == (2, True)


@with_ray
def test_embedders_share_a_gpu_where_one_is(folder: Path, tmp_path: Path) -> None:
    run = [str(folder), f"rag.path={tmp_path}/far", "rag.ingest.plugin=ray", "rag.ingest.gpus=0.5"]
    with cluster(0, 1) as address:
        done = ingested(*run, f"rag.ingest.address={address}", "rag.ingest.embedders=2")
        assert (done.returncode, "205 documents" in done.stdout) == (1, True)
        many = ingested(*run, f"rag.ingest.address={address}", "rag.ingest.embedders=3")
        assert (many.returncode, "`embedders=3` with 0.5 each" in many.stderr) == (2, True)


def unused() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "address", ["somewhere", "http://head:6379", "head:0", "head:99999", "ray://head", ""]
)
def test_what_is_no_address_of_a_cluster_is_told(address: str) -> None:
    with pytest.raises(ValidationError, match="ray://HOST:10001"):
        Ray.Config(address=address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_listens_is_told_before_ray_is_asked(form: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ray_cluster._reachable(form.format(unused()))
    (problem,) = raised.value.problems
    assert (problem.path, "refused" in problem.message) == ("ingest.address", True)


def test_a_machine_outside_of_a_cluster_is_told_how_to_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster, "_own_clusters", list)
        for given in (address, "auto"):
            with pytest.raises(ConfigError) as raised:
                ray_cluster._reachable(given)
            assert "ray://" in raised.value.problems[0].hint
        assert ray_cluster._reachable(f"ray://{address}") == f"ray://{address}"
        monkeypatch.setattr(ray_cluster, "_own_clusters", lambda: [address])
        assert ray_cluster._reachable("auto") == address
        assert ray_cluster._reachable(f"localhost:{head.getsockname()[1]}")
        monkeypatch.setenv("RAY_ADDRESS", "http://head")
        with pytest.raises(ConfigError, match="RAY_ADDRESS"):
            ray_cluster._reachable("auto")


@pytest.mark.parametrize(("gpus", "well"), [(0, True), (0.25, True), (1, True), (2, True), (1.5, False)])
def test_a_worker_has_a_share_of_a_gpu_or_whole_ones(gpus: float, well: bool) -> None:
    if well:
        assert Ray.Config(gpus=gpus).gpus == gpus
    else:
        with pytest.raises(ValidationError, match=r"such as 0\.5"):
            Ray.Config(gpus=gpus)


def part_of(cutter: ray.Cutter, file: File) -> ray.Part:
    """The only part that a cutter, which is done then, makes of a file."""
    (row,) = cutter({"file": np.array([file], dtype=object)})
    cutter.loop.close()
    part: ray.Part = row["part"][0]
    return part


def test_a_file_that_one_machine_lacks_is_told_with_the_machine(tmp_path: Path) -> None:
    config = DocumentsConfig(path=str(tmp_path / "rag"), embed=Choice(plugin="echo"))
    cutter = ray.Cutter(config, "anonymous", np.array([], dtype="S16"))
    part = part_of(cutter, File(tmp_path / "gone.md", "docs/gone.md", ".md"))
    assert part.unread
    assert f"`{socket.gethostname()}`" in part.faults[0].reason
    assert not (tmp_path / "rag").exists()  # who cuts has no store


def test_a_worker_that_cannot_start_says_so_with_its_machine(tmp_path: Path) -> None:
    config = DocumentsConfig(embed=Choice(plugin="minilm", model="package:not-here"))
    cutter = ray.Cutter(config, "anonymous", np.array([], dtype="S16"))
    failure = part_of(cutter, File(tmp_path / "a.md", "docs/a.md", ".md")).failure
    assert isinstance(failure, UpstreamFailed)
    assert f"A worker on `{socket.gethostname()}` can't start" in failure.message
    assert "not-here" in failure.message


@pytest.mark.parametrize(
    ("told", "device", "given"),
    [
        ({}, "cpu", "cpu"),
        ({"device": "cuda"}, "cpu", "cpu"),
        ({}, "cuda", "cuda"),
        ({"device": "auto"}, "cuda", "cuda"),
        ({"device": "cpu"}, "cuda", "cpu"),
    ],
)
def test_who_cuts_takes_no_gpu_and_who_was_given_one_goes_on_by_nothing_else(
    told: dict[str, str], device: str, given: str
) -> None:
    config = DocumentsConfig(embed=Choice(plugin="minilm", **told))
    assert ray._embedding_on(config, device).embed.model_extra == {"device": given}
    assert ray._embedding_on(DocumentsConfig(embed=Choice(plugin="echo")), device).embed.model_extra == {}


class _Cluster:
    """A Ray that has these machines."""

    def __init__(self, *machines: dict[str, float]) -> None:
        self.nodes = lambda: [{"Alive": True, "Resources": machine} for machine in machines]


@pytest.mark.parametrize(
    ("embedders", "gpus", "told"),
    [
        (2, 1, None),
        (3, 1, "ingest.gpus"),
        (4, 0.5, None),
        (3, 0.75, "ingest.gpus"),
        (1, 2, "ingest.gpus"),
        (15, 0, None),
        (16, 0, "ingest.embedders"),
    ],
)
def test_workers_that_no_machine_has_room_for_are_told(
    embedders: int, gpus: float, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 times half a core, two GPUs on machines of their own, one GPU where there are no cores
    machines = ({"CPU": 6.0}, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0})
    monkeypatch.setitem(sys.modules, "ray", _Cluster(*machines))
    need = {"cutters": 1, "embedders": embedders, "cpus": 0.5, "gpus": gpus}
    if told is None:
        ray_cluster.require_room(**need)
    else:
        with pytest.raises(ConfigError) as raised:
            ray_cluster.require_room(**need)
        assert raised.value.problems[0].path == told

"""The wheel, and a third party's wheel beside it, as a user has them: in a fresh environment."""

import fcntl
import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ACME = Path(__file__).parent / "acme"
ECHO = ("infer=echo", "infer@embed=echo", "embed.name=e")


@dataclass
class Installed:
    """A virtual environment that has both wheels; what else they need comes from this one."""

    python: Path
    wheel: Path
    elsewhere: Path

    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(self.elsewhere), "LANG": "C.UTF-8"}

    def run(self, *arguments: str, python: bool = False) -> subprocess.CompletedProcess[str]:
        command = (
            [self.python, "-I", *arguments] if python else [self.python.with_name("pipeline"), *arguments]
        )
        return subprocess.run(
            [*map(str, command)],
            cwd=self.elsewhere,
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built once, also where several processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (shared / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = shared / "wheel"
        if not (home / "done").exists():
            build(home)
            (home / "done").touch()
    (wheel,) = (home / "wheels").glob("llm_pipeline-*.whl")
    return Installed(home / "venv" / "bin" / "python", wheel, home / "elsewhere")


def build(home: Path) -> None:
    """Build both wheels and install them, without the network."""
    (home / "elsewhere").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    build_options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", str(home / "wheels")]
    check([*pip, "wheel", *build_options, str(ROOT), str(ACME)])
    check([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")])
    wheels = sorted(map(str, (home / "wheels").glob("*.whl")))
    python = str(home / "venv" / "bin" / "python")
    check([*pip, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", *wheels])
    borrow_dependencies(Path(python))


def borrow_dependencies(python: Path) -> None:
    """Link this environment's packages into the fresh one, all but the project's editable install."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    there = python.parent.parent / "lib" / version / "site-packages"
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        editable = "llm_pipeline" in package.name
        if not editable and package.suffix != ".pth" and not (there / package.name).exists():
            (there / package.name).symlink_to(package)


def check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def served(installed: Installed) -> Iterator[str]:
    """The address of a server that answers through the third party's stages."""
    with serving(installed, "graph=audited", "cache=acme", "cache.ttl=5") as url:
        yield url


@contextmanager
def serving(installed: Installed, *overrides: str) -> Iterator[str]:
    command = [str(installed.python.with_name("pipeline")), "serve", *ECHO, *overrides, "server.port=0"]
    with subprocess.Popen(
        command, cwd=installed.elsewhere, env=installed.env(), stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            said = ""
            for line in server.stderr:
                said += line
                if '"ready"' in line:
                    break
            found = re.search(r'"url":"([^"]+)"', said)
            assert found is not None, said
            yield found.group(1)
        finally:
            server.terminate()
            server.communicate(timeout=20)


def post(url: str, body: dict[str, Any]) -> tuple[Any, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply), reply.headers


def ask(url: str, text: str) -> tuple[str, str]:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    answer, headers = post(f"{url}/v1/chat/completions", body)
    return answer["choices"][0]["message"]["content"], headers["x-pipeline-cache"]


def test_the_wheel_has_what_is_needed_and_no_generic_names(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"pipeline", "pipeline_plugins"}
    needed = ["conf/pipeline.yaml", "conf/graph/default.yaml", "py.typed", "server/docs.html"]
    assert {f"pipeline/{name}" for name in needed} <= set(names)
    assert "pipeline_plugins/py.typed" in names
    unwanted = re.compile(r"\.pth$|\.pyc$|(^|/)tests?(/|$)|(^|/)benchmarks(/|$)")
    assert not [name for name in names if unwanted.search(name)]


def test_the_code_comes_from_the_wheels(installed: Installed) -> None:
    code = "import pipeline, pipeline_plugins, acme_cache\n"
    code += "print(*(m.__file__ for m in (pipeline, pipeline_plugins, acme_cache)))"
    done = installed.run("-c", code, python=True)
    home = installed.python.parent.parent
    assert [Path(file).is_relative_to(home) for file in done.stdout.split()] == [True] * 3, done.stderr


def test_editable_and_wheel_compose_the_same_values(installed: Installed) -> None:
    arguments = ["config", "--no-origin", *ECHO]
    here = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    there = installed.run(*arguments)
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout


def test_a_class_without_yaml_is_selected_and_told_its_values(installed: Installed) -> None:
    done = installed.run("check", "cache=acme", "cache.ttl=5", *ECHO)
    assert (done.returncode, done.stdout[:4]) == (0, "ok: "), done.stderr
    assert "cache" in done.stdout.partition(";")[0]


def test_presets_of_a_package_are_found(installed: Installed) -> None:
    done = installed.run("config", "--key", "cache", "cache=acme_fast", *ECHO)
    assert done.returncode == 0, done.stderr
    origin = "# cache/acme_fast.yaml of acme-cache 1.2.3"
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [f"plugin: cache.acme {origin}", f"ttl: 1.5 {origin}", f"size: 10 {origin}"]


def test_a_package_may_ship_a_graph_with_a_kind_of_its_own(installed: Installed) -> None:
    done = installed.run("graph", "graph=audited", "cache=acme_fast", *ECHO)
    assert done.stdout.splitlines()[:2] == ["audit  [audit.acme]", "└─ next -> cache  [cache.acme]"], (
        done.stderr
    )


def test_a_mistake_in_a_foreign_stages_config_is_told(installed: Installed) -> None:
    done = installed.run("check", "cache=acme", "cache.tll=5", "cache.size=0", *ECHO)
    assert done.returncode == 2
    assert "Did you mean `ttl`?" in done.stderr
    assert "greater than or equal to 1, got 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_foreign_plugins_are_listed_with_their_distribution(installed: Installed) -> None:
    listed = json.loads(installed.run("plugins", "--json").stdout)
    found = {f"{one['kind']}.{one['name']}": one for one in listed}
    assert found["cache.acme"]["distribution"] == "acme-cache 1.2.3"
    assert (
        found["cache.acme"]["config"]["properties"]["ttl"]["description"] == "Seconds that a reply is kept."
    )
    assert found["audit.acme"]["edges"] == ["next"]
    assert "No module named 'no_such_library'" in found["infer.acme_broken"]["error"]
    assert "cache.acme" not in {one for one in found if one.startswith(("conf.", "verb."))}


def test_a_package_may_add_a_verb(installed: Installed) -> None:
    done = installed.run("acme", "hello")
    assert (done.returncode, done.stdout) == (0, "acme says hello\n")
    assert re.search(r"acme +Say WORD\.", installed.run("--help").stdout)


def test_only_chosen_plugins_are_imported(installed: Installed) -> None:
    code = (
        "import sys; from pipeline.config import compose; "
        f"compose({list(ECHO)!r}).plan(); "
        "print([m for m in sys.modules if m.startswith('acme_cache')])"
    )
    done = installed.run("-c", code, python=True)
    assert done.stdout == "[]\n", done.stderr


def test_requests_are_answered_through_foreign_stages(served: str) -> None:
    assert ask(served, "hello") == ("hello", "miss")
    assert ask(served, "hello") == ("hello", "hit")
    assert ask(served, "bye") == ("bye", "miss")
    with urllib.request.urlopen(f"{served}/acme/audit", timeout=10) as reply:
        assert json.load(reply) == {"calls": 3}


def test_documents_are_kept_in_a_foreign_store(installed: Installed) -> None:
    with serving(installed, "rag=hybrid", "rag.embed=echo", "rag.store=acme") as url:
        documents = [{"id": "cats", "text": "Cats sleep."}, {"id": "tax", "text": "Tax is due in April."}]
        post(f"{url}/v1/rag/collections/notes/documents", {"documents": documents})
        search = {"query": "When is tax due?", "collection": "notes", "mode": "fulltext"}
        found, _ = post(f"{url}/v1/rag/search", search)
        assert [one["document"] for one in found["data"]] == ["tax"]


@pytest.mark.parametrize("stage", ["cache", "audit"])
def test_a_stage_takes_about_thirty_lines(stage: str) -> None:
    lines = (ACME / "acme_cache" / f"{stage}.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 35

"""`pipeline new-plugin`: what it writes works as it stands."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.new_plugin import command
from pipeline.kinds import KINDS


def made(into: Path, kind: str, name: str = "acme") -> Path:
    done = CliRunner().invoke(command, [kind, name, "--into", str(into)])
    assert done.exit_code == 0, done.output
    return into / f"{name}-{kind}"


def install(folder: Path) -> None:
    """What an installer leaves of the package's metadata."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    entries = project["entry-points"]["pipeline"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[pipeline]", *lines]))


@pytest.mark.parametrize("kind", ["cache", "infer", "ledger", "route"])
def test_its_own_test_passes_once_it_is_installed(kind: str, tmp_path: Path) -> None:
    folder = made(tmp_path, kind)
    install(folder)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if "verbs" not in v.edges] + ["audit"])
def test_what_is_written_for_each_kind_is_python(kind: str, tmp_path: Path) -> None:
    for file in made(tmp_path, kind, "acme_fast").glob("*.py"):
        compile(file.read_text(), str(file), "exec")


@pytest.mark.parametrize(
    "words", [["Cache", "acme"], ["cache", "class"], ["cache", "none"], ["score", "acme"]]
)
def test_words_that_can_be_no_plugin_are_refused(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [*words, "--into", str(tmp_path)])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    folder = made(tmp_path, "cache")
    (folder / "acme_cache.py").write_text("mine")
    done = CliRunner().invoke(command, ["cache", "acme", "--into", str(tmp_path)])
    assert done.exit_code == 2
    assert (folder / "acme_cache.py").read_text() == "mine"

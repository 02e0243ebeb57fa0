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


@pytest.mark.parametrize("kind", ["audit", "cache", "infer", "ledger", "route", "validate", "verb"])
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


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if "verbs" not in v.edges] + ["audit", "verb"])
def test_what_is_written_for_each_kind_is_as_ruff_would_have_it(kind: str, tmp_path: Path) -> None:
    made(tmp_path, kind, "acme")
    for check in (["check", "--select=E,F,I,B,UP,RUF,ANN"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--isolated", "--no-cache", "."],
            cwd=tmp_path / f"acme-{kind}",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_what_is_said_to_try_next_puts_a_kind_of_ones_own_into_the_graph(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["audit", "fast", "--into", str(tmp_path)])
    assert "pipeline check +audit=fast graph.entry=audit +graph.stages.audit.next=monitor" in done.stderr


def test_for_a_kind_that_no_graph_has_a_plugin_to_learn_from_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["read", "acme", "--into", str(tmp_path)])
    assert "no place in a graph" in done.stderr
    assert "pipeline_plugins.read.text" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["Cache", "acme"],
        ["cache", "class"],
        ["cache", "none"],
        ["score", "acme"],
        ["read", "acme"],
        ["conf", "acme"],
    ],
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

"""The commands in README and docs: their overrides are those that there are."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import compose

ROOT = Path(__file__).parents[1]

WRITTEN = re.compile(r"^ +pipeline serve (.+)$|`pipeline serve ([^`]+)`", re.MULTILINE)
FILE = re.compile(r"`deploy/([a-z/]+\.yaml)`:\n\n```yaml\n(.*?)```", re.DOTALL)
"""A file that is shown, with its place in the reader's folder."""

OWN = ("-c", "graph=mine", "cache=acme")
"""What a command has that is about files or plugins of the reader's own."""


def served() -> list[tuple[str, ...]]:
    """Overrides of all `pipeline serve` that are shown, each once."""
    found: dict[tuple[str, ...], None] = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        for command in WRITTEN.finditer(text):
            words = tuple(shlex.split(command[1] or command[2], comments=True))
            if words and not any(word in OWN for word in words):
                found[words] = None
    return list(found)


def test_commands_are_found() -> None:
    assert len(served()) > 40


@pytest.mark.parametrize("overrides", served(), ids=" ".join)
def test_a_command_that_is_shown_composes(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"\$\{oc\.env:(\w+)\}", " ".join(overrides)):
        monkeypatch.setenv(name, "sk-a-key-of-the-environment")
    compose(overrides).plan()


@pytest.mark.parametrize(("config", "overrides"), [("", ["graph=two"]), ("production.yaml", [])])
def test_files_of_a_folder_that_the_readme_shows_compose(
    config: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, text in FILE.findall((ROOT / "README.md").read_text()):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for name in re.findall(r"\$\{oc\.env:(\w+)\}", text):
            monkeypatch.setenv(
                name, "redis://127.0.0.1:6379/0" if name == "REDIS_URL" else "sk-an-environments-key"
            )
    compose(overrides, config=tmp_path / config).plan()

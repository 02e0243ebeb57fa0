"""The commands in README and docs: their overrides are those that there are."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import compose

ROOT = Path(__file__).parents[1]

WRITTEN = re.compile(r"^ +pipeline serve (.+)$|`pipeline serve ([^`]+)`", re.MULTILINE)
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

"""The benchmarks, as far as they can be seen to work without being run."""

import importlib
from pathlib import Path

import pytest

MODULES = {path.stem for path in (Path(__file__).parent.parent / "benchmarks").glob("*.py")}
APART = {"__main__", "gptcache_peer"}
"""The command itself, and what an interpreter that has GPTCache runs."""


@pytest.mark.parametrize("name", sorted(MODULES - APART))
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")

"""Data sets and runs for tests, with the echo stage."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from pipeline_plugins.evaluate.prepare import prepare
from pipeline_plugins.evaluate.run import Done, Runner

from pipeline.cli.app import run

ECHO = ["infer=echo", "infer@embed=none", "monitor=none", "price=none"]


def rows(path: Path, made: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def questions(folder: Path, count: int = 20, *, right: int = 2) -> Path:
    """Questions of which every `right`-th is expected to be echoed."""
    made = (
        {"id": f"q{n}", "prompt": f"question {n}", "expected": f"question {n}" if n % right == 0 else "no"}
        for n in range(count)
    )
    return rows(folder / "questions.jsonl", made)


def evaluate(data: Path, out: Path, *overrides: str) -> Done:
    prepared = prepare([*ECHO, f"data={data}", *overrides])
    with Runner() as runner:
        return runner.run(prepared, out)


def command(*arguments: object) -> int:
    """`pipeline …` with the echo stage, in this process."""
    return run([*map(str, arguments), *ECHO])


def examples(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    found: list[dict[str, Any]] = parquet.read_table(folder / "examples.parquet").to_pylist()
    return found


def read(path: Path) -> Any:
    return orjson.loads(path.read_bytes())

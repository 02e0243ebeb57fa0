"""Labelled traffic for `pipeline route train`: prompts, and how well each target answered them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = "_right"
WORDS = {"true": 1.0, "false": 0.0}
LAYOUT = f"Expected `prompt` and, for each of two or more targets, `NAME{SUFFIX}`."
LEAST_ROWS = 50


class DataError(ValueError):
    """The data can't be learned from; the message says where and why."""


@dataclass(slots=True, frozen=True)
class Labelled:
    """Rows: `right[i][k]` in [0, 1] says how well target `k` answered `prompts[i]`.

    `columns` has the other columns, `sha256` is of the file.
    """

    prompts: list[str]
    targets: list[str]
    right: list[list[float]]
    columns: dict[str, list[str]]
    sha256: str


def read(path: Path) -> Labelled:
    """Read a CSV or JSONL file, gzipped or not. Raises `DataError` that says which row is wrong."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except OSError as error:
        raise _problem(path, f"it can't be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, EOFError, zlib.error):
        raise _problem(path, "it is not whole UTF-8 text, gzipped or not.") from None
    name = path.name.removesuffix(".gz")
    if not name.endswith((".csv", ".jsonl")):
        raise _problem(path, "its name must end in `.csv` or `.jsonl`, with or without `.gz`.")
    rows = list(_csv(path, text) if name.endswith(".csv") else _jsonl(path, text))
    if not rows:
        raise _problem(path, "it has no rows.", LAYOUT)
    names = dict.fromkeys(column for _, row in rows for column in row)
    targets = [c.removesuffix(SUFFIX) for c in names if c.endswith(SUFFIX) and c != SUFFIX]
    if "prompt" not in names or len(targets) < 2:
        raise _problem(path, f"its columns are {', '.join(f'`{c}`' for c in names)}.", LAYOUT)
    if len(rows) < LEAST_ROWS:
        raise _problem(
            path, f"it has {len(rows)} rows.", f"At least {LEAST_ROWS} are needed, better thousands."
        )
    prompts = [_prompt(path, at, row) for at, row in rows]
    right = [
        [_score(path, at, target + SUFFIX, row.get(target + SUFFIX)) for target in targets]
        for at, row in rows
    ]
    others = {
        c: [str(row.get(c, "")) for _, row in rows] for c in names if c != "prompt" and not c.endswith(SUFFIX)
    }
    return Labelled(prompts, targets, right, others, hashlib.sha256(raw).hexdigest())


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(1 << 27)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = reader.fieldnames or ()
        if twice := {name for name in names if list(names).count(name) > 1}:
            raise _problem(path, f"two columns are called `{min(twice)}`.")
        for row in reader:
            if None in row:
                raise _problem(path, f"line {reader.line_num} has more fields than the header.")
            yield reader.line_num, row
    except csv.Error as error:
        raise _problem(path, f"line {reader.line_num}: {error}.") from None


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for at, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _problem(path, f"line {at} is no JSON: {error.msg}.") from None
        except (ValueError, RecursionError):
            raise _problem(
                path, f"line {at} has a number that is too long, or is nested too deeply."
            ) from None
        if not isinstance(row, dict):
            raise _problem(path, f"line {at} is no JSON object.")
        yield at, row


def _prompt(path: Path, at: int, row: dict[str, Any]) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        empty = prompt is None or isinstance(prompt, str)
        raise _problem(path, f"line {at}: `prompt` is {'empty' if empty else 'no text'}.")
    return prompt


def _score(path: Path, at: int, column: str, given: Any) -> float:
    text = str(given).strip().lower()
    try:
        score = WORDS[text] if text in WORDS else float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        shown = "missing" if given in (None, "") else f"{str(given)[:40]!r}"
        raise _problem(
            path, f"line {at}: `{column}` is {shown}.", "Expected 0, 1, true, false, or a score between."
        )
    return score


def _problem(path: Path, message: str, hint: str = "") -> DataError:
    return DataError(f"{path}: {message} {hint}".rstrip())

"""The Parquet file of a run's examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric
from pipeline_plugins.whole_file import replacing

EXAMPLES = "examples.parquet"

OWN = tuple(field.name for field in fields(Outcome) if field.name not in ("scores", "passages"))
"""Columns that are fields of an outcome as they are."""


def write_examples(
    path: Path, examples: Sequence[Example], outcomes: Sequence[Outcome], metrics: Sequence[Metric]
) -> None:
    """Write a row for each example: its outcome, `score.NAME` of each metric, and the row it was made from.

    `request`, `fields` and `passages` are JSON.
    """
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet as pq
    except ImportError:
        raise DataError("examples.parquet needs pyarrow: pip install 'llm-pipeline[eval]'.") from None
    columns: dict[str, Any] = {name: [getattr(one, name) for one in outcomes] for name in OWN}
    columns |= {
        f"score.{metric.name}": pa.array([one.scores.get(metric.name) for one in outcomes], pa.float64())
        for metric in metrics
    }
    columns["request"] = [_json(example.body) for example in examples]
    columns["fields"] = [_json(example.fields) for example in examples]
    columns["passages"] = [_json(one.passages) for one in outcomes]
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Columns of a run's examples: those asked for that there are, or all; `id` is. Raises `DataError`."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    try:
        file = pq.ParquetFile(path)
        if "id" not in file.schema_arrow.names:
            raise DataError(f"{path} has no column `id`: it is not a run's.")
        known = [name for name in names if name in file.schema_arrow.names] if names is not None else None
        found: dict[str, list[Any]] = file.read(columns=known).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read: {str(error).splitlines()[0]}") from None
    return found

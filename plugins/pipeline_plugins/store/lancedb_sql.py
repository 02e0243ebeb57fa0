"""What LanceDB's filters are: SQL without parameters.

So nothing of a client's gets into one but names that match a pattern and values that are quoted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline_plugins.rag.filters import Filter, Scalar


def sql(filter: Filter) -> str:
    """The filter as LanceDB reads it."""
    if filter.field is None:
        word, parts = ("and", filter.every) if filter.every else ("or", filter.some)
        return f" {word} ".join(f"({sql(one)})" for one in parts or ())
    if isinstance(filter.value, list):
        word, op = ("or", "=") if filter.op == "in" else ("and", "!=")
        return f" {word} ".join(_compare(filter.field, op, value) for value in filter.value)
    return _compare(filter.field, filter.op, filter.value)


def one_of(column: str, values: Iterable[str]) -> str:
    """Whether a text column has one of these values."""
    return f"{column} in ({', '.join(map(quote, values))})"


def quote(value: str) -> str:
    """A text as an SQL literal: there, only the quote has a meaning, and two of them are one."""
    return "'" + value.replace("'", "''") + "'"


def _compare(field: str, op: str, value: Scalar | None) -> str:
    column = field
    if field.startswith("metadata."):
        column = f"json_get_string(metadata, {quote(field.removeprefix('metadata.'))})"
    if isinstance(value, bool):
        return f"{column} {op} '{'true' if value else 'false'}'"
    if value is None or isinstance(value, str):
        return f"{column} {op} {quote(value or '')}"
    return f"try_cast({column} as double) {op} {float(value)!r}"

"""Which chunks a search may find: a closed grammar, and the SQL that it becomes.

LanceDB's filters are text without parameters. So nothing of a client's gets into one but
names that match a pattern and values that are quoted here. Whose documents are searched is
no part of a filter: each owner's are in a database of their own.

    {"field": "source", "op": "=", "value": "docs/cache.md"}
    {"and": [{"field": "metadata.lang", "op": "in", "value": ["en", "de"]},
             {"field": "metadata.year", "op": ">=", "value": 2024}]}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00]*$")]
Scalar = bool | int | float | Text
Op = Literal["=", "!=", "<", "<=", ">", ">=", "in"]

FIELD = r"^(?:document|source|heading|page|metadata\.[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63})$"
INTEGERS = 2**53
"""Up to here an integer is the same as a double."""


class Condition(BaseModel):
    """One comparison; one with a field that a chunk lacks does not hold."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    field: str = Field(
        pattern=FIELD, description="`document`, `source`, `heading`, `page` or `metadata.NAME`."
    )
    op: Op = Field("=", description="How to compare; `in` with one of a list.")
    value: Scalar | Annotated[list[Scalar], Field(min_length=1, max_length=256)] = Field(
        description="What to compare with: a number as numbers, anything else as text."
    )

    @model_validator(mode="after")
    def _fits(self) -> Condition:
        if isinstance(self.value, list) != (self.op == "in"):
            raise ValueError("`in` takes a list, every other op a single value")
        for value in self.value if isinstance(self.value, list) else [self.value]:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if self.field == "page" and not number:
                raise ValueError("`page` is compared with numbers")
            if number and abs(value) > INTEGERS:  # type: ignore[arg-type]
                raise ValueError("numbers go up to 2**53")
        return self


class Every(BaseModel):
    """Conditions that must all hold."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    every: list[Condition] = Field(
        alias="and", min_length=1, max_length=32, description="Conditions that must all hold."
    )


Filter = Condition | Every


def sql(filter: Filter) -> str:
    """The filter as LanceDB reads it."""
    if isinstance(filter, Every):
        return " and ".join(f"({_condition(one)})" for one in filter.every)
    return _condition(filter)


def one_of(column: str, values: list[str]) -> str:
    """Whether a text column has one of these values."""
    return f"{column} in ({', '.join(map(quote, values))})"


def quote(value: str) -> str:
    """A text as an SQL literal: there, only the quote has a meaning, and two of them are one."""
    return "'" + value.replace("'", "''") + "'"


def _condition(condition: Condition) -> str:
    if isinstance(condition.value, list):
        return " or ".join(_compare(condition.field, "=", value) for value in condition.value)
    return _compare(condition.field, condition.op, condition.value)


def _compare(field: str, op: str, value: Scalar) -> str:
    column = field
    if field.startswith("metadata."):
        column = f"json_get_string(metadata, {quote(field.removeprefix('metadata.'))})"
    if isinstance(value, bool):
        return f"{column} {op} '{'true' if value else 'false'}'"
    if isinstance(value, str):
        return f"{column} {op} {quote(value)}"
    return f"try_cast({column} as double) {op} {float(value)!r}"

"""Which chunks a search may find: a closed grammar.

Whose documents are searched is no part of a filter: stores keep each owner's apart.

    {"field": "source", "op": "=", "value": "docs/cache.md"}
    {"and": [{"field": "metadata.lang", "op": "in", "value": ["en", "de"]},
             {"or": [{"field": "metadata.year", "op": ">=", "value": 2024},
                     {"field": "metadata.kind", "op": "not in", "value": ["draft"]}]}]}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00]*$")]
Scalar = bool | int | float | Text
Op = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in"]
LISTS = ("in", "not in")

FIELD = r"^(?:document|source|heading|page|metadata\.[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63})$"
INTEGERS = 2**53
"""Up to here an integer is the same as a double."""

DEEPEST = 4
"""Levels of `and` and `or`."""


class Filter(BaseModel):
    """A comparison, or others that must `and` or may `or` hold.

    A comparison with a field that a chunk lacks does not hold.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )

    field: str | None = Field(
        None, pattern=FIELD, description="`document`, `source`, `heading`, `page` or `metadata.NAME`."
    )
    op: Op = Field("=", description="How to compare; `in` and `not in` with a list.")
    value: Scalar | Annotated[list[Scalar], Field(min_length=1, max_length=256)] | None = Field(
        None, description="What to compare with: a number as numbers, anything else as text."
    )
    every: list[Filter] | None = Field(
        None, alias="and", min_length=1, max_length=32, description="Filters that must all hold."
    )
    some: list[Filter] | None = Field(
        None, alias="or", min_length=1, max_length=32, description="Filters of which one must hold."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Filter:
        if sum(part is not None for part in (self.field, self.every, self.some)) != 1:
            raise ValueError("a filter has either `field` and `value`, or `and`, or `or`")
        if self.field is None and not self.model_fields_set <= {"every", "some"}:
            raise ValueError("`op` and `value` go with `field`")
        if self.field is not None:
            self._compares()
        elif self.depth > DEEPEST:
            raise ValueError(f"`and` and `or` stand in each other {DEEPEST} deep at most")
        return self

    def _compares(self) -> None:
        if self.value is None or isinstance(self.value, list) != (self.op in LISTS):
            raise ValueError("`in` and `not in` take a list, every other op a single value")
        for value in self.value if isinstance(self.value, list) else [self.value]:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if self.field == "page" and not number:
                raise ValueError("`page` is compared with numbers")
            if number and abs(value) > INTEGERS:  # type: ignore[arg-type]
                raise ValueError("numbers go up to 2**53")

    @property
    def depth(self) -> int:
        """How deep `and` and `or` stand in each other."""
        return 1 + max(one.depth for one in parts) if (parts := self.every or self.some) else 0

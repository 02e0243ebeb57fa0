"""What is said of a body that is not as it must be."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InvalidRequest
from pipeline.wire.check import check


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ttl: float = Field(1, gt=0, strict=True)
    when: Literal["always", "never"] = "always"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner = Field(default_factory=Inner)


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ({"nam": "x", "name": "x"}, "unknown_field", "nam", "There is no field `nam`. Did you mean `name`?"),
        ({}, "missing_field", "name", "The required field `name` is missing."),
        (
            {"name": "x", "inner": {"tll": 1}},
            "unknown_field",
            "inner.tll",
            "There is no field `inner.tll`. Did you mean `ttl`?",
        ),
        (
            {"name": "x", "inner": {"zzzz": 1}},
            "unknown_field",
            "inner.zzzz",
            "There is no field `inner.zzzz`. Known: `ttl`, `when`.",
        ),
        (
            {"name": "x", "inner": {"ttl": 0}},
            "invalid_value",
            "inner.ttl",
            "`inner.ttl` is invalid: input should be greater than 0, not 0.",
        ),
        (
            {"name": "x", "inner": {"when": "alwas"}},
            "invalid_value",
            "inner.when",
            "`inner.when` is invalid: input should be 'always' or 'never', not \"alwas\".",
        ),
    ],
)
def test_an_error_names_the_field_the_value_and_what_would_be_right(
    body: dict[str, Any], code: str, param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(Outer, body)
    assert (caught.value.error_code, caught.value.param, caught.value.message) == (code, param, message)


@pytest.mark.parametrize("digits", [100, 5000])
def test_what_is_long_is_not_said_again(digits: int) -> None:
    for body in ({"name": 10**digits}, {"name": "x", "inner": {"when": "x" * digits}}):
        with pytest.raises(InvalidRequest) as caught:
            check(Outer, body)
        assert len(caught.value.message) < 100


def test_a_long_name_of_no_field_is_answered_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(Outer, {"name": "x", "n" * 10**6: 1})
    assert len(caught.value.message) < 200

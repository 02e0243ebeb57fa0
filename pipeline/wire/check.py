"""Checking a request's JSON object, with errors that name the field."""

from __future__ import annotations

import json
from types import NoneType
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import InvalidRequest
from pipeline.problems import did_you_mean

SHOWN = 64
"""Characters of what was sent that are said again."""


def check(model: type[BaseModel], body: dict[str, Any]) -> None:
    """Raise `InvalidRequest` with the first fault of `body`; its place goes in `param`."""
    try:
        model.__pydantic_validator__.validate_python(body)
    except ValidationError as error:
        raise _invalid(error, model) from None


def _invalid(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    found = error.errors(include_url=False, include_context=False)
    # Of a union's branches the one that got further: past the type, then deeper into the value.
    first = max(found, key=lambda e: (not e["type"].endswith("_type"), len(_place(e["loc"]))))
    same = [e for e in found if _place(e["loc"]) == _place(first["loc"])]
    param = _place(first["loc"]) or None
    if first["type"] == "missing":
        return InvalidRequest(f"The required field `{param}` is missing.", param=param, code="missing_field")
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(first["loc"][-1])[:SHOWN], _fields(model, first["loc"][:-1]))
        message = f"There is no field `{param}`. {hint}".rstrip()
        return InvalidRequest(message, param=param, code="unknown_field")
    reasons = " or ".join(dict.fromkeys(_reason(e) for e in same))
    if param is None:
        field = reasons[1:].partition("`")[0] if reasons.startswith("`") else None
        message = f"{reasons[:1].upper()}{reasons[1:]}."
        return InvalidRequest(message, param=field, code="invalid_value")
    return InvalidRequest(f"`{param}` is invalid: {reasons}.", param=param, code="invalid_value")


def _reason(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = error["input"]
    word = isinstance(value, str) and error["type"] == "literal_error"
    if word or isinstance(value, (bool, float, NoneType)) or (isinstance(value, int) and abs(value) < 2**63):
        shown = json.dumps(value)
        message += f", not {shown}" if len(shown) <= SHOWN else ""
    return message


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The fields of a model, or of the one nested in it at this place; none where that is a choice."""
    for key in loc:
        field = model.model_fields.get(str(key))
        nested = field.annotation if field is not None else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return []
        model = nested
    return list(model.model_fields)


def _place(loc: tuple[int | str, ...]) -> str:
    """`('messages', 0, 'content', 'str')` as `messages[0].content`."""
    place = ""
    for key in loc:
        if isinstance(key, int):
            place += f"[{key}]"
        elif key.isidentifier() and not _is_type(key):
            place += f".{key[:64]}" if place else key[:64]
        elif not _is_type(key):
            place += f".{key[:64]}"
    return place


def _is_type(key: str) -> bool:
    return key in _TYPES or "[" in key or key.startswith(("constrained-", "literal", "function-"))


_TYPES = {"str", "int", "float", "bool", "list", "dict", "NamedTool", "Stop", "Text"}

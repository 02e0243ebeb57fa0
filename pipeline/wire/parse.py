"""JSON in, with the strictness that an open port needs."""

from __future__ import annotations

from typing import Any

import jiter

from pipeline.errors import InvalidRequest


def parse(data: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Refuses NaN and infinities, duplicate keys, invalid UTF-8, nesting deeper than
    200 and anything but an object. Raises `InvalidRequest` that says where.
    """
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_name(value)}.", code="invalid_json")
    return value


def _name(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")

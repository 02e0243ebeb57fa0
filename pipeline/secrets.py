"""Which values of a configuration are secrets, so that nothing prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, SecretBytes, SecretStr

NAMES = re.compile(
    r"((api|access|private|secret)[_-]?keys?|_key|authorization|credentials?|pass(phrase|w(or)?ds?)|secrets?|token)$",
    re.IGNORECASE,
)
"""Keys whose values are never printed, whatever their type."""


CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""User and password within a URL."""


def is_secret(keys: Sequence[str], model: type[BaseModel] | None = None) -> bool:
    """Whether the value at these keys, below a node that `model` describes, must not be shown."""
    models = [model] if model is not None else []
    for key in keys:
        if NAMES.search(key):
            return True
        fields = [found.model_fields[key] for found in models if key in found.model_fields]
        if not fields:
            continue  # an item of a list or mapping, or a key that is not known
        types = [one for field in fields for one in _flat(field.annotation)]
        if any(isinstance(one, type) and issubclass(one, (SecretStr, SecretBytes)) for one in types):
            return True
        models = [one for one in types if isinstance(one, type) and issubclass(one, BaseModel)]
    # What stands where a model with secrets should, or under a key it does not have, may be one.
    return any(is_secret((name,), found) for found in models for name in found.model_fields)


def _flat(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _flat(argument)

"""Which values of a configuration are secrets, so that nothing prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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


def values_of(config: BaseModel) -> Iterator[str]:
    """The secrets that a checked configuration holds."""
    for name in type(config).model_fields:
        yield from _values(getattr(config, name), NAMES.search(name) is not None)


def _values(value: Any, secret: bool) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode("latin-1")
    elif isinstance(value, str):
        if secret:
            yield value
    elif isinstance(value, BaseModel):
        yield from values_of(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, secret or NAMES.search(str(key)) is not None)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from _values(inner, secret)


def _flat(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _flat(argument)

"""Classes of llama-index, by the names under which they are imported.

Nothing else can be made this way: a name must be below `llama_index`, and the class be of the
kind that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

CLASS = r"^llama_index(\.[A-Za-z_][A-Za-z0-9_]*)+$"
"""What such a name looks like."""


def made(name: str, kind: str, options: Mapping[str, Any]) -> Any:
    """An object of the class. `kind` is the class below `llama_index` that it must be derived from.

    Raises ImportError where it is not installed, and ValueError for what is no such class, or
    does not take these options.
    """
    wanted = found(f"llama_index.{kind}")
    cls = found(name)
    if not (isinstance(cls, type) and issubclass(cls, wanted)):
        raise ValueError(f"`{name}` is no {wanted.__name__}")
    try:
        return cls(**options)
    except Exception as error:  # foreign code: what it raises for wrong options is not known
        raise ValueError(f"`{name}` can't be made: {type(error).__name__}: {str(error)[:200]}") from None


def found(name: str) -> Any:
    """What is imported under a name. Raises ImportError."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"`{name}` is not there ({error}): it needs llm-pipeline's extra `llama-index`, "
            "and the package that the class is in"
        ) from None

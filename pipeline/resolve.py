"""Plain values of a composed configuration, references resolved."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.problems import ConfigError, Problem

DEEPEST = 64
"""Levels of nesting that are followed; a value that refers to itself has no end."""


def resolve(node: Any, path: str, problems: list[Problem]) -> Any:
    """Plain values of a node; what can't be resolved is reported, not raised."""
    if isinstance(node, DictConfig) and not node._is_none():
        return {str(k): _child(node, k, _join(path, k), problems) for k in node}
    if isinstance(node, ListConfig) and not node._is_none():
        return [_child(node, i, f"{path}.{i}", problems) for i in range(len(node))]
    return None if isinstance(node, (DictConfig, ListConfig)) else node


def _join(path: str, key: object) -> str:
    return f"{path}.{key!s}" if path else str(key)


def _child(node: Any, key: Any, path: str, problems: list[Problem]) -> Any:
    if path.count(".") > DEEPEST:
        too_deep = Problem(path[:60] + "…", f"nested more than {DEEPEST} deep: does it refer to itself?")
        raise ConfigError([*problems, too_deep])
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        problems.append(_why_not_resolved(error, path))
        return None
    return resolve(value, path, problems)


def _why_not_resolved(error: OmegaConfBaseException, path: str) -> Problem:
    if isinstance(error, MissingMandatoryValue):
        return Problem(path, "a value is required.")
    first = str(error).splitlines()[0]
    _, found, inner = first.partition(" raised while resolving interpolation: ")
    hint = "Set it, or give a default: ${oc.env:NAME,VALUE}." if "Environment variable" in first else ""
    message = inner.strip('"') if found else first
    return Problem(path, f"{message.rstrip('.')}.", hint)

"""How much work a JSON schema can make of a small instance, known before it is done.

`anyOf` over `$ref` doubles what is evaluated at every step, so a schema of 40 lines can
keep a validator busy for years: of 18 steps, 85 seconds were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pipeline_plugins.schema_nodes import nodes

MAX_NODES_AT_ONCE = 2000
"""Subschemas that may be evaluated on one value."""

MAX_WORK = 200_000
"""Evaluations of one subschema that nesting may lead to."""

MAX_DEPTH = 100
"""Nesting of an instance whose schema does not multiply work."""

_HERE = ("allOf", "anyOf", "oneOf")
_HERE_ONE = ("not", "if", "then", "else")


class TooMuchWork(ValueError):
    """A schema evaluates too many subschemas on one value."""


def depth_allowed(schema: Any) -> int:
    """How deeply an instance may be nested for the work to stay bounded.

    At each level, the number of evaluations of a subschema grows by the largest number of
    subschemas with children that apply to one value together. Raises `TooMuchWork`.
    """
    counted = _Counted(schema)
    factor = 1
    for node in nodes(schema):
        _, below = counted.of(node)
        factor = max(factor, below)
    return MAX_DEPTH if factor == 1 else min(MAX_DEPTH, int(math.log(MAX_WORK) / math.log(factor)))


class _Counted:
    """Of each subschema: all nodes that apply at its place, and how often they reach a child."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, tuple[int, int]] = {}

    def of(self, node: Any) -> tuple[int, int]:
        if not isinstance(node, dict):
            return 1, 0
        known = self._known.get(id(node))
        if known is not None:
            return known
        self._known[id(node)] = (1, 0)  # a circle in place is refused elsewhere
        nodes, below = 1, _reach(node)
        for inner in here(node, self._root):
            more = self.of(inner)
            nodes, below = nodes + more[0], below + more[1]
        if nodes > MAX_NODES_AT_ONCE:
            raise TooMuchWork(f"it evaluates more than {MAX_NODES_AT_ONCE} subschemas on one value")
        self._known[id(node)] = nodes, below
        return nodes, below


def _reach(node: dict[str, Any]) -> int:
    """How many of a node's subschemas may apply to one child: one of these, and all of those."""
    one = any(key in node for key in ("properties", "additionalProperties", "items", "prefixItems"))
    more = ("contains", "unevaluatedProperties", "unevaluatedItems", "additionalItems")
    return one + len(node.get("patternProperties") or ()) + sum(key in node for key in more)


def here(node: dict[str, Any], root: Any) -> Iterator[Any]:
    """The subschemas that apply to the same value as a node."""
    for key in _HERE:
        yield from node.get(key) or ()
    for key in _HERE_ONE:
        if key in node:
            yield node[key]
    if isinstance(node.get("$ref"), str):
        yield resolve(node["$ref"], root)


def resolve(reference: str, root: Any) -> Any:
    """What `#/$defs/NAME` points to; True, which says nothing, where that is nowhere."""
    node = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return True
    return node


def depth_of(value: Any) -> int:
    """How deeply a parsed JSON value is nested; 0 for a scalar."""
    deepest = 0
    stack = [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if isinstance(node, dict | list):
            deepest = max(deepest, depth)
            stack.extend((inner, depth + 1) for inner in (node.values() if isinstance(node, dict) else node))
    return deepest

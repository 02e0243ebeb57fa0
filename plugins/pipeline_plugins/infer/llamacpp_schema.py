"""Bounds for JSON schemas and grammars from clients, checked before llama.cpp compiles them.

Compiling takes memory and time that grow with repetition and nesting, not with the size
of the text, so one short schema could stop the server for everybody.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import orjson

from pipeline.errors import InvalidRequest
from pipeline_plugins.schema_nodes import nodes

MAX_DEPTH = 32
MAX_NODES = 4000
MAX_ENUM = 1000
MAX_PROPERTIES = 400
MAX_TEXT = 4096
MAX_PATTERN = 512
MAX_REPEAT = 2000
MAX_NUMBER = 2**53
MAX_MULTIPLE = 100_000
"""All `multipleOf` of a schema must have a common multiple below this: each remainder is a state."""

MAX_GRAMMAR = 16_384

_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_NESTED = {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_MAPS = {"properties", "$defs", "definitions", "patternProperties"}
_RANGES = (("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum"))
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_BEYOND = re.compile(r"\(\?(?:[=!>]|<[=!])|\\[1-9]")
_CLASSES = re.compile(r"\\[pP](?:\{[\w=^]+\}|\w)")
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class Budget:
    """What the schemas of one request may still use together."""

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.enum = MAX_ENUM

    def check(self, schema: Any, param: str) -> None:
        """Raise `InvalidRequest` for a schema that is too large, or refers to itself in place."""
        self._visit(schema, 0, param)
        _check_references(schema, param)
        _check_multiples(schema, param)

    def _visit(self, schema: Any, depth: int, param: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise _refuse("a schema must be an object", param)
        self.nodes -= 1 + len(schema)
        if self.nodes < 0:
            raise _refuse(f"it has more than {MAX_NODES} parts", param)
        if depth > MAX_DEPTH:
            raise _refuse(f"it is nested deeper than {MAX_DEPTH}", param)
        for low, high in _RANGES:
            if (
                isinstance(schema.get(low), int)
                and isinstance(schema.get(high), int)
                and schema[low] > schema[high]
            ):
                raise _refuse(f"`{low}` is more than `{high}`", param)
        if len(schema.get("properties") or ()) > MAX_PROPERTIES:
            raise _refuse(f"an object may have {MAX_PROPERTIES} properties", param)
        for key, value in schema.items():
            self._keyword(key, value, depth, param)

    def _keyword(self, key: str, value: Any, depth: int, param: str) -> None:
        if key in _NESTED and isinstance(value, dict | bool):
            self._visit(value, depth + 1, param)
        elif key in _LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list) or not value:
                raise _refuse(f"`{key}` must be a list of schemas", param)
            for one in value:
                self._visit(one, depth + 1, param)
        elif key in _MAPS:
            if not isinstance(value, dict):
                raise _refuse(f"`{key}` must be an object", param)
            for name, one in value.items():
                if key == "patternProperties":
                    check_pattern(name, param)
                self._visit(one, depth + 1, param)
        elif key in ("enum", "const"):
            if key == "enum" and not (isinstance(value, list) and value):
                raise _refuse("`enum` must be a list of values", param)
            self._values(value, param)
        else:
            _check_value(key, value, param)

    def _values(self, value: Any, param: str) -> None:
        """Literal values: each part of them counts, and texts are bounded."""
        if isinstance(value, str):
            _check_text(value, param)
        self.enum -= 1
        if self.enum < 0:
            raise _refuse(f"its enumerations have more than {MAX_ENUM} values", param)
        for one in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
            self._values(one, param)


def check_pattern(pattern: Any, param: str) -> None:
    """Refuse a regular expression that is long or repeats too much."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise _refuse(f"a pattern may have {MAX_PATTERN} characters", param)
    if _BEYOND.search(pattern):
        raise _refuse("a pattern may not look around or refer back", param)
    _check_repeats(pattern, "pattern", param)
    known = _CLASSES.sub("x", pattern).replace("(?<", "(?P<")
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(known)
    except (re.error, RecursionError, OverflowError) as error:
        raise _refuse(f"a pattern is not a regular expression: {error}", param) from None


def check_grammar(grammar: Any, param: str = "grammar") -> None:
    """Refuse a GBNF grammar that is long, deeply nested or repeats too much."""
    if not isinstance(grammar, str) or not grammar.strip() or len(grammar) > MAX_GRAMMAR:
        raise _refuse(f"a grammar is text of at most {MAX_GRAMMAR} characters", param)
    if grammar.lstrip().startswith("%"):
        raise _refuse("it must be GBNF", param)
    depth = 0
    for character in grammar:
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            raise _refuse(f"it is nested deeper than {MAX_DEPTH}", param)
    _check_repeats(grammar, "grammar", param)


def _check_repeats(text: str, what: str, param: str) -> None:
    """Repetitions may be nested, so what is bounded is the product of all of them."""
    product = 1
    for least, most in _REPEAT.findall(text):
        for digits in (least, most):
            if len(digits) > 6:
                raise _refuse(f"its {what} repeats more than {MAX_REPEAT} times", param)
        product *= max(int(least or 0), int(most or 0), 1)
        if product > MAX_REPEAT:
            raise _refuse(f"its {what} repeats more than {MAX_REPEAT} times", param)


def _check_value(key: str, value: Any, param: str) -> None:
    if key in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_REPEAT:
            raise _refuse(f"`{key}` must be an integer from 0 to {MAX_REPEAT}", param)
    elif key in _NUMBERS:
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
            raise _refuse(f"`{key}` is beyond 2^53", param)
    elif key == "type":
        if any(one not in _TYPES for one in (value if isinstance(value, list) and value else [value])):
            raise _refuse(f"`type` must be one of {', '.join(_TYPES)}", param)
    elif key == "required":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise _refuse("`required` must be a list of names", param)
    elif key in _NESTED:
        raise _refuse(f"`{key}` must be a schema", param)
    elif key == "pattern":
        check_pattern(value, param)
    elif key == "$ref":
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise _refuse("`$ref` must point into the schema itself: `#/$defs/NAME`", param)
        _check_text(value, param)


def _check_multiples(root: Any, param: str) -> None:
    """Bound the least common multiple of all divisors, counted in units of the finest."""
    least, unit = 1, 1
    for node in nodes(root):
        value = node.get("multipleOf")
        if not isinstance(value, int | float):  # none here, or a property of that name
            continue
        if not 1e-9 <= value <= MAX_NUMBER:
            raise _refuse("`multipleOf` must be a number from 1e-9 to 2^53", param)
        step = Fraction(str(value))
        finer = math.lcm(unit, step.denominator)
        least = math.lcm(least * (finer // unit), step.numerator * (finer // step.denominator))
        unit = finer
        if least > MAX_MULTIPLE:
            raise _refuse(f"its `multipleOf` have no common multiple up to {MAX_MULTIPLE} steps", param)


def _check_text(text: str, param: str) -> None:
    if len(text) > MAX_TEXT:
        raise _refuse(f"a text in it is longer than {MAX_TEXT} characters", param)


def _check_references(root: Any, param: str) -> None:
    """Follow what stands in for its target, and what must be there: a circle has no end.

    A schema may be recursive where an answer may stop: in an optional property, in a list
    that may be empty, in one of several choices.
    """
    for edges in (_in_place, _required):
        finished: set[int] = set()
        for node in nodes(root):
            _follow(node, edges, root, param, {}, finished)


def _in_place(node: dict[str, Any]) -> Iterator[Any]:
    for key in ("anyOf", "oneOf", "allOf"):
        yield from node.get(key) or ()


def _required(node: dict[str, Any]) -> Iterator[Any]:
    yield from node.get("allOf") or ()
    properties = node.get("properties")
    for name in node.get("required") or ():
        if isinstance(properties, dict):
            yield properties.get(name)
    if node.get("minItems"):
        yield node.get("items")


def _follow(
    node: Any,
    edges: Callable[[dict[str, Any]], Iterator[Any]],
    root: Any,
    param: str,
    path: dict[int, None],
    finished: set[int],
) -> None:
    if not isinstance(node, dict) or id(node) in finished:
        return
    if id(node) in path or len(path) > 8 * MAX_DEPTH:
        raise _refuse("its `$ref`s go round in a circle", param)
    path[id(node)] = None
    for one in edges(node):
        _follow(one, edges, root, param, path, finished)
    if isinstance(node.get("$ref"), str):
        _follow(_target(node["$ref"], root, param), edges, root, param, path, finished)
    del path[id(node)]
    finished.add(id(node))


def _target(reference: str, root: Any, param: str) -> Any:
    node = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and len(key) < 6 and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise _refuse(f"`$ref` {reference[:100]} points nowhere", param)
    return node


def guide(schema: Any) -> str:
    """The grammar of all JSON that fits a schema, on one line, for the LLGuidance engine.

    That engine works within limits of its own; llama.cpp's, which it would choose itself
    for a schema, can be kept busy for ever by an ambiguous one.
    """
    layout = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "lenient": True,  # a keyword that it can't enforce is left to the model
    }
    root = {"allOf": [schema]} if not isinstance(schema, dict) else schema
    text = orjson.dumps({**root, "x-guidance": layout}).decode()
    return f"%llguidance {{}}\nstart: %json {text}\n"


def one_of(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of a call of one of the tools: an object of its name and its arguments."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": _rebase(tool["function"]["parameters"], f"#/anyOf/{index}/properties/arguments"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    return {"anyOf": calls}


def _rebase(schema: Any, base: str) -> Any:
    """The schema with its references moved from `#` to `base`, where it is put into another."""
    if isinstance(schema, list):
        return [_rebase(one, base) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: base + value[1:] if key == "$ref" and isinstance(value, str) else _rebase(value, base)
        for key, value in schema.items()
    }


def outline(schema: Any) -> dict[str, Any]:
    """What llama.cpp's own engine can be trusted with: types, properties, items and enumerations.

    It guides the calls of tools that a model makes unasked. The rest of the schema would
    make its grammars ambiguous or huge.
    """
    if not isinstance(schema, dict):
        return {}
    kept: dict[str, Any] = {k: v for k, v in schema.items() if k in ("description", "required")}
    if schema.get("enum") and all(isinstance(value, str) for value in schema["enum"]):
        kept["enum"] = schema["enum"]
    if schema.get("type") in _TYPES:
        kept["type"] = schema["type"]
    if isinstance(schema.get("properties"), dict):
        kept["properties"] = {name: outline(one) for name, one in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        kept["items"] = outline(schema["items"])
    return kept


def _refuse(reason: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"`{param}` can't be used: {reason}.", param=param, code="invalid_schema")

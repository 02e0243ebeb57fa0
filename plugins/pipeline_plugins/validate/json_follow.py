"""JSON while it arrives: whether what has come can still become JSON that fits a schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline_plugins.validate.finding import place
from pipeline_plugins.validate.library import load
from pipeline_plugins.validate.schema_work import resolve

_TYPES = {
    "start_map": "object",
    "start_array": "array",
    "string": "string",
    "boolean": "boolean",
    "null": "null",
}


@dataclass(slots=True)
class _Frame:
    """An object or array that is open: the schemas that hold for it, and where we are in it."""

    array: bool
    schemas: list[dict[str, Any]]
    key: str = ""
    index: int = -1
    inner: list[dict[str, Any]] = field(default_factory=list)


class JSONFollower:
    """Reads JSON in pieces, cut anywhere, and says as soon as one makes it wrong.

    Syntax is known at once. Of the schema what can't be mended by more text is: types,
    `const` and `enum` of scalars, unexpected properties, too many items, as far as they
    hold unconditionally. The rest (`required`, `anyOf`, …) needs the whole value.
    """

    def __init__(self, schema: Any = None) -> None:
        ijson = load("ijson", "ijson")
        self._events: list[tuple[str, Any]] = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, use_float=True)
        self._wrong: type[Exception] = ijson.JSONError
        self._root = schema if _plain(schema) else None
        self._frames: list[_Frame] = []

    def feed(self, text: str) -> tuple[str, str] | None:
        """Read a piece. Returns what is wrong, and its place in the value and the reason, or None."""
        if not text:  # to the parser, nothing is the end
            return None
        try:
            self._parser.send(text.encode("utf-8", "surrogatepass"))
        except (self._wrong, ValueError) as error:
            return "is not JSON", str(error).strip().splitlines()[0]
        except StopIteration:
            return "is not JSON", "it goes on after its end"
        events = list(self._events)
        del self._events[:]
        if self._root is None:
            return None
        for event, value in events:
            wrong = self._event(event, value)
            if wrong is not None:
                return "does not fit the schema", f"at `{self._place()}`: {wrong}"[:300]
        return None

    def _place(self) -> str:
        path = tuple(frame.index if frame.array else frame.key for frame in self._frames)
        return place(path) or "the top"

    def _event(self, event: str, value: Any) -> str | None:
        if event in ("end_map", "end_array"):
            self._frames.pop()
            return None
        top = self._frames[-1] if self._frames else None
        if event == "map_key" and top is not None:
            top.key = value
            return self._enter_property(top)
        if top is None:
            schemas = list(self._all(self._root))
        elif top.array:
            top.index += 1
            wrong = self._enter_item(top)
            if wrong is not None:
                return wrong
            schemas = top.inner
        else:
            schemas = top.inner
        wrong = next((w for schema in schemas if (w := _misfit(schema, event, value)) is not None), None)
        if event in ("start_map", "start_array") and wrong is None:
            self._frames.append(_Frame(event == "start_array", schemas))
        return wrong

    def _enter_property(self, frame: _Frame) -> str | None:
        inner: list[dict[str, Any]] = []
        for schema in frame.schemas:
            properties = schema.get("properties") or {}
            if frame.key in properties:
                found = properties[frame.key]
            elif "patternProperties" in schema:
                continue
            else:
                found = schema.get("additionalProperties", True)
                if found is False:
                    return "this property is not expected"
            inner.extend(self._all(found))
        frame.inner = inner
        return None

    def _enter_item(self, frame: _Frame) -> str | None:
        inner: list[dict[str, Any]] = []
        for schema in frame.schemas:
            if frame.index >= schema.get("maxItems", float("inf")):
                return f"there are more than {schema['maxItems']} items"
            first = schema.get("prefixItems") or []
            found = first[frame.index] if frame.index < len(first) else schema.get("items", True)
            if found is False:
                return "this item is not expected"
            if not isinstance(found, list):
                inner.extend(self._all(found))
        frame.inner = inner
        return None

    def _all(self, schema: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
        """The schemas that all hold where this one does."""
        if not isinstance(schema, dict) or depth > 32:
            return
        yield schema
        for inner in schema.get("allOf") or ():
            yield from self._all(inner, depth + 1)
        if isinstance(schema.get("$ref"), str):
            yield from self._all(resolve(schema["$ref"], self._root), depth + 1)


def _plain(schema: Any) -> bool:
    """Whether references mean what they say: no other base, no draft in which they hide neighbours."""
    if not isinstance(schema, dict) or "draft-0" in str(schema.get("$schema", "")):
        return False
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$id"), str):
                return False
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return True


def _misfit(schema: dict[str, Any], event: str, value: Any) -> str | None:
    """Why a value that begins like this can't fit, as far as it is known."""
    wanted = schema.get("type")
    if wanted is not None:
        names = wanted if isinstance(wanted, list) else [wanted]
        if event == "number":
            whole = isinstance(value, int) or float(value).is_integer()
            fits = "number" in names or ("integer" in names and whole)
        else:
            fits = _TYPES[event] in names
        if not fits:
            name = "number" if event == "number" else _TYPES[event]
            return f"expected {' or '.join(names)}, not {name}"
    if event in ("start_map", "start_array"):
        return None
    for key in ("const", "enum"):
        if key in schema:
            choices = [schema[key]] if key == "const" else schema[key]
            if not any(_equal(value, choice) for choice in choices):
                return f"`{str(value)[:60]}` is none of the values allowed"
    return None


def _equal(value: Any, choice: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)

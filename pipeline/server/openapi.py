"""The server's description of itself, as OpenAPI 3.1."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.hookspecs import SEGMENT, Route
from pipeline.server.calls import OPERATIONS

if TYPE_CHECKING:
    from pipeline.server.app import App

REF = "#/components/schemas/{model}"

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "chat": {"model": "default", "messages": [{"role": "user", "content": "Name three colours."}]},
    "completion": {"model": "default", "prompt": "Once upon a time", "max_tokens": 32},
    "embedding": {"model": "default", "input": "A sentence to embed."},
}


def describe(app: App) -> dict[str, Any]:
    """All addresses, those of plugins included."""
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {}
    for path, methods in app.addresses():
        for method, route in methods.items():
            operation = _operation(path, route, schemas)
            operation["security"] = [] if route.public else [{"key": []}]
            paths.setdefault(path.replace("/*", "/{name}"), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLM pipeline", "version": version("llm-pipeline")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    errors = {"description": "What was wrong.", "content": _content({"$ref": REF.format(model="Error")})}
    operation: dict[str, Any] = {"responses": {"200": {"description": "The answer."}, "default": errors}}
    names = ["name"] if path.endswith("/*") else SEGMENT.findall(path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.about:
        operation["summary"] = route.about
    if route.body is not None:
        content = _content({"$ref": REF.format(model=_schema(route.body, schemas))})
        operation["requestBody"] = {"required": True, "content": content}
    if path in OPERATIONS:
        name, model = OPERATIONS[path]
        operation["summary"] = f"{name.capitalize()}, as in OpenAI's API."
        body = _content({"$ref": REF.format(model=_schema(model, schemas))})
        body["application/json"]["example"] = EXAMPLES.get(name)
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> str:
    schema = model.model_json_schema(ref_template=REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return model.__name__

"""A composed configuration as people read it: every default shown, no secret shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.config import SECRET_KEY, Config
from pipeline.hydra_source import defaults_of
from pipeline.plugins import PluginError
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.settings import ServerConfig

MASK = "***"


def effective(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """All values as written, with the defaults that no YAML names, and their origins.

    Secrets are masked, unless they are written as an interpolation.
    """
    values: dict[str, Any] = {}
    origins = dict(config.origins)
    for key, node in config.written.items():
        model, owner = _model_of(config, key, node)
        if model is None:
            values[key] = _masked(key, node)
            continue
        defaults = defaults_of(model)
        for name in defaults:
            if name not in node:
                origins[f"{key}.{name}"] = f"default of {owner}"
        secret = {name for name, field in model.model_fields.items() if "Secret" in str(field.annotation)}
        merged = {**defaults, **node}
        values[key] = {name: _masked(name, value, name in secret) for name, value in merged.items()}
        if "plugin" in node:
            values[key] = {"plugin": node["plugin"], **values[key]}
    return values, origins


def _model_of(config: Config, key: str, node: Any) -> tuple[type[BaseModel] | None, str]:
    if key == "server" and isinstance(node, Mapping):
        return ServerConfig, "server"
    plugin = node.get("plugin") if isinstance(node, Mapping) else None
    if not isinstance(plugin, str):
        return None, ""
    try:
        return config.registry.find(plugin).load().config, plugin
    except PluginError:
        return None, ""


def _masked(key: str, value: Any, secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(str(name), inner, secret) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(key, inner, secret) for inner in value]
    hidden = isinstance(value, str) and value and (secret or SECRET_KEY.search(key))
    return MASK if hidden and not value.startswith("${") else value


def as_yaml(config: Config, key: str | None = None) -> list[tuple[str, str]]:
    """Lines of YAML, each with the origin of its value, or an empty text.

    `key` picks a part. Raises `ConfigError` if there is no such key.
    """
    values, origins = effective(config)
    config.origins = origins
    node: Any = values
    for part in key.split(".") if key else ():
        if not isinstance(node, Mapping) or part not in node:
            known = node if isinstance(node, Mapping) else ()
            raise ConfigError(
                [Problem(key or "", f"there is no key `{part}`.", did_you_mean(part, map(str, known)))]
            )
        node = node[part]
    if not isinstance(node, Mapping):
        return [(_scalar(node), config.origin(key or ""))]
    return list(_lines(node, key or "", 0, config))


def _lines(node: Mapping[str, Any], path: str, depth: int, config: Config) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        here = f"{path}.{key}" if path else str(key)
        indent = "  " * depth
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(key)}:", ""
            yield from _lines(value, here, depth + 1, config)
        else:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}", config.origin(here)


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")

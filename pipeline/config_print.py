"""A composed configuration as people read it: every default shown, no secret shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.config import Config
from pipeline.hydra_source import defaults_of
from pipeline.plugins import PluginError
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.secrets import CREDENTIALS, is_secret
from pipeline.settings import ServerConfig

MASK = "***"


def effective(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """All values as written, with the defaults that no YAML names, and their origins.

    Secrets are masked, unless they are written as an interpolation.
    """
    origins = dict(config.origins)
    for key, node in config.written.items():
        model, owner = _model_of(config, key, node)
        for name in defaults_of(model) if model is not None else ():
            if name not in node:
                origins[f"{key}.{name}"] = f"default of {owner}"
    return shown(config), origins


def shown(config: Config) -> dict[str, Any]:
    """All values as `effective` has them, without where they are from, which takes time to find."""
    values: dict[str, Any] = {}
    for key, node in config.written.items():
        model, _ = _model_of(config, key, node)
        if model is None:
            values[key] = _masked(node, (str(key),), None)
            continue
        defaults = defaults_of(model)
        own = {name: value for name, value in node.items() if name != "plugin"}
        values[key] = {name: node[name] for name in node if name == "plugin"}
        values[key] |= _masked({**defaults, **own}, (), model)
    return values


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


def _masked(value: Any, keys: tuple[str, ...], model: type[BaseModel] | None) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(inner, (*keys, str(name)), model) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, keys, model) for inner in value]
    if value is None or value == "" or (isinstance(value, str) and value.startswith("${")):
        return value
    if is_secret(keys, model):
        return MASK
    return CREDENTIALS.sub(MASK, value) if isinstance(value, str) else value


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

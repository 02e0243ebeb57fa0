"""A plugin chosen within another one's configuration: which, and what it is told.

rag.splitter=tokens
rag.embed.plugin=openai rag.embed.base_url=http://127.0.0.1:8080/v1
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.plan import check_model
from pipeline.plugins import Loaded, PluginError, Registry
from pipeline.problems import ConfigError, Problem


class Choice(BaseModel):
    """The plugin `KIND.NAME`, or NAME where the kind is clear; all other keys are its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    plugin: str = Field(min_length=1, max_length=128, description="Its name.")


def _named(value: Any) -> Any:
    return {"plugin": value} if isinstance(value, str) else value


Chosen = Annotated[Choice, BeforeValidator(_named)]
"""A field's type: the name alone will do where a plugin needs to be told nothing."""


def load(kind: str, choice: Choice, path: str) -> Loaded:
    """The plugin's class. Raises `ConfigError` for one that is not there."""
    id = choice.plugin if choice.plugin.startswith(f"{kind}.") else f"{kind}.{choice.plugin}"
    try:
        return Registry().find(id).load()
    except PluginError as error:
        raise ConfigError([Problem(f"{path}.plugin", f"{error}.", error.hint)]) from None


def make(kind: str, choice: Choice, path: str, /, **presets: Any) -> Any:
    """The plugin, made of its own configuration; of `presets` it gets what it knows and is not told.

    `path` is where the choice stands, for what is wrong with it. Raises `ConfigError`.
    """
    return made_of(load(kind, choice, path), choice, path, **presets)


def made_of(loaded: Loaded, choice: Choice, path: str, /, **presets: Any) -> Any:
    """The same of a plugin's class that is loaded already. Presets stand beside the choice."""
    told = choice.model_extra or {}
    known = {name: value for name, value in presets.items() if name in loaded.config.model_fields}
    problems: list[Problem] = []
    config = check_model(loaded.config, {**known, **told}, path, problems)
    if problems:
        around = path.rpartition(".")[0]
        beside = {f"{path}.{name}": f"{around}.{name}".lstrip(".") for name in known if name not in told}
        raise ConfigError(replace(one, path=beside.get(one.path, one.path)) for one in problems)
    try:
        return loaded.cls(config=config)
    except (ValueError, ImportError) as error:
        raise ConfigError([Problem(path, f"`{choice.plugin}` refuses its config: {error}")]) from None


@contextmanager
def below(path: str) -> Iterator[None]:
    """What is wrong with a configuration is told with its place in the one around it."""
    try:
        yield
    except ConfigError as error:
        found = [replace(one, path=f"{path}.{one.path}".rstrip(".")) for one in error.problems]
        raise ConfigError(found) from None

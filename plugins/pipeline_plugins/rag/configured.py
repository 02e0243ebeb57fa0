"""The documents that a configuration names, for commands that work without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import compose
from pipeline.plan import check_model
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.choice import below
from pipeline_plugins.store.store import StoreFails

if TYPE_CHECKING:
    from pipeline_plugins.rag.documents import Documents


def documents_of(overrides: list[str], config: Path | None) -> tuple[Documents, str | None]:
    """The documents, and the collection that is searched by default.

    Where the configuration has no `rag`, those of `rag=hybrid`. Raises `ConfigError`.
    """
    composed = compose(overrides, config=config)
    node = composed.values.get("rag") or {}
    if node.get("plugin") is None:
        composed = compose([*overrides, "rag=hybrid"], config=config)
        node = composed.values["rag"]
    plugin = composed.registry.find(node["plugin"]).load()
    problems: list[Problem] = []
    values = {key: value for key, value in node.items() if key != "plugin"}
    checked: Any = check_model(plugin.config, values, "rag", problems)
    if problems:
        raise ConfigError(problems)
    make = getattr(plugin.cls, "documents_of", None)
    if make is None:
        message = f"the documents of `{node['plugin']}` are not put in here."
        raise ConfigError([Problem("rag", message, "Use its own tool, or `rag=hybrid`.")])
    with below("rag"):
        return make(checked), checked.collection


@contextmanager
def store_at(path: str) -> Iterator[None]:
    """A store that fails ends a command in words: which, and why."""
    try:
        yield
    except StoreFails as error:
        raise OSError(f"The store of documents, {path}, fails: {error.reason}.") from None

"""Where each value of a composed configuration is from: a file, a plugin, an override."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.hydra_source import SCHEME

PRIMARY_PROVIDER = "main"
"""Hydra's own name for the folder of the primary config."""


def trace(
    loader: ConfigLoader,
    name: str,
    forced: list[str],
    overrides: list[Override],
    groups: Mapping[str, Sequence[str]],
    shipped: Path,
) -> dict[str, str]:
    """For every key path the last writer, in the order in which Hydra merges.

    An override is named by its key: its value may be a secret.
    """
    origins: dict[str, str] = {}
    for default in loader.compute_defaults_list(name, forced, RunMode.RUN).defaults:
        path = default.config_path
        if path is None or path.startswith("hydra/"):
            continue
        loaded = loader.repository.load_config(path)  # type: ignore[attr-defined]
        origin = _source_of(loaded, path, shipped)
        for key in _leaves(loaded.config, ""):
            _write(origins, ".".join(part for part in (default.package or "", key) if part), origin)
    for override in overrides:
        key = override.key_or_group
        if key not in groups:
            _write(origins, key, f"override {key}")
        elif not override.is_delete():
            origins.setdefault(override.package or key, f"override {override.input_line}")
    return origins


def show_file(file: Path, shipped: Path) -> str:
    """A file's path, short where it lies below the working directory or is a shipped one."""
    if file.is_relative_to(shipped):
        return str(file.relative_to(shipped.parent))
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _write(origins: dict[str, str], key: str, origin: str) -> None:
    """Note the writer of a key, which forgets those of what it replaced."""
    for old in [o for o in origins if o.startswith(f"{key}.") or key.startswith(f"{o}.")]:
        del origins[old]
    origins[key] = origin


def _leaves(node: Any, path: str) -> Iterable[str]:
    if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none() and len(node):
        for key in node:
            yield from _leaves(node._get_node(key), f"{path}.{key!s}" if path else str(key))
    elif path:
        yield path


def _source_of(loaded: Any, path: str, shipped: Path) -> str:
    scheme, _, root = loaded.path.partition("://")
    if scheme == SCHEME:
        return f"default of {path.replace('/', '.', 1)}"
    folder = Path(root)
    if scheme == "file" and (loaded.provider == PRIMARY_PROVIDER or folder == shipped):
        return show_file(folder / f"{path}.yaml", shipped)
    return f"{path}.yaml of {loaded.provider}"

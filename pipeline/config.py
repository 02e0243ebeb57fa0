"""Composing a configuration: Hydra merges, OmegaConf resolves, pydantic validates.

`compose(overrides)` gives a `Config`; `Config.plan()` checks it against the installed
plugins. Every mistake becomes a `Problem` with its key path and the file or override
that it came from; nothing of the user's config is ever instantiated by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.graph import Plan, check_model, plan_graph
from pipeline.hydra_source import SCHEME, PluginSource
from pipeline.plugins import Registry
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.settings import ServerConfig

PRIMARY = "pipeline"
"""Name of the primary config, `pipeline.yaml`."""

TOP_LEVEL = ("extensions", "graph", "server", "vars")
"""Keys of the primary config that are not nodes of plugins."""

SECRET_KEY = re.compile(r"(api_?key|authorization|password|passwd|secret|token)$", re.IGNORECASE)
"""Keys whose values are never printed, whatever their type."""


def config_root() -> Path:
    """The folder of the YAML that the framework ships, in a wheel as in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


@dataclass
class Config:
    """A composed configuration.

    values    plain, with every interpolation resolved: holds secrets, never print it
    written   the same with interpolations as they were written
    groups    config groups with their options
    """

    values: dict[str, Any]
    written: dict[str, Any]
    registry: Registry
    groups: dict[str, list[str]]
    _trace: Callable[[], dict[str, str]]

    @cached_property
    def origins(self) -> dict[str, str]:
        """Key path of each value to the file, plugin or override that it is from."""
        return self._trace()

    def origin(self, path: str) -> str:
        """Where the value at a key path, or the nearest node above or below it, is from."""
        keys = path.split(".")
        for end in range(len(keys), 0, -1):
            prefix = ".".join(keys[:end])
            if prefix in self.origins:
                return self.origins[prefix]
            below = [origin for key, origin in self.origins.items() if key.startswith(prefix + ".")]
            if below:
                return below[0]
        return ""

    def plan(self) -> tuple[Plan, ServerConfig]:
        """Check everything. Raises `ConfigError` with all problems, each with its origin."""
        problems: list[Problem] = self._check_top_level()
        server = check_model(ServerConfig, self.values.get("server") or {}, "server", problems)
        plan = None
        try:
            plan = plan_graph(self.values, self.registry)
        except ConfigError as error:
            problems.extend(error.problems)
        if problems or plan is None or not isinstance(server, ServerConfig):
            raise ConfigError(replace(p, origin=p.origin or self.origin(p.path)) for p in problems)
        return plan, server

    def _check_top_level(self) -> list[Problem]:
        known = [*TOP_LEVEL, *(k for k, v in self.values.items() if isinstance(v, Mapping) and "plugin" in v)]
        used = self._used_roots()
        return [
            Problem(key, f"unknown key `{key}`.", did_you_mean(key, {*known, *used}))
            for key in self.values
            if key not in known and key not in used
        ]

    def _used_roots(self) -> set[str]:
        stages = (self.values.get("graph") or {}).get("stages") or {}
        uses = {
            str((s or {}).get("use", n) if isinstance(s or {}, Mapping) else n) for n, s in stages.items()
        }
        return {use.split(".")[0] for use in uses}


def compose(
    overrides: Sequence[str] = (),
    *,
    config: Path | None = None,
    registry: Registry | None = None,
) -> Config:
    """Compose the primary config with Hydra overrides.

    `config` is a folder searched before the shipped one, or a YAML file that takes the
    primary config's place. Raises `ConfigError` for what Hydra can't compose.
    """
    registry = registry or Registry()
    folder, name = _locate(config)
    problems: list[Problem] = []
    parsed = _parse(overrides, problems)
    _install(registry)
    _search_path.roots = _search_roots(registry, folder)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder or config_root()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("")}
        known = [override for override in parsed if _option_exists(override, groups, problems)]
        forced = [_force(override, groups) for override in known]
        try:
            composed = hydra_compose(config_name=name, overrides=forced)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([*problems, Problem("", _first_words(error))]) from None
    values = _resolve(composed, "", problems)
    written = OmegaConf.to_container(composed, resolve=False)
    trace = partial(_origins, loader, name, forced, known, groups)
    result = Config(values, dict(written), registry, groups, trace)  # type: ignore[arg-type]
    if problems:
        _add_plan_problems(result, problems)
        raise ConfigError(replace(p, origin=p.origin or result.origin(p.path)) for p in problems)
    return result


def _add_plan_problems(config: Config, problems: list[Problem]) -> None:
    """What else is wrong, so that all of it is mended in one go."""
    said = {problem.path for problem in problems}
    try:
        config.plan()
    except ConfigError as error:
        problems.extend(problem for problem in error.problems if problem.path not in said)


def _locate(config: Path | None) -> tuple[Path | None, str]:
    if config is None:
        return None, PRIMARY
    path = config.expanduser().resolve()
    if path.is_dir():
        return path, PRIMARY
    if path.is_file() and path.suffix == ".yaml":
        return path.parent, path.stem
    raise ConfigError([Problem("--config", f"`{config}` is neither a folder nor a .yaml file.")])


@dataclass(slots=True)
class _SearchRoots:
    roots: list[tuple[str, str]] = field(default_factory=list)


_search_path = _SearchRoots()


class PipelineSearchPath(SearchPathPlugin):
    """Adds the shipped YAML, the YAML of packages, and the plugins themselves."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the roots of the composition under way."""
        for provider, path in _search_path.roots:
            search_path.append(provider=provider, path=path)


def _install(registry: Registry) -> None:
    PluginSource.registry = registry
    _register()


@cache
def _register() -> None:
    Plugins.instance().register(PluginSource)
    Plugins.instance().register(PipelineSearchPath)
    OmegaConf.register_new_resolver("file", _read_secret, replace=True)


def _read_secret(path: str) -> str:
    """`${file:/run/secrets/key}`: the text of a file without its last line end."""
    return Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")


def _search_roots(registry: Registry, folder: Path | None) -> list[tuple[str, str]]:
    shipped = [] if folder is None else [(PRIMARY, f"file://{config_root()}")]
    packages = [(p.distribution, f"pkg://{p.entry.value}") for p in registry.reserved("conf")]
    return [*shipped, *packages, ("plugins", f"{SCHEME}://")]


def _parse(overrides: Sequence[str], problems: list[Problem]) -> list[Override]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            hint = "Expected KEY=VALUE, +KEY=VALUE or ~KEY; quote values with commas, spaces or brackets."
            problems.append(Problem("", f"`{_masked(text)}` is not a Hydra override.", hint))
            continue
        if override.is_sweep_override():
            hint = f"For a list write {override.key_or_group}=[A,B]; only sweeps (-m) take several."
            problems.append(Problem(override.key_or_group, f"`{_masked(text)}` gives several values.", hint))
            continue
        parsed.append(override)
    return parsed


def _masked(text: str) -> str:
    key, sign, _ = text.partition("=")
    return f"{key}=***" if sign and SECRET_KEY.search(key) else text


def _option_exists(override: Override, groups: Mapping[str, Sequence[str]], problems: list[Problem]) -> bool:
    """Report an unknown option of a group; Hydra would stop at the first."""
    options = groups.get(override.key_or_group)
    value = override.value()
    if options is None or override.is_delete() or not isinstance(value, str) or value in options:
        return True
    origin = f"override {override.input_line}"
    problems.append(
        Problem(override.key_or_group, f"no option `{value}`.", did_you_mean(value, options), origin)
    )
    return False


def _force(override: Override, groups: Mapping[str, Sequence[str]]) -> str:
    """Let a plain override reach keys that no YAML names: pydantic knows which exist."""
    text = override.input_line or ""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return f"++{text}" if plain and override.key_or_group not in groups else text


def _first_words(error: BaseException) -> str:
    text = str(error) or str(error.__cause__ or type(error).__name__)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])


def _resolve(node: Any, path: str, problems: list[Problem]) -> Any:
    """Plain values of a node; what can't be resolved is reported, not raised."""
    if isinstance(node, DictConfig) and not node._is_none():
        return {str(k): _child(node, k, _join(path, k), problems) for k in node}
    if isinstance(node, ListConfig) and not node._is_none():
        return [_child(node, i, f"{path}.{i}", problems) for i in range(len(node))]
    return None if isinstance(node, (DictConfig, ListConfig)) else node


def _join(path: str, key: object) -> str:
    return f"{path}.{key!s}" if path else str(key)


def _child(node: Any, key: Any, path: str, problems: list[Problem]) -> Any:
    try:
        value = node[key]
    except (OmegaConfBaseException, OSError) as error:
        problems.append(Problem(path, f"{_first_words(error)}."))
        return None
    return _resolve(value, path, problems)


def _origins(
    loader: ConfigLoader,
    name: str,
    forced: list[str],
    overrides: list[Override],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """For every key path the last writer, in the order in which Hydra merges."""
    origins: dict[str, str] = {}
    defaults = loader.compute_defaults_list(name, forced, RunMode.RUN)
    for default in defaults.defaults:
        path = default.config_path
        if path is None or path.startswith("hydra/"):
            continue
        loaded = loader.repository.load_config(path)  # type: ignore[attr-defined]
        package = default.package or ""
        for key in _leaves(loaded.config, ""):
            origins[".".join(part for part in (package, key) if part)] = _source_of(loaded, path)
    for override in overrides:
        key = override.key_or_group
        if key not in groups:
            for old in [o for o in origins if o == key or o.startswith(key + ".")]:
                del origins[old]
            origins[key] = f"override {_masked(override.input_line or '')}"
        elif not override.is_delete():
            origins.setdefault(override.package or key, f"override {override.input_line}")
    return origins


def _leaves(node: Any, path: str) -> Iterable[str]:
    if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none() and len(node):
        for key in node:
            child = node._get_node(key)
            yield from _leaves(child, _join(path, key))
    elif path:
        yield path


def _source_of(loaded: Any, path: str) -> str:
    scheme, _, root = loaded.path.partition("://")
    if scheme == SCHEME:
        return f"default of {path.replace('/', '.', 1)}"
    if scheme != "file":
        return f"{root.replace('.', '/')}/{path}.yaml"
    file = Path(root) / f"{path}.yaml"
    for base in (Path.cwd(), config_root().parent):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return str(file)

"""Composing a configuration: Hydra merges, OmegaConf resolves, pydantic validates.

`compose(overrides)` gives a `Config`; `Config.plan()` checks it against the installed
plugins. Every mistake becomes a `Problem` with its key path and the file or override
that it came from; nothing of the user's config is ever instantiated by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.hydra_source import SCHEME, Groups, PluginSource
from pipeline.origins import show_file, trace
from pipeline.overrides import force, option_exists, parse
from pipeline.plan import Plan, check_model, plan_graph
from pipeline.plugins import Registry
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.redaction import redactor
from pipeline.resolve import resolve
from pipeline.secrets import values_of
from pipeline.settings import ServerConfig

PRIMARY = "pipeline"
"""Name of the primary config, `pipeline.yaml`."""

TOP_LEVEL = ("extensions", "graph", "server", "vars")
"""Keys of the primary config that are not nodes of plugins."""

COMPOSITION_FAILURES = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError)
"""What Hydra raises for files and overrides that make no config."""


_composing = Lock()
"""Hydra composes in state that the whole process shares: one composition at a time."""


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
    groups: Groups
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
        """Check everything. Raises `ConfigError` with all problems, each with its origin.

        What is secret in it is masked in log lines from then on.
        """
        problems: list[Problem] = self._check_top_level()
        server = check_model(ServerConfig, self.values.get("server") or {}, "server", problems)
        plan = None
        try:
            plan = plan_graph(self.values, self.registry)
        except ConfigError as error:
            problems.extend(error.problems)
        if problems or plan is None or not isinstance(server, ServerConfig):
            raise ConfigError(replace(p, origin=p.origin or self.origin(p.path)) for p in problems)
        for part in (*plan.parts.values(), *plan.extensions):
            redactor.conceal(values_of(part.config))
        return plan, server

    def _check_top_level(self) -> list[Problem]:
        known = [*TOP_LEVEL, *(k for k, v in self.values.items() if _holds_plugins(v))]
        used = self._used_roots()
        return [
            Problem(key, f"unknown key `{key}`.", did_you_mean(key, {*known, *used}))
            for key in self.values
            if key not in known and key not in used
        ]

    def _used_roots(self) -> set[str]:
        graph = self.values.get("graph")
        stages = graph.get("stages") if isinstance(graph, Mapping) else None
        if not isinstance(stages, Mapping):
            return set()
        uses = {str(s.get("use", n) if isinstance(s, Mapping) else n) for n, s in stages.items()}
        return {use.split(".")[0] for use in uses}


def _holds_plugins(node: Any) -> bool:
    """Whether this is a plugin's node, or one of a kind of which several stand side by side."""
    if not isinstance(node, Mapping) or not node:
        return False
    return "plugin" in node or any(isinstance(i, Mapping) and "plugin" in i for i in node.values())


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
    problems: list[Problem] = []
    parsed = parse(overrides, problems)
    with _loading(config, registry) as (loader, name, groups):
        known = [override for override in parsed if option_exists(override, groups, problems)]
        forced = [force(override, groups) for override in known]
        try:
            composed = hydra_compose(config_name=name, overrides=forced)
        except COMPOSITION_FAILURES as error:
            raise ConfigError([*problems, _why_not_composed(error, known, groups, config)]) from None
    values = resolve(composed, "", problems)
    written = OmegaConf.to_container(composed, resolve=False)
    tracing = partial(trace, loader, name, forced, known, groups, config_root())
    result = Config(values, dict(written), registry, groups, tracing)  # type: ignore[arg-type]
    if problems:
        _add_plan_problems(result, problems)
        raise ConfigError(replace(p, origin=p.origin or result.origin(p.path)) for p in problems)
    return result


def compose_sweep(
    overrides: Sequence[str], *, config: Path | None = None, registry: Registry | None = None
) -> tuple[DictConfig, ConfigLoader]:
    """What Hydra's sweepers and launchers need: the composition for a multirun, and its loader.

    Of `overrides`, each with one value, some may be Hydra's own. Raises `ConfigError`.
    """
    problems: list[Problem] = []
    own = [text for text in overrides if is_hydras(text)]
    parsed = parse([text for text in overrides if not is_hydras(text)], problems)
    with _loading(config, registry or Registry()) as (loader, name, groups):
        known = [override for override in parsed if option_exists(override, groups, problems)]
        if problems:
            raise ConfigError(problems)
        given = [*(force(override, groups) for override in known), *own]
        try:
            return loader.load_configuration(name, given, run_mode=RunMode.MULTIRUN), loader
        except COMPOSITION_FAILURES as error:
            raise ConfigError([_why_not_composed(error, known, groups, config)]) from None


def is_hydras(override: str) -> bool:
    """Whether an override is of Hydra's own keys and groups, and not of the pipeline."""
    return override.lstrip("+~").startswith(("hydra/", "hydra."))


@contextmanager
def _loading(config: Path | None, registry: Registry) -> Iterator[tuple[ConfigLoader, str, Groups]]:
    """Hydra set up: its loader, the primary config's name, and config groups with their options."""
    folder, name = _locate(config)
    with _composing:
        _install(registry)
        _search_path.roots = _search_roots(registry, folder)
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(folder or config_root()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            yield loader, name, Groups(loader)


def _add_plan_problems(config: Config, problems: list[Problem]) -> None:
    """What else is wrong, so that all of it is mended in one go."""
    said = {problem.path for problem in problems}
    try:
        config.plan()
    except ConfigError as error:
        problems.extend(problem for problem in error.problems if problem.path not in said)


def pinned(config: Path | None) -> Path | None:
    """The folder's own primary config where it has one: if that goes missing, the shipped one must not do."""
    own = config / f"{PRIMARY}.yaml" if config is not None else None
    return own if own is not None and own.expanduser().is_file() else config


def _locate(config: Path | None) -> tuple[Path | None, str]:
    if config is None:
        return None, PRIMARY
    path = config.expanduser()
    if path.is_dir():
        return path.resolve(), PRIMARY
    if path.is_file() and path.suffix == ".yaml":
        # A link stands where it is: what it points to may have other neighbours.
        return path.parent.resolve(), path.stem
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
    # Each time: what launchers restore in their processes knows nothing of it. Hydra takes a class once.
    Plugins.instance().register(PluginSource)
    Plugins.instance().register(PipelineSearchPath)
    OmegaConf.register_new_resolver("file", _read_secret, replace=True)


def _read_secret(path: str) -> str:
    """`${file:/run/secrets/key}`: the text of a file without its last line end."""
    return Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")


def _search_roots(registry: Registry, folder: Path | None) -> list[tuple[str, str]]:
    shipped = [] if folder is None else [(PRIMARY, f"file://{config_root()}")]
    packages = [(p.distribution, _yaml_root(p.entry.value)) for p in registry.reserved("conf")]
    return [*shipped, *packages, ("plugins", f"{SCHEME}://")]


def _yaml_root(package: str) -> str:
    """The folder of a package, found without importing it; Hydra imports what is not a folder."""
    top, *below = package.split(".")
    spec = find_spec(top)
    for location in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(location, *below)
        if folder.is_dir():
            return f"file://{folder}"
    return f"pkg://{package}"


def _why_not_composed(
    error: Exception,
    overrides: Sequence[Override],
    groups: Mapping[str, Sequence[str]],
    config: Path | None,
) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        origin = f"{show_file(Path(mark.name), config_root())}:{mark.line + 1}"
        return Problem("", f"not valid YAML: {error.problem}.", f"See column {mark.column + 1}.", origin)
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return Problem("", f"not valid YAML: {_first_words(error)}", origin=str(config or ""))
    if isinstance(error, RecursionError):
        hint = "To build on the shipped one: `defaults: [pipeline, _self_]` in another file, `-c FILE`."
        return Problem("defaults", "a file includes itself, or is nested too deep.", hint, str(config or ""))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        missing = str(error.missing_cfg_file)
        group, _, option = missing.rpartition("/")
        options = [str(known) for known in error.options or groups.get(group, ())]
        return Problem(group, f"there is no config `{missing}`.", did_you_mean(option, options))
    if isinstance(error, HydraException) and "must be a DictConfig" in str(error):
        hint = "Expected a mapping such as `server: {port: 8001}`."
        return Problem(
            "", "the file holds a list.", hint, show_file(Path(str(config)).resolve(), config_root())
        )
    text = _first_words(error)
    values = [override for override in overrides if override.key_or_group not in groups]
    meant = [override for override in values if override.key_or_group in text]
    if not meant:
        return Problem("", text)
    override = max(meant, key=lambda one: len(one.key_or_group))
    return _why_not_applied(override)


def _why_not_applied(override: Override) -> Problem:
    """Hydra's own words would repeat the value, which may be a secret."""
    key = override.key_or_group
    origin = f"override {key}"
    if override.is_delete():
        return Problem(key, "there is nothing to delete, or it has another value.", "", origin)
    if override.is_add():
        return Problem(key, "there is a value already.", f"Write `{key}=VALUE` to replace it.", origin)
    return Problem(
        key, "the value does not fit what is there.", f"See `pipeline config --key {key}`.", origin
    )


def _first_words(error: BaseException) -> str:
    text = str(error) or str(error.__cause__ or type(error).__name__)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])

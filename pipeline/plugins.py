"""Finding plugins by their package metadata, and loading those that a config names.

One entry-point group, `pipeline`. The name says what an entry is:

    KIND.NAME   a stage class (or an extension's), selected as `KIND=NAME`
    conf.NAME   a package whose YAML files join the config search path; not imported
    verb.NAME   a click command, `pipeline NAME`
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from pipeline.kinds import KINDS
from pipeline.problems import did_you_mean
from pipeline.stage import Edge, Edges

GROUP = "pipeline"
RESERVED = frozenset({"conf", "verb"})
"""First halves of names that are not kinds."""


class PluginError(Exception):
    """A plugin is unknown, ambiguous, fails to import or breaks the contract."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(slots=True, frozen=True)
class EdgeSpec:
    """One edge that a stage class declares by an `__init__` parameter."""

    name: str
    required: bool
    many: bool


@dataclass(slots=True, frozen=True)
class Loaded:
    """A plugin class that keeps the contract, with what its signature declares."""

    cls: type[Any]
    config: type[BaseModel]
    edges: dict[str, EdgeSpec]
    wants_name: bool

    @property
    def is_stage(self) -> bool:
        """Whether it can stand in a graph, rather than among the extensions only."""
        return inspect.iscoroutinefunction(getattr(self.cls, "__call__", None))  # noqa: B004


@dataclass(frozen=True)
class Plugin:
    """What the metadata of one entry says; nothing is imported before `load`."""

    entry: EntryPoint

    @property
    def id(self) -> str:
        """`KIND.NAME`."""
        return self.entry.name

    @property
    def kind(self) -> str:
        """The config group."""
        return self.entry.name.partition(".")[0]

    @property
    def name(self) -> str:
        """The option in the group."""
        return self.entry.name.partition(".")[2]

    @property
    def distribution(self) -> str:
        """Name and version of the package that it comes from."""
        dist = self.entry.dist
        return f"{dist.name} {dist.version}" if dist else "unknown"

    def load(self) -> Loaded:
        """Import the class and check it. Raises `PluginError` with the cause."""
        return self._loaded

    @cached_property
    def _loaded(self) -> Loaded:
        try:
            target = self.entry.load()
        except (Exception, SystemExit) as error:
            cause = f"{type(error).__name__}: {error}{_place(error)}"
            raise PluginError(
                f"plugin `{self.id}` of {self.distribution} fails to import: {cause}"
            ) from error
        return inspect_class(self.id, target)


class Registry:
    """All installed plugins, by the metadata alone."""

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        found = entry_points(group=GROUP) if entries is None else entries
        self._by_id: dict[str, list[Plugin]] = {}
        for entry in sorted(set(found), key=lambda e: (e.name, e.value)):
            self._by_id.setdefault(entry.name, []).append(Plugin(entry))

    @property
    def plugins(self) -> list[Plugin]:
        """Every entry that stands for a stage or an extension, sorted by its id."""
        return [p for same in self._by_id.values() for p in same if p.name and p.kind not in RESERVED]

    @property
    def kinds(self) -> list[str]:
        """All kinds: the known ones and those that plugins add."""
        return sorted({*KINDS, *(plugin.kind for plugin in self.plugins)})

    def names(self, kind: str) -> list[str]:
        """The options of a kind."""
        return sorted({plugin.name for plugin in self.plugins if plugin.kind == kind})

    def reserved(self, word: str) -> list[Plugin]:
        """The entries `WORD.NAME` of a reserved word."""
        return [p for same in self._by_id.values() for p in same if p.kind == word]

    def find(self, id: str) -> Plugin:
        """The plugin `KIND.NAME`. Raises `PluginError` if there is none, or two."""
        found = self._by_id.get(id, [])
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(plugin.distribution for plugin in found)
            raise PluginError(f"plugin `{id}` is provided twice, by {owners}", "Uninstall one of them.")
        kind = id.partition(".")[0]
        same_kind = [plugin.id for plugin in self.plugins if plugin.kind == kind]
        known = same_kind or [plugin.id for plugin in self.plugins]
        raise PluginError(f"no plugin `{id}` is installed", did_you_mean(id, known))


def inspect_class(id: str, target: Any) -> Loaded:
    """Check that `target` keeps the contract of `pipeline.stage.Stage`."""
    if not inspect.isclass(target):
        raise PluginError(f"plugin `{id}` is not a class but {type(target).__name__}")
    config = getattr(target, "Config", None)
    if not (inspect.isclass(config) and issubclass(config, BaseModel)):
        raise PluginError(f"plugin `{id}` has no nested pydantic model `Config`")
    try:
        hints = get_type_hints(target.__init__, localns=_names(target))
    except NameError as error:
        raise PluginError(f"plugin `{id}`: an annotation of __init__ can't be read: {error}") from error
    parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    names = {parameter.name for parameter in parameters}
    if "config" not in names:
        raise PluginError(f"plugin `{id}`: __init__ must take `config`")
    edges: dict[str, EdgeSpec] = {}
    for parameter in parameters:
        if parameter.name in ("config", "name"):
            continue
        spec = _edge_of(parameter, hints.get(parameter.name))
        if spec is None:
            raise PluginError(
                f"plugin `{id}`: parameter `{parameter.name}` of __init__ is not an edge",
                "Annotate it as Edge, Edge | None or Edges, or make it a field of Config.",
            )
        edges[spec.name] = spec
    return Loaded(target, config, edges, "name" in names)


def _names(target: type) -> dict[str, Any]:
    """What annotations within a class may name, those of an inherited __init__ too."""
    return {name: value for base in reversed(target.__mro__) for name, value in vars(base).items()}


def _edge_of(parameter: inspect.Parameter, hint: Any) -> EdgeSpec | None:
    has_default = parameter.default is not inspect.Parameter.empty
    if hint is Edge:
        return EdgeSpec(parameter.name, required=not has_default, many=False)
    if hint is Edges:
        return EdgeSpec(parameter.name, required=not has_default, many=True)
    args = get_args(hint)
    if args and get_origin(hint) in (Union, type(int | str)) and set(args) <= {Edge, type(None)}:
        return EdgeSpec(parameter.name, required=False, many=False)
    return None


def _place(error: BaseException) -> str:
    """File and line of the plugin's code that failed, if it got that far."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    own = [f for f in frames if f.filename != __file__]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""

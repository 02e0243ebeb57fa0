"""Hydra's view of installed plugins: a config source that needs no YAML.

`plugins://` lists every kind as a config group and every plugin as an option of it,
from package metadata. Loading an option imports that plugin alone and makes a node of
its `Config`'s defaults. Every kind also has the option `none`: no plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import PydanticUndefined, to_jsonable_python

from pipeline.kinds import KINDS
from pipeline.plugins import PluginError, Registry

SCHEME = "plugins"
NONE = "none"


class PluginSource(ConfigSource):
    """Config groups and options made from the registry, see the module's text."""

    registry: ClassVar[Registry] = Registry(())

    @staticmethod
    def scheme() -> str:
        """The scheme of its search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The node of one option."""
        kind, name = self._split(config_path)
        several = kind in KINDS and KINDS[kind].several
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no plugin {kind}.{name}")
        node = {"plugin": None} if name == NONE else default_node(self.registry, f"{kind}.{name}")
        return ConfigResult(
            provider=self.provider,
            path=f"{SCHEME}://",
            config=OmegaConf.create(node),
            header={"package": f"{kind}.{name}" if several and name != NONE else kind},
        )

    def is_group(self, config_path: str) -> bool:
        """Whether this is a kind."""
        return config_path.strip("/") in ("", *self.registry.kinds)

    def is_config(self, config_path: str) -> bool:
        """Whether this is a plugin's option, or a kind's `none`."""
        kind, name = self._split(config_path)
        return kind in self.registry.kinds and (name == NONE or name in self.registry.names(kind))

    def available(self) -> bool:
        """Always."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Kinds at the root, options within a kind."""
        kind = config_path.strip("/")
        if kind == "":
            return [] if results_filter == ObjectType.CONFIG else self.registry.kinds
        if kind not in self.registry.kinds or results_filter == ObjectType.GROUP:
            return []
        return sorted({NONE, *self.registry.names(kind)})

    @staticmethod
    def _split(config_path: str) -> tuple[str, str]:
        kind, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
        return kind, name


class Groups(Mapping[str, Sequence[str]]):
    """All config groups with their options; a group's are listed when it is first asked for."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._names = loader.list_groups("")
        self._options: dict[str, list[str]] = {}

    def __getitem__(self, group: str) -> Sequence[str]:
        if group not in self._options:
            if group not in self._names:
                raise KeyError(group)
            # The loader's own method copies all that it knows, each time.
            repository = self._loader.repository  # type: ignore[attr-defined]
            self._options[group] = repository.get_group_options(group, ObjectType.CONFIG)
        return self._options[group]

    def __contains__(self, group: object) -> bool:
        return group in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def default_node(registry: Registry, id: str) -> dict[str, Any]:
    """A plugin's id and its config's defaults.

    A plugin that can't be loaded gives its id alone: compiling the graph reports why.
    """
    try:
        model = registry.find(id).load().config
    except PluginError:
        return {"plugin": id}
    return {"plugin": id, **defaults_of(model)}


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a pydantic model as plain values; required fields are left out."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is not PydanticUndefined:
            values[name] = _plain(default)
    return values


def _plain(value: Any) -> Any:
    """A default as YAML could write it. A secret is written out: it has to arrive."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return _plain(value.get_secret_value())
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return to_jsonable_python(value)

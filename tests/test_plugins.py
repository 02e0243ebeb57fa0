"""Finding plugins by metadata, and telling what is wrong with one."""

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import Edge, Edges
from pipeline.kinds import KINDS
from pipeline.plugins import EdgeSpec, Loaded, Plugin, PluginError, Registry, inspect_class
from tests.stages import Empty, registry


class Every:
    """Has an edge of each sort."""

    Config = Empty

    def __init__(
        self, config: Empty, name: str, next: Edge, many: Edges, retry: Edge | None, last: Edge | None = None
    ) -> None: ...

    async def __call__(self, call: Any) -> Any: ...


class Observer:
    Config = Empty

    def __init__(self, config: Empty) -> None: ...


class Nested:
    """Its constructor's annotation can be read where its `Config` is."""

    class Config(BaseModel):
        """Nothing to be told."""

    def __init__(self, config: "Config", next: Edge) -> None: ...


class Inherits(Nested):
    """Adds nothing to its constructor."""


class NoConfig:
    def __init__(self, config: Empty) -> None: ...


class ForeignConfig:
    Config = dict

    def __init__(self, config: Any) -> None: ...


class TakesMore:
    Config = Empty

    def __init__(self, config: Empty, path: str) -> None: ...


class TakesNone:
    Config = Empty


class Unreadable:
    Config = Empty

    def __init__(self, config: Empty, next: "NoSuchName") -> None: ...  # type: ignore[name-defined]  # noqa: F821


def refused(target: Any) -> PluginError:
    with pytest.raises(PluginError) as raised:
        inspect_class("infer.it", target)
    return raised.value


def entries(**values: str) -> Registry:
    return Registry(
        EntryPoint(name.replace("_", ".", 1), value, "pipeline") for name, value in values.items()
    )


def test_kinds_are_the_known_ones_and_those_that_plugins_add() -> None:
    found = entries(audit_acme="a:B", infer_x="a:B")
    assert set(found.kinds) == {*KINDS, "audit"}
    assert found.names("infer") == ["x"]
    assert found.names("audit") == ["acme"]


def test_verbs_and_config_packages_are_no_plugins() -> None:
    found = entries(verb_x="a:b", conf_x="a.conf", infer_x="a:B")
    assert [plugin.id for plugin in found.plugins] == ["infer.x"]
    assert [plugin.id for plugin in found.reserved("verb")] == ["verb.x"]
    assert "verb" not in found.kinds


def test_an_entry_without_a_name_is_no_plugin() -> None:
    assert entries(infer="a:B").plugins == []


def test_listing_imports_nothing() -> None:
    found = entries(infer_x="no_such_module:X")
    assert [plugin.name for plugin in found.plugins] == ["x"]
    assert found.find("infer.x").distribution == "unknown"


def test_edges_are_read_from_the_signature() -> None:
    loaded = inspect_class("route.every", Every)
    assert list(loaded.edges.values()) == [
        EdgeSpec("next", required=True, many=False),
        EdgeSpec("many", required=True, many=True),
        EdgeSpec("retry", required=False, many=False),
        EdgeSpec("last", required=False, many=False),
    ]
    assert loaded.wants_name
    assert loaded.is_stage


def test_a_class_that_can_not_be_called_is_an_extension() -> None:
    loaded: Loaded = inspect_class("audit.it", Observer)
    assert not loaded.is_stage
    assert loaded.edges == {}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "is not a class but int"),
        (NoConfig, "has no nested pydantic model `Config`"),
        (ForeignConfig, "has no nested pydantic model `Config`"),
        (TakesMore, "parameter `path` of __init__ is not an edge"),
        (TakesNone, "__init__ must take `config`"),
        (Unreadable, "an annotation of __init__ can't be read: name 'NoSuchName'"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(target: Any, message: str) -> None:
    assert message in str(refused(target))


def test_a_foreign_parameter_is_told_what_would_be_right() -> None:
    assert "make it a field of Config" in refused(TakesMore).hint


def test_an_unknown_plugin_is_refused_with_the_nearest_of_its_kind() -> None:
    with pytest.raises(PluginError) as raised:
        registry().find("infer.anser")
    assert raised.value.hint == "Did you mean `infer.answer`?"


def test_a_plugin_that_two_packages_provide_is_refused() -> None:
    twice = Registry([EntryPoint("infer.x", "a:A", "pipeline"), EntryPoint("infer.x", "b:B", "pipeline")])
    with pytest.raises(PluginError, match="provided twice") as raised:
        twice.find("infer.x")
    assert raised.value.hint == "Uninstall one of them."


def test_the_same_entry_found_twice_is_one_plugin() -> None:
    same = EntryPoint("infer.answer", "tests.stages:Answer", "pipeline")
    assert Registry([same, same]).find("infer.answer").load().wants_name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("tests.stages:Missing", "AttributeError: module 'tests.stages' has no attribute 'Missing'"),
    ],
)
def test_a_plugin_that_fails_to_import_is_told_with_its_cause(value: str, message: str) -> None:
    with pytest.raises(PluginError) as raised:
        entries(infer_x=value).find("infer.x").load()
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["raise RuntimeError('no licence')", "import sys; sys.exit(3)", "def f(:"])
def test_the_failing_line_of_a_plugin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(f"\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as raised:
        entries(infer_x=f"{name}:X").find("infer.x").load()
    assert "fails to import" in str(raised.value)
    assert f"{name}.py" in str(raised.value)


def test_a_graph_imports_the_plugins_that_it_names_and_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.config import compose; from pipeline.graph import Graph; "
        "plan, _ = compose(['infer=echo', 'infer@embed=echo', 'embed.name=e', 'cache=none']).plan();"
        "Graph.build(plan);"
        "print(*(m for m in sys.modules if m.startswith('pipeline_plugins.')));"
        "print(*({'torch', 'transformers', 'xllamacpp', 'onnxruntime', 'aiohttp', 'numpy', 'openai', 'redis',"
        " 'genai_prices', 'opentelemetry'}"
        " & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    ours, heavy = done.stdout.splitlines()
    plugins = {entry.module: entry.name for entry in entry_points(group="pipeline")}
    assert {plugins[name] for name in ours.split() if name in plugins} == {
        "dashboard.web",
        "infer.echo",
        "limit.token_bucket",
        "metrics.prometheus",
        "monitor.log",
        "price.genai",
        "route.direct",
    }
    assert heavy == ""


OWN = [plugin for plugin in Registry().plugins if plugin.distribution.startswith("llm-pipeline ")]


@pytest.mark.parametrize("plugin", OWN, ids=lambda plugin: plugin.id)
def test_every_plugin_of_the_project_describes_every_field(plugin: Plugin) -> None:
    config: type[BaseModel] = plugin.load().config
    assert config.model_config.get("extra") == "forbid"
    assert [name for name, field in config.model_fields.items() if not field.description] == []


def test_a_constructor_may_be_inherited_with_its_config() -> None:
    loaded = inspect_class("cache.acme", Inherits)
    assert loaded.config is Nested.Config
    assert loaded.edges == {"next": EdgeSpec("next", required=True, many=False)}

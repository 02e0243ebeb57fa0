"""Composing a configuration: what overrides and files can say, and what mistakes are told."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config, compose
from pipeline.config_print import as_yaml, effective
from pipeline.origins import show_file
from pipeline.problems import ConfigError, Problem
from tests import stages

ECHO = ("infer=echo", "infer@embed=echo", "embed.name=e")


def composed(*overrides: str, config: Path | None = None) -> Config:
    return compose([*ECHO, *overrides], config=config)


def problems(*overrides: str, config: Path | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as raised:
        composed(*overrides, config=config).plan()
    return raised.value.problems


def problem(*overrides: str, config: Path | None = None) -> Problem:
    (only,) = problems(*overrides, config=config)
    return only


def printed(config: Config) -> str:
    return "\n".join(f"{line} # {origin}" for line, origin in as_yaml(config))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_group_override_picks_a_plugin_whose_defaults_need_no_yaml() -> None:
    config = composed()
    assert config.values["infer"]["plugin"] == "infer.echo"
    assert config.values["infer"]["latency"] == 0.0
    assert config.origin("infer.latency") == "default of infer.echo"
    assert {"echo", "llamacpp", "none"} <= set(config.groups["infer"])


def test_a_value_override_reaches_a_field_of_any_stage() -> None:
    config = composed("infer.dimensions=8", "server.port=0", "infer.aliases=[a,b]")
    plan, server = config.plan()
    assert plan.parts["infer"].config.model_dump()["dimensions"] == 8
    assert plan.parts["infer"].config.model_dump()["aliases"] == ["a", "b"]
    assert server.port == 0
    assert config.origin("infer.dimensions") == "override infer.dimensions"


def test_instances_of_one_plugin_differ_by_package() -> None:
    config = composed(
        "+infer@second=echo",
        "second.name=s",
        "++graph.stages.second={}",
        "graph.stages.route.next={infer:infer,second:second,embed:embed}",
    )
    plan, _ = config.plan()
    names = {name: part.config.model_dump().get("name") for name, part in plan.parts.items()}
    assert (names["infer"], names["second"], names["embed"]) == ("echo", "s", "e")


def test_none_leaves_a_stage_out() -> None:
    plan, _ = composed("cache=none").plan()
    assert "cache" in plan.elided
    assert "cache" not in plan.parts


def test_a_folder_is_searched_before_the_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, server__default="port: 4321\n", infer__mine="plugin: infer.echo\nname: mine\n")
    config = compose(["infer=mine", "infer@embed=echo"], config=tmp_path)
    assert config.values["server"] == {"port": 4321}
    assert config.values["infer"]["name"] == "mine"
    assert config.origin("server.port").endswith("server/default.yaml")
    assert config.origin("infer.name").endswith("infer/mine.yaml")


def test_a_file_takes_the_primary_configs_place(tmp_path: Path) -> None:
    write(tmp_path, mine="defaults:\n  - pipeline\n  - override infer: echo\n  - _self_\nserver: {port: 1}\n")
    config = compose(["infer@embed=echo"], config=tmp_path / "mine.yaml")
    assert config.values["server"]["port"] == 1
    assert config.values["graph"]["entry"] == "monitor"
    assert config.origin("server.port").endswith("mine.yaml")
    assert config.origin("server.host") == "conf/server/default.yaml"


def test_every_value_has_the_origin_of_its_last_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine="defaults: [pipeline, _self_]\nserver: {port: 1, host: localhost}\n")
    config = composed("server.port=2", config=tmp_path / "mine.yaml")
    _, origins = effective(config)
    config.origins = origins
    assert config.origin("server.port") == "override server.port"
    assert config.origin("server.host") == "mine.yaml"
    assert config.origin("server.workers") == "conf/server/default.yaml"
    assert config.origin("server.backlog") == "default of server"


def test_a_shipped_file_has_the_same_short_name_wherever_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "venv" / "pipeline" / "conf"
    assert show_file(shipped / "server" / "default.yaml", shipped) == "conf/server/default.yaml"
    assert show_file(tmp_path / "mine.yaml", shipped) == "mine.yaml"
    assert show_file(Path("/elsewhere/mine.yaml"), shipped) == "/elsewhere/mine.yaml"


def test_the_origin_of_a_bad_value_is_told() -> None:
    assert problem("server.port=99999").origin == "override server.port"
    assert problem("infer.name={x: 3}").origin == "override infer.name"
    assert problem("infer.name.x=3").origin == "override infer.name.x"


def test_composition_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pipeline="infer: {plugin: evil}\n", infer__echo="plugin: evil\n")
    before = composed().values
    monkeypatch.chdir(tmp_path)
    assert composed().values == before


def test_an_environment_variable_is_resolved_yet_printed_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_NAME", "parrot")
    config = composed("infer.name=${oc.env:ECHO_NAME}")
    assert config.values["infer"]["name"] == "parrot"
    assert "name: ${oc.env:ECHO_NAME}" in printed(config)
    assert "parrot" not in printed(config)


def test_a_file_reference_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("parrot\n")
    config = composed(f"infer.name=${{file:{tmp_path}/key}}")
    assert config.values["infer"]["name"] == "parrot"
    assert "parrot" not in printed(config)


def test_an_interpolation_may_refer_to_the_users_own_variables() -> None:
    config = composed("+vars.port=81", "server.port=${vars.port}")
    assert config.plan()[1].port == 81


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found."),
        ("${file:/no/such/file}", "No such file or directory: '/no/such/file'."),
        ("${nope:1}", "Unsupported interpolation type nope."),
        ("${infer.name}", "Recursive interpolation detected."),
        ("${no.such.key}", "Interpolation key 'no.such.key' not found."),
        ("???", "a value is required."),
    ],
)
def test_what_can_not_be_resolved_is_told_at_its_path(value: str, message: str) -> None:
    found = problem(f"infer.name={value}")
    assert (found.path, found.origin) == ("infer.name", "override infer.name")
    assert found.message.endswith(message)


def test_an_unknown_top_level_key_is_refused_with_the_nearest() -> None:
    found = problem("infre.name=x")
    assert (found.path, found.hint, found.origin) == ("infre", "Did you mean `infer`?", "override infre.name")


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    found = problem("infer=eco")
    assert (found.path, found.hint, found.origin) == ("infer", "Did you mean `echo`?", "override infer=eco")
    assert problem("infer@embed=eco").path == "embed"


@pytest.mark.parametrize("value", ["null", "5", "true", "{name: x}"])
def test_a_group_takes_an_option_not_a_value(value: str) -> None:
    found = problem(f"server={value}")
    assert (found.path, found.message) == ("server", "`server` is a group.")
    assert "`server=default`" in found.hint
    assert "`infer@embed=echo`" in problem(f"infer@embed={value}").hint


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("infre=echo", "infer.nam=x", "server.port=99999", "cache=exct", "=", "infer.latency=-1")
    assert {p.path for p in found} == {"infre", "infer.nam", "server.port", "cache", "", "infer.latency"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~infer.name=other", "nothing to delete, or it has another value"),
        ("~infer.nothing", "nothing to delete"),
        ("+infer.name=x", "there is a value already"),
        ("infer.aliases.0=x", "does not fit"),
    ],
)
def test_an_override_that_can_not_be_applied_is_told_at_its_key(override: str, message: str) -> None:
    found = problem(override)
    assert found.path == override.strip("~+").partition("=")[0]
    assert message in found.message


def test_a_sweep_is_refused_outside_of_sweeps() -> None:
    found = problem("infer.name=a,b")
    assert found.path == "infer.name"
    assert "infer.name=[A,B]" in found.hint
    assert problem("infer=echo,none").origin == "override infer"


@pytest.mark.parametrize("text", ["", "=", "a b", "infer.name=[", "infer.name=${", "a.=1", "+", "infer:x=1"])
def test_what_is_no_override_is_told(text: str) -> None:
    found = problem(text)
    assert "is not a Hydra override" in found.message
    assert "KEY=VALUE" in found.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nserver: {port: [1\nx: }\n", 3),
        ("a:\n\t- b\n", 2),
        ("a: 1\na: 2\n", 2),
    ],
)
def test_a_syntax_error_is_told_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine=text)
    assert problem(config=tmp_path / "mine.yaml").origin == f"mine.yaml:{line}"
    write(tmp_path, infer__echo=text)
    assert problem(config=tmp_path).origin == f"infer/echo.yaml:{line}"


def test_a_file_that_is_no_text_or_no_mapping_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"a: \xff\xfe\n")
    found = problem(config=tmp_path / "mine.yaml")
    assert found.origin.endswith("mine.yaml")
    assert "not valid YAML" in found.message
    (tmp_path / "list.yaml").write_text("- a\n")
    found = problem(config=tmp_path / "list.yaml")
    assert (found.message, found.origin[-9:]) == ("the file holds a list.", "list.yaml")


def test_a_file_that_includes_itself_is_told_how_to_build_on_the_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, pipeline="defaults: [/pipeline, _self_]\nserver: {port: 8009}\n")
    found = problem(config=tmp_path)
    assert "includes itself" in found.message
    write(tmp_path, prod="defaults: [pipeline, _self_]\nserver: {port: 8009}\n")
    (tmp_path / "pipeline.yaml").unlink()
    assert "`defaults: [pipeline, _self_]`" in found.hint
    assert compose(config=tmp_path / "prod.yaml").plan()[1].port == 8009


@pytest.mark.parametrize(
    ("graph", "path"), [("[a]", "graph"), ("text", "graph"), ("{entry: a, stages: [a]}", "graph.stages")]
)
def test_a_graph_of_the_wrong_type_is_told_at_its_key(tmp_path: Path, graph: str, path: str) -> None:
    write(tmp_path, mine=f"defaults: [{{infer: echo}}, _self_]\ngraph: {graph}\n")
    with pytest.raises(ConfigError) as raised:
        compose(config=tmp_path / "mine.yaml").plan()
    (found,) = raised.value.problems
    assert found.path == path
    assert "xpected a mapping" in found.message + found.hint


def test_a_value_that_holds_itself_is_told_in_bounded_time_and_words() -> None:
    (found,) = problems("infer.name=${oc.select:infer}", "infer.aliases=${oc.select:infer}")
    assert "does it refer to itself" in found.message
    assert len(found.path) < 80


def test_an_unknown_option_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, mine="defaults: [{infer: ecoh}]\n")
    with pytest.raises(ConfigError) as raised:
        compose(config=tmp_path / "mine.yaml")
    (found,) = raised.value.problems
    assert found.hint == "Did you mean `echo`?"


def test_the_config_option_must_name_what_exists(tmp_path: Path) -> None:
    assert problem(config=tmp_path / "nowhere").path == "--config"


CYCLE = """
defaults: [{route: direct}, {infer: echo}, {monitor: log}, {server: default}, _self_]
graph:
  entry: monitor
  stages:
    monitor: {next: route}
    route: {next: [infer, monitor]}
    infer: {}
"""


def test_a_cycle_in_a_users_file_is_told_with_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine=CYCLE)
    with pytest.raises(ConfigError) as raised:
        compose(config=tmp_path / "mine.yaml").plan()
    (found,) = raised.value.problems
    assert (found.path, found.origin) == ("graph.stages.route.next.monitor", "mine.yaml")
    assert "monitor -> route -> monitor" in found.message


def test_compositions_at_once_keep_apart(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, **{f"graph/{name}": f"entry: infer\nstages:\n  {name}: {{}}\n"})

    def made(index: int) -> tuple[str, bool]:
        name = "ab"[index % 2]
        values = composed(f"graph={name}", f"infer.name=n{index}", config=tmp_path / name).values
        return values["infer"]["name"], name in values["graph"]["stages"]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(made, range(6))) == [(f"n{index}", True) for index in range(6)]


def test_nothing_in_a_config_is_instantiated(tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    target = f"{{_target_: pathlib.Path.touch, _args_: [{{_target_: pathlib.Path, _args_: ['{mark}']}}]}}"
    found = problems(f"++infer.evil={target}", f"++evil={target}", f"++hydra.callbacks.evil={target}")
    assert {p.path for p in found} == {"evil", "infer.evil"}
    write(tmp_path, mine=f"defaults: [pipeline, _self_]\ninfer: {target}\n")
    assert "infer._target_" in {p.path for p in problems(config=tmp_path / "mine.yaml")}
    assert not mark.exists()


NAMES = """infer infer.name infer@embed embed graph graph.entry graph.stages.infer server server.port
extensions vars.x hydra hydra.searchpath infer.aliases.0 cache x"""
KEYS = st.sampled_from(NAMES.split())
VALUES = st.one_of(
    st.sampled_from(["echo", "none", "null", "[]", "{}", "???", "1", "{a: 1}", "[a,b]", "a,b", "${x}", "''"]),
    st.text(max_size=12),
)
OVERRIDES = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "+", "++", "~"]),
        KEYS,
        st.sampled_from(["=", "", "@y="]),
        VALUES,
    ),
    st.text(max_size=20),
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_override_makes_a_config_or_a_config_error(overrides: list[str]) -> None:
    told: tuple[Problem, ...] | None = None
    try:
        config = composed(*overrides)
        config.plan()
        as_yaml(config)
    except ConfigError as error:
        told = error.problems
    assert told is None or (told and all(p.message for p in told))


def test_a_package_whose_yaml_is_gone_does_not_keep_others_from_working() -> None:
    registry = stages.registry(conf_gone="no_such_package.conf", route_direct="tests.stages:Many")
    given = [
        "infer=answer",
        "infer@embed=answer",
        "monitor=pass",
        "route=many",
        "price=none",
        "dashboard=none",
        "limit=none",
        "cache=none",
    ]
    config = compose(given, registry=registry)
    assert config.plan()[0].parts["infer"].plugin == "infer.answer"


def test_composing_opens_no_socket_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", None)
    composed().plan()
    assert os.listdir(tmp_path) == []


HEAD = "defaults: [{route: direct}, {infer: echo}, {monitor: log}, {server: default}, _self_]\n"


@pytest.mark.parametrize(
    ("text", "path", "right"),
    [
        (
            "entry: monitor, stages: {monitor: {next: monitor}}",
            "stages.monitor.next",
            "Remove one of its edges",
        ),
        (
            "entry: monitor, stages: {monitor: {next: inferr}, infer: {}}",
            "stages.monitor.next",
            "mean `infer`?",
        ),
        (
            "entry: route, stages: {route: {nxt: [infer], next: [infer]}, infer: {}}",
            "stages.route.nxt",
            "mean `next`",
        ),
        ("entry: monitor, stages: {monitor: {}}", "stages.monitor", "Expected `next:`"),
        ("entry: infer, stages: {infer: {}, monitor: {next: infer}}", "stages.monitor", "Add an edge to it"),
        ("entry: [infer, monitor], stages: {monitor: {next: infer}, infer: {}}", "entry", "name one stage"),
        ("stages: {infer: {}}", "entry", "Expected a stage: infer"),
        ("entry: infr, stages: {infer: {}}", "entry", "mean `infer`?"),
        ("entry: infr, stages: {infr: {}}", "stages.infr", "mean `infer`?"),
    ],
)
def test_each_broken_rule_of_a_graph_is_told_with_file_key_and_what_would_be_right(
    tmp_path: Path, text: str, path: str, right: str
) -> None:
    write(tmp_path, mine=f"{HEAD}graph: {{{text}}}\n")
    with pytest.raises(ConfigError) as raised:
        compose(config=tmp_path / "mine.yaml").plan()
    told = [p for p in raised.value.problems if p.path == f"graph.{path}"]
    assert told, raised.value
    assert told[0].origin.endswith("mine.yaml")
    assert right in told[0].hint

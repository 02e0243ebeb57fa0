"""Compiling graphs: the shapes that are allowed, and what each mistake is told."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import Call, Price, Record, Reply, hookimpl
from pipeline.graph import Graph
from pipeline.plan import plan_graph
from pipeline.problems import ConfigError, Problem
from pipeline.stage import Layer, StageCall
from tests.stages import Answer, Empty, registry

NODES: dict[str, Any] = {
    "first": {"plugin": "monitor.pass"},
    "second": {"plugin": "monitor.pass"},
    "route": {"plugin": "route.many"},
    "check": {"plugin": "validate.retry"},
    "small": {"plugin": "infer.answer"},
    "large": {"plugin": "infer.answer", "text": "HELLO"},
}


def configured(entry: Any, stages: Any, **nodes: Any) -> dict[str, Any]:
    return {"graph": {"entry": entry, "stages": stages}, **NODES, **nodes}


def problems_of(entry: Any, stages: Any, **nodes: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as raised:
        plan_graph(configured(entry, stages, **nodes), registry())
    return raised.value.problems


def only_problem(entry: Any, stages: Any, **nodes: Any) -> Problem:
    (problem,) = problems_of(entry, stages, **nodes)
    return problem


def ask(config: dict[str, Any], model: str = "default") -> tuple[dict[str, Any], Record]:
    async def go() -> tuple[dict[str, Any], Record]:
        graph = Graph.build(plan_graph(config, registry()))
        await graph.open()
        call = Call(id="1", operation="chat", body={"model": model}, deadline=1e9, received=0)
        reply = await graph(call)
        await graph.close()
        return reply.json, call.record

    return asyncio.run(go())


def test_a_chain_passes_calls_to_its_end() -> None:
    stages = {"first": {"next": "second"}, "second": {"next": "small"}, "small": {}}
    answer, record = ask(configured("first", stages))
    assert answer["text"] == "hello"
    assert [(s.source, s.edge, s.stage, s.outcome) for s in record.steps] == [
        ("", "entry", "first", "ok"),
        ("first", "next", "second", "ok"),
        ("second", "next", "small", "ok"),
    ]
    assert all(step.ended >= step.started > 0 for step in record.steps)


@pytest.mark.parametrize("targets", [["small", "large"], {"small": "small", "large": "large"}])
def test_a_router_has_any_number_of_targets(targets: Any) -> None:
    config = configured("route", {"route": {"next": targets}, "small": {}, "large": {}})
    assert ask(config, "large")[0]["text"] == "HELLO"
    assert ask(config, "small")[0]["text"] == "hello"


def test_a_validator_may_retry_along_another_edge() -> None:
    stages = {"check": {"next": "small", "retry": "large"}, "small": {}, "large": {}}
    answer, record = ask(configured("check", stages, small={"plugin": "infer.answer", "text": ""}))
    assert answer["text"] == "HELLO"
    assert [step.edge for step in record.steps] == ["entry", "next", "retry"]


def test_one_stage_may_be_the_target_of_several_edges() -> None:
    stages = {"check": {"next": "first", "retry": "small"}, "first": {"next": "small"}, "small": {}}
    graph = Graph.build(plan_graph(configured("check", stages), registry()))
    assert list(graph.stages) == ["small", "first", "check"]


def test_several_instances_of_a_kind_have_their_own_configs() -> None:
    stages = {"route": {"next": ["a", "b"]}, "a": {"use": "pool.a"}, "b": {"use": "pool.b"}}
    pool = {"a": {"plugin": "infer.answer", "text": "A"}, "b": {"plugin": "infer.answer", "text": "B"}}
    config = configured("route", stages, pool=pool)
    assert [ask(config, name)[0]["text"] for name in "ab"] == ["A", "B"]


def test_a_stage_without_plugin_is_left_out_of_the_path() -> None:
    second = {"next": "small", "retry": "large"}
    stages = {"first": {"next": "second"}, "second": second, "small": {}, "large": {}}
    config = configured("first", stages, second={"plugin": None})
    plan = plan_graph(config, registry())
    assert list(plan.parts) == ["small", "first"]
    assert plan.elided == ["second"]
    assert [step.stage for step in ask(config)[1].steps] == ["first", "small"]


def test_a_target_without_plugin_is_dropped_from_its_router() -> None:
    config = configured("route", {"route": {"next": ["small", "large"]}, "small": {}, "large": {}})
    plan = plan_graph({**config, "large": {"plugin": None}}, registry())
    assert list(plan.parts) == ["small", "route"]
    assert plan.topology.nodes["route"].edges == {"next": {"small": "small"}}


def test_stages_open_targets_first_and_close_in_reverse() -> None:
    Answer.events.clear()
    ask(configured("route", {"route": {"next": ["small", "large"]}, "small": {}, "large": {}}))
    assert Answer.events == ["open small", "open large", "close large", "close small"]


def test_stages_already_open_are_closed_when_one_fails_to_open() -> None:
    Answer.events.clear()
    config = configured(
        "route", {"route": {"next": ["small", "bad"]}, "small": {}, "bad": {}}, bad={"plugin": "infer.fails"}
    )
    with pytest.raises(RuntimeError, match="no such device"):
        ask(config)
    assert Answer.events == ["open small", "close small"]


def test_what_kept_a_graph_from_opening_is_told_though_a_stage_fails_to_close_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: Answer) -> None:
        raise OSError("no")

    async def fall(self: Answer) -> None:
        raise RuntimeError("never opened")

    monkeypatch.setattr(Answer, "open", refuse)
    monkeypatch.setattr(Answer, "close", fall)
    with pytest.raises(ConfigError, match="can't be opened: no"):
        ask(configured("small", {"small": {}}))


@pytest.mark.parametrize(("field", "path"), [("device", "pool.a.device"), ("", "pool.a")])
def test_a_value_that_turns_out_wrong_on_opening_is_told_with_its_whole_path(field: str, path: str) -> None:
    pool = {"a": {"plugin": "infer.refuses", "field": field}}
    with pytest.raises(ConfigError) as raised:
        ask(configured("a", {"a": {"use": "pool.a"}}, pool=pool))
    assert [(p.path, p.message) for p in raised.value.problems] == [(path, "there is none.")]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(13, "no"), ImportError("no")])
def test_what_keeps_a_stage_from_opening_is_told_with_its_path(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Answer) -> None:
        raise error

    monkeypatch.setattr(Answer, "open", refuse)
    with pytest.raises(ConfigError, match="can't be opened") as raised:
        ask(configured("small", {"small": {}}))
    assert raised.value.problems[0].path == "small"


def test_edges_know_the_models_that_they_reach() -> None:
    async def go() -> list[str | None]:
        stages = {"first": {"next": "route"}, "route": {"next": ["small", "large"]}, "small": {}, "large": {}}
        graph = Graph.build(plan_graph(configured("first", stages), registry()))
        await graph.open()
        await graph.close()
        return [model.id for model in graph.models]

    assert asyncio.run(go()) == ["small", "large"]


def test_a_cycle_is_refused_and_drawn() -> None:
    problem = only_problem("first", {"first": {"next": "second"}, "second": {"next": "first"}})
    assert problem.path == "graph.stages.second.next"
    assert "first -> second -> first" in problem.message


def test_an_unknown_stage_is_refused_with_the_nearest_name() -> None:
    problem = only_problem("first", {"first": {"next": "smal"}, "small": {}} | {"second": {"next": "small"}})
    assert problem.path == "graph.stages.first.next"
    assert problem.hint == "Did you mean `small`?"


def test_an_unknown_edge_is_refused_with_the_nearest_name() -> None:
    problem = only_problem("check", {"check": {"next": "small", "retri": "large"}, "small": {}, "large": {}})
    assert (problem.path, problem.hint) == ("graph.stages.check.retri", "Did you mean `retry`?")


def test_a_missing_required_edge_is_refused() -> None:
    problem = only_problem("first", {"first": {}})
    assert problem.path == "graph.stages.first"
    assert "needs the edge `next`" in problem.message


def test_an_edge_to_one_stage_can_not_lead_to_several() -> None:
    problem = only_problem("first", {"first": {"next": ["small", "large"]}, "small": {}, "large": {}})
    assert "leads to one stage" in problem.message


def test_an_unreachable_stage_is_refused() -> None:
    problem = only_problem("small", {"small": {}, "first": {"next": "small"}})
    assert problem.path == "graph.stages.first"
    assert "no edge leads from the entry `small`" in problem.message


@pytest.mark.parametrize("entry", [["first", "second"], {"a": "first"}])
def test_two_entries_are_refused(entry: Any) -> None:
    problem = only_problem(entry, {"first": {"next": "small"}, "small": {}})
    assert (problem.path, problem.message[:11]) == ("graph.entry", "two entries")


def test_an_entry_must_be_named_and_known() -> None:
    assert "no entry" in only_problem(None, {"small": {}}).message
    assert "a stage's name, got 1" in only_problem(1, {"small": {}}).message
    assert only_problem("smal", {"small": {}}).hint == "Did you mean `small`?"


def test_an_unknown_plugin_is_refused_with_the_nearest_name() -> None:
    problem = only_problem("small", {"small": {}}, small={"plugin": "infer.anser"})
    assert (problem.path, problem.hint) == ("small.plugin", "Did you mean `infer.answer`?")


def test_a_plugin_that_fails_to_import_is_named_with_the_cause() -> None:
    problem = only_problem("small", {"small": {}}, small={"plugin": "infer.broken"})
    assert "fails to import: ModuleNotFoundError: No module named 'no_such_module'" in problem.message


def test_a_bad_value_is_refused_at_its_config_path() -> None:
    problem = only_problem("small", {"small": {}}, small={"plugin": "infer.answer", "times": 9})
    assert problem.path == "small.times"
    assert re.search("less than or equal to 5, got 9", problem.message)


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    problem = only_problem("small", {"small": {}}, small={"plugin": "infer.answer", "tex": "x"})
    assert (problem.path, problem.hint) == ("small.tex", "Did you mean `text`?")


def test_a_stage_needs_a_config_node() -> None:
    problem = only_problem("smal", {"smal": {}})
    assert (problem.path, problem.hint) == ("graph.stages.smal", "Did you mean `small`?")


def test_an_end_of_the_graph_can_not_be_left_out() -> None:
    problem = only_problem("first", {"first": {"next": "small"}, "small": {}}, small={"plugin": None})
    assert "no single `next`" in problem.message


def test_all_problems_are_reported_at_once() -> None:
    stages = {"first": {"next": "small", "more": "small"}, "small": {}, "route": {}}
    found = problems_of("first", stages, small={"plugin": "infer.answer", "times": 0, "size": 1})
    assert {p.path for p in found} == {
        "graph.stages.first.more",
        "graph.stages.route",
        "small.times",
        "small.size",
    }


class Louder:
    """An extension that wraps models, prices them and learns when all is open."""

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        self.wrapped: list[str] = []
        self.entries: list[str] = []
        self.prices: list[Price | None] = []

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        if entry:
            self.entries.append(stage)
        if not plugin.startswith("infer."):
            return None
        self.wrapped.append(stage)

        def layer(inner: StageCall) -> StageCall:
            async def louder(call: Call) -> Reply:
                reply = await inner(call)
                return Reply.of({**reply.json, "text": reply.json["text"].upper()})

            return louder

        return layer

    @hookimpl
    def pipeline_price(self, model: str) -> Price | None:
        return Price(prompt=1.0) if model == "small" else None

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        self.prices = [model.price for model in graph.models]


def test_an_extension_wraps_stages_prices_models_and_learns_when_all_is_open() -> None:
    stages = {"route": {"next": ["small", "large"]}, "small": {}, "large": {}}
    config = configured("route", stages, extensions={"louder": "louder"}, louder={"plugin": "x.louder"})

    async def go() -> tuple[Any, Louder]:
        graph = Graph.build(plan_graph(config, registry(x_louder=f"{__name__}:Louder")))
        await graph.open()
        call = Call(id="1", operation="chat", body={"model": "small"}, deadline=1e9, received=0)
        reply = await graph(call)
        await graph.close()
        return reply.json["text"], graph.plugins.get_plugin("louder")

    text, louder = asyncio.run(go())
    assert text == "HELLO"
    assert sorted(louder.wrapped) == ["large", "small"]
    assert louder.entries == ["route"]
    assert louder.prices == [Price(prompt=1.0), None]


class Mood:
    """A layer's stage that is ready when it is told to be."""

    def __init__(self, inner: StageCall, ready: Callable[[], bool]) -> None:
        self.inner = inner
        self.ready = ready

    async def __call__(self, call: Call) -> Reply:
        return await self.inner(call)


class Moody:
    """An extension whose layers say whether their stage is ready."""

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        self.ready: dict[str, bool] = {}

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str) -> Layer | None:
        if not plugin.startswith("infer."):
            return None
        self.ready[stage] = True
        return lambda inner: Mood(inner, lambda: self.ready[stage])


def test_an_edge_is_ready_if_its_stage_is_and_some_way_through_it() -> None:
    stages = {"first": {"next": "route"}, "route": {"next": ["small", "large"]}, "small": {}, "large": {}}
    config = configured("first", stages, extensions={"moody": "moody"}, moody={"plugin": "x.moody"})
    graph = Graph.build(plan_graph(config, registry(x_moody=f"{__name__}:Moody")))
    moody = graph.plugins.get_plugin("moody")
    targets = graph.stages["route"].next

    def ready() -> tuple[bool, bool, bool]:
        return targets["small"].ready(), targets["large"].ready(), graph.entry.ready()

    assert ready() == (True, True, True)
    moody.ready["small"] = False
    assert ready() == (False, True, True)
    moody.ready["large"] = False
    assert ready() == (False, False, False)


def test_an_edge_to_which_nothing_objects_is_always_ready() -> None:
    graph = Graph.build(plan_graph(configured("small", {"small": {}}), registry()))
    assert graph.entry.always_ready
    assert graph.entry.ready()


class UnknownHook:
    Config = Empty

    def __init__(self, config: Empty) -> None: ...

    @hookimpl
    def pipeline_call_end(self, call: Call) -> None: ...


class OtherArguments:
    Config = Empty

    def __init__(self, config: Empty) -> None: ...

    @hookimpl
    def pipeline_call_ended(self, call: Call, answer: Reply) -> None: ...


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (
            "UnknownHook",
            r"`x.watch`: hook `pipeline_call_end`: there is no such hook. Did you mean",
        ),
        (
            "OtherArguments",
            r"hook `pipeline_call_ended`: its signature does not fit. It may take: call, reply",
        ),
    ],
)
def test_a_hook_that_fits_no_specification_is_told_with_its_plugin(cls: str, said: str) -> None:
    config = configured("small", {"small": {}}, extensions={"w": "watch"}, watch={"plugin": "x.watch"})
    plan = plan_graph(config, registry(x_watch=f"{__name__}:{cls}"))
    with pytest.raises(ConfigError, match=said):
        Graph.build(plan)

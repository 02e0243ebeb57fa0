"""`route=direct`: which target a call goes to."""

import asyncio
from typing import Any

import pytest
from pipeline_plugins.route.direct import Direct

from pipeline import Call, Edge, Edges, Model, Reply
from pipeline.errors import ModelNotFound

CHAT = frozenset({"chat"})
BOTH = frozenset({"chat", "embedding"})


def route(operation: str, model: str, **targets: Model) -> tuple[str, dict[str, str]]:
    async def answer(call: Call) -> Reply:
        return Reply.of({})

    edges = {}
    for name, served in targets.items():
        edges[name] = Edge("route", name, name, answer)
        edges[name].models = (served,)

    async def go() -> Call:
        body: dict[str, Any] = {"model": model}
        call = Call(id="1", operation=operation, body=body, deadline=1e9, received=0)
        await Direct(Direct.Config(), Edges(edges))(call)
        return call

    record = asyncio.run(go()).record
    return record.steps[0].stage, record.headers


def test_the_target_with_the_named_model_is_taken_and_told() -> None:
    taken, headers = route("chat", "b", one=Model("a", CHAT), two=Model("b", CHAT))
    assert taken == "two"
    assert headers == {"x-pipeline-route": "two"}


@pytest.mark.parametrize("name", ["default", "auto"])
def test_without_a_name_the_first_that_does_the_operation_is_taken(name: str) -> None:
    targets = {"one": Model("a", CHAT), "two": Model("b", BOTH), "three": Model("c", BOTH)}
    assert route("chat", name, **targets)[0] == "one"
    assert route("embedding", name, **targets)[0] == "two"


def test_an_alias_is_as_good_as_the_name() -> None:
    assert route("chat", "x", one=Model("a", CHAT), two=Model("b", CHAT, aliases=("x",)))[0] == "two"


def test_a_target_that_takes_any_name_comes_after_those_that_know_theirs() -> None:
    targets = {"any": Model(None, BOTH), "embed": Model("minilm", BOTH)}
    assert route("chat", "default", **targets)[0] == "any"
    assert route("embedding", "minilm", **targets)[0] == "embed"
    assert route("embedding", "other", **targets)[0] == "any"
    assert route("chat", "whatever", **targets)[0] == "any"


def test_a_target_made_for_the_operation_comes_before_one_that_does_many() -> None:
    targets = {"any": Model(None, BOTH), "embed": Model("minilm", frozenset({"embedding"}))}
    assert route("embedding", "default", **targets)[0] == "embed"
    assert route("chat", "default", **targets)[0] == "any"


def test_an_unknown_model_is_told_which_exist() -> None:
    with pytest.raises(ModelNotFound, match=r"`c` does not exist. Available: a, b"):
        route("chat", "c", one=Model("a", CHAT), two=Model("b", CHAT))


def test_a_model_that_does_something_else_is_told_so() -> None:
    with pytest.raises(ModelNotFound, match="`a` does not do `embedding`; these do: b"):
        route("embedding", "a", one=Model("a", CHAT), two=Model("b", BOTH))


def test_an_operation_that_nobody_does_is_told_so() -> None:
    with pytest.raises(ModelNotFound, match="No model of this deployment does `embedding`"):
        route("embedding", "default", one=Model("a", CHAT))

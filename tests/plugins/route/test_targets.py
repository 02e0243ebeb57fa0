"""What all routers share: who may serve a call, aliases, errors."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.route.ab import AB
from pipeline_plugins.route.capable import Capable
from pipeline_plugins.route.cascade import Cascade
from pipeline_plugins.route.cheapest import Cheapest
from pipeline_plugins.route.direct import Direct
from pipeline_plugins.route.fallback import Fallback
from pipeline_plugins.route.latency import Latency
from pipeline_plugins.route.least_busy import LeastBusy
from pipeline_plugins.route.round_robin import RoundRobin
from pipeline_plugins.route.sticky import Sticky
from pipeline_plugins.route.targets import Routing, Targets
from pipeline_plugins.route.weighted import Weighted

from pipeline import Call, Edge, Edges, Model, Tenant
from pipeline.errors import ContextTooLong, InvalidRequest, ModelNotFound
from pipeline.problems import ConfigError
from tests.plugins.route.calls import CHAT, EMBED, a_call, an_edge, edges_of, run, some_edges, taken

ALL = CHAT | EMBED


def targets(edges: Edges, **aliases: str) -> Targets:
    return Targets(edges, Routing(aliases=aliases))


def names(found: Any) -> list[str]:
    return [target.name for target in found]


def able(edges: Edges, call: Call, **aliases: str) -> list[str]:
    return names(targets(edges, **aliases).able(call))


def test_everyone_may_serve_default_and_auto() -> None:
    edges = some_edges(an_edge("a"), an_edge("b", Model(None, ALL)))
    for name in ("default", "auto"):
        assert able(edges, a_call(model=name)) == ["a", "b"]


def test_a_models_own_name_comes_before_a_wildcard() -> None:
    edges = some_edges(an_edge("any", Model(None, ALL)), an_edge("a"), an_edge("b"))
    assert able(edges, a_call(model="b")) == ["b"]
    assert able(edges, a_call(model="other")) == ["any"]


def test_replicas_of_a_model_share_its_calls() -> None:
    model = Model("m", CHAT)
    assert able(some_edges(an_edge("a", model), an_edge("b", model)), a_call(model="m")) == ["a", "b"]


def test_embeddings_are_never_spread_over_different_models() -> None:
    x, y = Model("x", EMBED), Model("y", EMBED)
    edges = some_edges(an_edge("a", x), an_edge("b", y), an_edge("c", x))
    call = a_call("embedding", input="hi")
    assert able(edges, call) == ["a", "c"]
    assert able(edges, a_call("embedding", model="y", input="hi")) == ["b"]
    assert able(edges, a_call("embedding", model="e", input="hi"), e="auto") == ["a", "c"]


def test_embeddings_of_unknown_models_go_to_one_unless_the_client_names_the_model() -> None:
    edges = some_edges(an_edge("a", Model(None, ALL)), an_edge("b", Model(None, ALL)))
    assert able(edges, a_call("embedding", input="hi")) == ["a"]
    assert able(edges, a_call("embedding", model="bge", input="hi")) == ["a", "b"]


def test_embeddings_go_to_the_target_made_for_them() -> None:
    edges = some_edges(an_edge("any", Model(None, ALL)), an_edge("embed", Model("e", EMBED)))
    assert able(edges, a_call("embedding", input="hi")) == ["embed"]


def test_an_alias_stands_for_a_target_and_is_renamed_to_what_that_knows() -> None:
    router = Direct(
        Direct.Config(aliases={"gpt-4o": "b", "fast": "auto", "default": "b"}), edges_of("a", "b")
    )

    async def go() -> list[Any]:
        seen = []
        for name in ("gpt-4o", "fast", "default", "auto"):
            call = a_call(model=name)
            reply = await router(call)
            seen.append((reply.json["target"], reply.json["model"], call.record.headers["x-pipeline-route"]))
        return seen

    assert run(go()) == [
        ("b", "default", "b"),
        ("a", "default", "a"),
        ("b", "default", "b"),
        ("a", "auto", "a"),
    ]


def test_an_alias_for_a_wildcard_is_passed_on_as_it_is() -> None:
    edges = some_edges(an_edge("a"), an_edge("hosted", Model(None, ALL)))
    reply = run(Direct(Direct.Config(aliases={"gpt-4o": "hosted"}), edges)(a_call(model="gpt-4o")))
    assert reply.json == {"target": "hosted", "model": "gpt-4o"}


def test_aliases_are_listed_with_the_models() -> None:
    edges = some_edges(an_edge("a"), an_edge("hosted", Model(None, ALL)))
    found = targets(edges, fast="a", big="hosted", any="auto", default="a").models
    assert [(model.id, model.aliases) for model in found] == [
        ("a", ("fast", "any")),
        (None, ()),
        ("big", ()),
        ("any", ()),
    ]


def test_an_alias_for_a_target_that_there_is_not_is_told_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"aliases.fast: there is no target `smal`. Did you mean `small`"):
        targets(edges_of("small", "large"), fast="smal")
    with pytest.raises(ConfigError, match=r"weights.lrge"):
        Weighted(Weighted.Config(weights={"lrge": 1}), edges_of("small", "large"))


def test_a_key_for_an_alias_may_use_what_it_leads_to_and_nothing_else() -> None:
    inner = Direct(Direct.Config(), edges_of("x", "y"))

    async def go() -> str:
        nested = an_edge("b", Model("x", CHAT), Model("y", CHAT), answer=inner)
        router = Direct(Direct.Config(aliases={"gpt-4o": "b"}), some_edges(an_edge("a"), nested))
        tenant = Tenant("k", "k", models=frozenset({"gpt-4o"}))
        with pytest.raises(ModelNotFound, match="Available: gpt-4o"):
            await router(a_call(tenant=tenant))
        return await taken(router, a_call(model="gpt-4o", tenant=tenant))

    assert run(go()) == "x"


def test_an_unknown_model_is_told_only_what_the_key_may_use() -> None:
    tenant = Tenant("k", "k", models=frozenset({"a"}))
    with pytest.raises(ModelNotFound, match=r"Available: a\.$"):
        able(edges_of("a", "b"), a_call(model="c", tenant=tenant))


VISION = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


def test_a_target_that_can_not_do_what_is_needed_is_not_offered_the_call() -> None:
    edges = some_edges(
        an_edge("a", Model("a", CHAT, capabilities=frozenset({"streaming"}))),
        an_edge("b", Model("b", CHAT, capabilities=frozenset({"streaming", "vision"}))),
        an_edge("c", Model("c", CHAT)),
    )
    assert able(edges, a_call()) == ["a", "b", "c"]
    assert able(edges, a_call(messages=VISION)) == ["b", "c"]
    assert able(edges, a_call(logprobs=True)) == ["c"]


def test_a_need_that_nobody_has_is_named() -> None:
    edges = some_edges(an_edge("a", Model("a", CHAT, capabilities=frozenset({"tools"}))))
    with pytest.raises(InvalidRequest, match="can do `vision`") as caught:
        able(edges, a_call(messages=VISION))
    assert (caught.value.param, caught.value.error_code) == ("messages", "unsupported_capability")


ROUTERS: dict[Any, dict[str, Any]] = {
    **{one: {} for one in (AB, Cascade, Direct, Fallback, Latency, LeastBusy, RoundRobin, Sticky, Weighted)},
    Capable: {"model": Path("router")},
    Cheapest: {"prices": {name: {"prompt": 1, "completion": 1} for name in ("a", "b")}},
}
UNMET: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    "vision": {"messages": VISION},
    "streaming": {"stream": True},
}


def can_do_little(name: str) -> Edge:
    return an_edge(name, Model(name, CHAT, capabilities=frozenset({"logprobs"}), context_window=100))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("need", UNMET)
def test_every_router_says_what_nobody_can_do(router: Any, need: str) -> None:
    made = router(router.Config(**ROUTERS[router]), some_edges(can_do_little("a"), can_do_little("b")))
    with pytest.raises(InvalidRequest, match=f"can do `{need}`") as caught:
        run(made(a_call(**UNMET[need])))
    assert caught.value.error_code == "unsupported_capability"


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_says_that_a_prompt_fits_nobodys_window(router: Any) -> None:
    made = router(router.Config(**ROUTERS[router]), some_edges(can_do_little("a"), can_do_little("b")))
    with pytest.raises(ContextTooLong, match=r"the longest context window .* is 100"):
        run(made(a_call(messages=long(1000))))


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_says_which_models_there_are(router: Any) -> None:
    config = router.Config(**ROUTERS[router], aliases={"fast": "a", "any": "auto"})
    made = router(config, some_edges(can_do_little("a"), can_do_little("b")))
    with pytest.raises(ModelNotFound, match="Available: a, b, fast, any"):
        run(made(a_call(model="c")))


def test_needs_that_no_one_model_has_together_are_told_with_who_has_which() -> None:
    edges = some_edges(
        an_edge("a", Model("a", CHAT, capabilities=frozenset({"tools"}))),
        an_edge("b", Model("b", CHAT, capabilities=frozenset({"vision"}))),
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(
        InvalidRequest, match=r"`tools`, `vision` together; there is: a \(tools\); b \(vision\)"
    ):
        able(edges, a_call(messages=VISION, tools=tools))


def test_a_named_model_that_lacks_a_need_is_told_which_models_have_it() -> None:
    edges = some_edges(
        an_edge("a", Model("a", CHAT, capabilities=frozenset({"tools"}))),
        an_edge("b", Model("b", CHAT, capabilities=frozenset({"vision"}))),
    )
    with pytest.raises(InvalidRequest, match=r"served as `a` can do `vision`. These can: b"):
        able(edges, a_call(model="a", messages=VISION))


def long(words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "word " * words}]


def windows(**sizes: int | None) -> Edges:
    return some_edges(*(an_edge(n, Model(n, CHAT, context_window=w)) for n, w in sizes.items()))


def test_a_prompt_goes_to_the_targets_whose_window_holds_it() -> None:
    edges = windows(small=100, large=10_000, unknown=None)
    assert able(edges, a_call()) == ["small", "large", "unknown"]
    assert able(edges, a_call(messages=long(1000))) == ["large", "unknown"]
    assert able(edges, a_call(messages=long(1000), max_tokens=9_500)) == ["unknown"]


def test_a_window_that_holds_the_prompt_but_not_the_answer_is_better_than_none() -> None:
    assert able(windows(small=100, large=2_000), a_call(messages=long(1000), max_tokens=5_000)) == ["large"]


def test_an_estimate_in_doubt_is_left_to_the_largest_window_and_one_beyond_is_refused() -> None:
    edges = windows(small=100, large=1_000)
    assert able(edges, a_call(messages=long(1000))) == ["large"]
    with pytest.raises(ContextTooLong, match=r"about 12504 tokens, and the longest .* is 1000"):
        able(edges, a_call(messages=long(10_000)))


def test_each_of_several_prompts_has_the_window_for_itself() -> None:
    edges = windows(small=1_000, large=10_000)
    assert able(edges, a_call("completion", prompt=["word " * 500] * 4)) == ["small", "large"]
    assert able(edges, a_call("completion", prompt=["word " * 5000] * 4)) == ["large"]
    assert able(edges, a_call(messages=long(5000), prompt=[])) == ["large"]


def test_a_count_is_believed() -> None:
    def edges(tokens: int) -> Edges:
        models = [
            Model(name, CHAT, context_window=window, count=lambda call: tokens)
            for name, window in (("small", 100), ("large", 1000))
        ]
        return some_edges(*(an_edge(str(model.id), model) for model in models))

    call = a_call(messages=long(1000))
    assert able(edges(50), call) == ["small", "large"]
    assert able(edges(500), call) == ["large"]
    with pytest.raises(ContextTooLong, match="has 1000 tokens"):
        able(edges(1000), call)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 3000))
def test_what_is_shorter_in_bytes_than_every_window_is_never_kept_away(words: int, window: int) -> None:
    call = a_call(messages=long(words))
    edges = windows(a=window, b=window + 1)
    if len(call.raw) <= window:
        assert able(edges, call) == ["a", "b"]


def test_targets_that_are_not_ready_come_last() -> None:
    down: set[str] = set()
    edges = edges_of("a", "b")
    for name, edge in edges.items():
        edge._ready = lambda name=name: name not in down
    found = targets(edges)
    assert names(found.choices(a_call())) == ["a", "b"]
    down.add("a")
    assert names(found.choices(a_call())) == ["b"]
    down.add("b")
    assert names(found.choices(a_call())) == ["a", "b"]


def test_names_of_clients_are_not_remembered_without_end() -> None:
    found = targets(some_edges(an_edge("any", Model(None, ALL))))
    for number in range(3000):
        assert names(found.able(a_call(model=f"m{number}"))) == ["any"]
    assert len(found._offers) <= 1024

"""Policies by unit: sessions, users and keys stay where they are."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.route.ab import AB
from pipeline_plugins.route.sticky import Sticky
from pipeline_plugins.route.targets import Target
from pipeline_plugins.route.unit import rendezvous, unit_of
from pipeline_plugins.route.weighted import Weighted
from pydantic import ValidationError

from pipeline import Model, Tenant
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError
from tests.plugins.route.calls import CHAT, EMBED, a_call, an_edge, edges_of, run, some_edges, taken

ALICE, BOB = Tenant("alice", "alice"), Tenant("bob", "bob")


def targets(*names: str) -> list[Target]:
    return [Target(name, an_edge(name), "") for name in names]


def places(names: list[str], units: int = 1000, salt: str = "", **weights: float) -> list[str]:
    found = targets(*names)
    return [rendezvous(f"u{n}", found, weights, salt).name for n in range(units)]


def test_units_are_spread_evenly_and_by_weight() -> None:
    even = Counter(places(["a", "b", "c", "d"], 8000))
    assert all(1800 < count < 2200 for count in even.values())
    weighted = Counter(places(["a", "b"], 8000, a=3.0, b=1.0))
    assert 5800 < weighted["a"] < 6200


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abcxyz_", min_size=1), min_size=1, max_size=6, unique=True), st.integers(0, 10**6))
def test_only_those_move_who_go_to_the_new_target(names: list[str], salt: int) -> None:
    before, after = places(names, 200, str(salt)), places([*names, "new"], 200, str(salt))
    assert all(old == new or new == "new" for old, new in zip(before, after, strict=True))


def test_a_new_target_takes_its_part_and_no_more() -> None:
    before, after = places(["a", "b", "c"], 6000), places(["a", "b", "c", "d"], 6000)
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert 1300 < moved < 1700


def test_the_order_of_targets_does_not_matter() -> None:
    assert places(["a", "b", "c"]) == places(["c", "a", "b"])


def test_a_unit_is_the_first_that_a_call_has_and_apart_for_each_key() -> None:
    config = Sticky.Config()
    call = a_call(user="u", headers={"x-session-id": "s"}, tenant=ALICE)
    assert unit_of(call, config) == "session:alice:s"
    assert unit_of(a_call(user="u", tenant=ALICE), config) == "user:alice:u"
    assert unit_of(a_call(user="u", tenant=BOB), config) == "user:bob:u"
    assert unit_of(a_call(tenant=ALICE), config) == "key:alice"
    assert unit_of(call, Sticky.Config(by=["key"])) == "key:alice"


def test_sticky_keeps_a_session_on_one_target_and_uses_all_for_many() -> None:
    router = Sticky(Sticky.Config(), edges_of("a", "b", "c"))

    async def go() -> list[set[str]]:
        return [
            {await taken(router, a_call(headers={"x-session-id": f"s{n}"})) for _ in range(5)}
            for n in range(50)
        ]

    found = run(go())
    assert all(len(places) == 1 for places in found)
    assert set().union(*found) == {"a", "b", "c"}


def assign(router: AB, number: int, **body: Any) -> tuple[str, Exposed | None, dict[str, str]]:
    call = a_call(user=f"u{number}", **body)
    name = run(taken(router, call))
    return name, call.record.decision(Exposed), call.record.headers


def test_an_assignment_is_stable_balanced_and_noted() -> None:
    router = AB(AB.Config(experiment="greeting"), edges_of("old", "new"))
    first = [assign(router, n)[0] for n in range(600)]
    assert first == [assign(router, n)[0] for n in range(600)]
    assert 240 < Counter(first)["new"] < 360
    name, exposed, headers = assign(router, 1)
    assert exposed is not None
    assert exposed.variants == {"greeting": name}
    assert headers["x-pipeline-experiment"] == f"greeting={name}"


def test_another_salt_or_experiment_assigns_anew() -> None:
    def all_of(**config: Any) -> list[str]:
        router = AB(AB.Config(**config), edges_of("old", "new"))
        return [assign(router, n)[0] for n in range(400)]

    one = all_of(experiment="one")
    for other in (all_of(experiment="two"), all_of(experiment="one", salt="2")):
        same = sum(a == b for a, b in zip(one, other, strict=True))
        assert 140 < same < 260


def test_more_weight_only_brings_units_over() -> None:
    def all_of(share: float) -> list[str]:
        router = AB(AB.Config(weights={"old": 1 - share, "new": share}), edges_of("old", "new"))
        return [assign(router, n)[0] for n in range(300)]

    small, large = all_of(0.1), all_of(0.5)
    assert all(after == "new" for before, after in zip(small, large, strict=True) if before == "new")
    assert Counter(small)["new"] < Counter(large)["new"]


def test_a_call_that_only_some_variants_can_serve_takes_no_part() -> None:
    router = AB(AB.Config(), edges_of("old", "new"))
    for number in range(20):
        name, exposed, headers = assign(router, number, model="new")
        assert (name, exposed) == ("new", None)
        assert "x-pipeline-experiment" not in headers
    call = a_call(model="new")
    run(router(call))
    routed = call.record.decision(Routed)
    assert routed is not None
    assert routed.reason.startswith("not in ab")


def test_two_experiments_are_both_noted() -> None:
    inner = AB(AB.Config(experiment="inner"), edges_of("x", "y"))
    models = (Model("x", CHAT), Model("y", CHAT))
    router = AB(
        AB.Config(experiment="outer"),
        some_edges(an_edge("a", *models, answer=inner), an_edge("b", *models, answer=inner)),
    )
    _, exposed, headers = assign(router, 3)
    assert exposed is not None
    assert list(exposed.variants) == ["outer", "inner"]
    assert headers["x-pipeline-experiment"] == ", ".join(f"{k}={v}" for k, v in exposed.variants.items())


def test_a_variant_of_weight_nought_is_not_waited_for() -> None:
    router = AB(AB.Config(weights={"new": 0}), edges_of("old", "new"))
    name, exposed, _ = assign(router, 1)
    assert exposed is not None
    assert (name, exposed.variants) == ("old", {"ab": "old"})


def test_a_target_for_another_operation_is_no_variant() -> None:
    targets = some_edges(an_edge("old"), an_edge("new"), an_edge("embed", Model("minilm", EMBED)))
    router = AB(AB.Config(), targets)
    name, exposed, _ = assign(router, 1)
    assert exposed is not None
    assert exposed.variants == {"ab": name}
    call = a_call("embedding", input="hi")
    assert run(taken(router, call)) == "embed"
    assert call.record.decision(Exposed) is None


@pytest.mark.parametrize("policy", [AB, Sticky, Weighted])
def test_weights_that_are_all_nought_are_refused(policy: Any) -> None:
    with pytest.raises(ConfigError, match="weights: they are all 0"):
        policy(policy.Config(weights={"old": 0, "new": 0}), edges_of("old", "new"))


@pytest.mark.parametrize("policy", [AB, Sticky, Weighted])
def test_weights_that_leave_an_operation_without_a_target_are_refused_once_models_are_known(
    policy: Any,
) -> None:
    targets = some_edges(an_edge("old"), an_edge("new"), an_edge("embed", Model("minilm", EMBED)))
    run(policy(policy.Config(weights={"embed": 0}), targets).open())
    with pytest.raises(ConfigError, match="`old`, `new` have 0: no target would be used for"):
        run(policy(policy.Config(weights={"old": 0, "new": 0}), targets).open())


@pytest.mark.parametrize("config", [{"experiment": "a b"}, {"by": []}, {"weights": {"old": -1}}])
def test_a_config_that_makes_no_experiment_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AB.Config(**config)

"""Keys: equal for the same question by the same people, different otherwise."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.cache.key import IGNORED, Keys, canonical

from pipeline import Call, Model, Tenant

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "What is a llama?"}],
    "temperature": 0,
    "seed": 1,
    "n": 2,
    "stop": ["x"],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "a": 1}}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 5,
    "top_p": 0.5,
    "a_field_of_next_year": {"x": [1, 2.5, None]},
}
ANA = Tenant(key="k1", owner="ana")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def call(body: dict[str, Any] | bytes, tenant: Tenant = ANA, operation: str = "chat", **headers: str) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(
        id="r", operation=operation, raw=raw, deadline=1e9, received=0, tenant=tenant, headers=headers
    )


def digest(body: dict[str, Any] | bytes, tenant: Tenant = ANA, **options: Any) -> bytes:
    return Keys(**options).of(call(body, tenant)).digest


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        order.shuffle(items)
        return {key: shuffled(item, order) for key, item in items}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), json_values, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_and_white_space_do_not_count(more: dict[str, Any], order: random.Random) -> None:
    body = {**more, **BODY}
    other = json.dumps(shuffled(body, order), indent=2).encode()
    assert digest(body) == digest(other)


@given(json_values, json_values)
def test_canonical_bytes_are_equal_exactly_for_equal_json(one: Any, two: Any) -> None:
    assert json.loads(canonical(one)) == json.loads(json.dumps(one))
    same_types = json.dumps(plain(one), sort_keys=True) == json.dumps(plain(two), sort_keys=True)
    assert (canonical(one) == canonical(two)) == same_types


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


@given(st.sampled_from(sorted(BODY)), json_values)
def test_any_other_value_of_a_field_that_counts_is_another_key(field: str, value: Any) -> None:
    changed = {**BODY, field: value}
    if field == "model" and not isinstance(value, str):
        return
    same = canonical(value) == canonical(BODY[field]) or (field == "model" and value in ("m",))
    assert (digest(changed) == digest(BODY)) == same


@pytest.mark.parametrize("field", sorted(set(BODY) - {"model", "n", "tools"}))
def test_leaving_a_field_out_is_another_key(field: str) -> None:
    assert digest({k: v for k, v in BODY.items() if k != field}) != digest(BODY)


@pytest.mark.parametrize("field", sorted(IGNORED - {"model"}))
def test_fields_that_do_not_change_an_answer_do_not_count(field: str) -> None:
    assert digest({**BODY, field: {"include_usage": True}}) == digest(BODY)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 1), ("tools", []), ("response_format", {"type": "text"}), ("logprobs", False), ("seed", None)],
)
def test_a_default_is_the_same_as_nothing(field: str, value: Any) -> None:
    without = {k: v for k, v in BODY.items() if k != field}
    assert digest({**without, field: value}) == digest(without)


def test_no_logprobs_and_none_of_the_top_are_different_completions() -> None:
    assert digest({**BODY, "logprobs": 0}) != digest({**BODY, "logprobs": False})


def test_numbers_are_compared_as_numbers_and_not_as_booleans() -> None:
    assert digest({**BODY, "temperature": 0.0}) == digest(BODY)
    assert digest({**BODY, "x": 1}) != digest({**BODY, "x": True})
    assert digest({**BODY, "x": 2**53}) != digest({**BODY, "x": 2**53 + 1})
    assert digest({**BODY, "x": 10**30}) != digest({**BODY, "x": 10**30 + 1})


def test_no_model_is_the_default_model() -> None:
    body = {k: v for k, v in BODY.items() if k != "model"}
    assert digest(body) == digest({**body, "model": "default"}) == digest({**body, "model": None})


def test_operations_have_keys_of_their_own() -> None:
    keys = Keys()
    assert keys.of(call(BODY)).digest != keys.of(call(BODY, operation="completion")).digest


names = st.text(min_size=1, max_size=8)
tenants = st.builds(
    Tenant,
    key=names,
    owner=names,
    models=st.none() | st.frozensets(names, max_size=2),
    policy=st.dictionaries(st.sampled_from(["rag", "limit", "cache"]), st.just({"a": 1}), max_size=2),
)


@given(tenants, tenants)
def test_tenants_share_a_key_only_within_the_scope(one: Tenant, two: Tenant) -> None:
    behind = [{k: v for k, v in t.policy.items() if k == "rag"} for t in (one, two)]
    alike = one.models == two.models and behind[0] == behind[1]
    keys, owners, everybody = (Keys(scope=scope) for scope in ("key", "owner", "global"))
    for maker, same in (
        (keys, one.key == two.key and alike),
        (owners, one.owner == two.owner and alike),
        (everybody, alike),
    ):
        first, second = maker.of(call(BODY, one)), maker.of(call(BODY, two))
        assert (first.digest == second.digest) == (first.scope == second.scope) == same


def test_a_policy_that_changed_is_not_answered_from_before() -> None:
    keys = Keys()
    before = keys.of(call(BODY, replace(ANA, policy={"rag": {"collection": "a"}})))
    assert keys.of(call(BODY, replace(ANA, policy={"rag": {"collection": "b"}}))) != before


def test_version_headers_and_models_behind_the_name_are_part_of_the_key() -> None:
    small, large = (Model(name, frozenset({"chat"}), aliases=("m",)) for name in ("small", "large"))
    found = {
        digest(BODY),
        digest(BODY, version="2"),
        digest(BODY, models=lambda: [small]),
        digest(BODY, models=lambda: [large]),
        digest(BODY, vary=["x-arm"]),
        Keys(vary=["x-arm"]).of(call(BODY, **{"x-arm": "b"})).digest,
    }
    assert len(found) == 6


def test_a_key_remembered_from_equal_bytes_is_the_key() -> None:
    keys = Keys(remember=2)
    for number in (1, 2, 3, 3, 2, 1):
        assert keys.of(call({**BODY, "seed": number})) == Keys().of(call({**BODY, "seed": number}))


def test_labels_name_owner_and_every_model_that_may_answer() -> None:
    model = Model("small", frozenset({"chat"}), aliases=("m",))
    labels = Keys(models=lambda: [model]).of(call(BODY)).labels
    assert labels == ("all", "owner:ana", "model:m", "model:small")

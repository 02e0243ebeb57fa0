"""`validate=json_schema`: what is JSON of the form wanted, known as early as it can be."""

import json
from typing import Any

import jiter
import jsonschema_rs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pipeline_plugins.validate.json_follow import JSONFollower
from pipeline_plugins.validate.json_schema import JSONSchema, compiled
from pipeline_plugins.validate.policy import ReplyRejected
from pipeline_plugins.validate.schema_work import depth_allowed, depth_of
from pydantic import ValidationError

from pipeline.errors import InvalidRequest
from pipeline.kinds import Validated
from tests.plugins.validate.models import Told, chat, read, run, said

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "at": {"$ref": "#/$defs/place"},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}}},
}
GOOD = '{"name": "Ann", "age": 3, "tags": ["a"], "at": {"x": 1.5}}'


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def ask(*answers: str, config: dict[str, Any] | None = None, **body: Any) -> str:
    model = Told(*answers, size=4)
    validator = JSONSchema(JSONSchema.Config(**(config or {})), "form", model.edge(), model.edge("retry"))

    async def go() -> str:
        return said(await read(await validator(chat(**body))))

    return str(run(go()))


@pytest.mark.parametrize("stream", [False, True])
def test_the_requests_own_schema_holds(stream: bool) -> None:
    assert ask(GOOD, response_format=form(PERSON), stream=stream) == GOOD
    with pytest.raises(ReplyRejected, match=r"content does not fit the schema"):
        ask('{"age": 3}', response_format=form(PERSON), stream=stream)


def test_without_a_schema_any_text_will_do() -> None:
    assert ask("no JSON") == "no JSON"
    assert ask("no JSON", response_format={"type": "text"}) == "no JSON"


def test_an_operators_schema_holds_for_every_answer_and_beside_the_requests() -> None:
    config = {"form": {"type": "object", "required": ["age"]}}
    with pytest.raises(ReplyRejected, match="is not JSON"):
        ask("no JSON", config=config)
    with pytest.raises(ReplyRejected, match="age"):
        ask('{"name": "x"}', config=config, response_format=form(PERSON))


def test_any_object_is_a_json_object() -> None:
    assert ask("{}", response_format={"type": "json_object"}) == "{}"
    with pytest.raises(ReplyRejected, match="type"):
        ask("[]", response_format={"type": "json_object"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("policy", ["buffer", "window"])
def test_an_empty_answer_is_no_json(stream: bool, policy: str) -> None:
    with pytest.raises(ReplyRejected, match="is empty, not JSON"):
        ask("", response_format=form(PERSON), stream=stream, config={"stream": policy})


@pytest.mark.parametrize("ask", [True, False])
def test_models_are_asked_for_the_operators_form_at_first_or_on_a_retry(ask: bool) -> None:
    model, again = Told("no"), Told("{}")
    config = JSONSchema.Config(form={"type": "object"}, ask=ask, on_failure="retry")
    run(JSONSchema(config, "form", model.edge(), again.edge("retry"))(chat()))
    asked = form({"type": "object"})["json_schema"]["schema"]
    assert ("response_format" in model.calls[0].body) is ask
    assert again.calls[0].body["response_format"]["json_schema"]["schema"] == asked


def test_a_request_with_a_format_or_tools_of_its_own_is_not_changed() -> None:
    for own in ({"response_format": form({})}, {"tools": [{"type": "function"}]}):
        model = Told("{}")
        run(JSONSchema(JSONSchema.Config(form={"type": "object"}), "form", model.edge())(chat(**own)))
        assert {k: model.calls[0].body.get(k) for k in own} == own
        assert set(model.calls[0].body) == {"messages", *own}


def test_a_retry_mends_it() -> None:
    config = {"on_failure": "retry"}
    assert ask("Sure! {", GOOD, config=config, response_format=form(PERSON)) == GOOD


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("Sure! Here is the JSON that you wanted: " + GOOD, "is not JSON"),
        ('{"name": 3, ' + " " * 500, r"at `name`: expected string, not number"),
        ('{"name": "x", "age": 1.5, ' + " " * 500, "at `age`: expected integer"),
        ('{"nickname": ' + " " * 500, "at `nickname`: this property is not expected"),
        ('{"tags": ["a", "c"' + " " * 500, r"at `tags\[1\]`: `c` is none of the values allowed"),
        ('{"tags": ["a", "a", "a"' + " " * 500, r"at `tags\[2\]`: there are more than 2 items"),
        ('{"at": {"x": "1"' + " " * 500, r"at `at.x`: expected number"),
        (GOOD + "And more " * 50, "is not JSON"),
    ],
)
@pytest.mark.parametrize("policy", ["buffer", "window"])
def test_a_stream_that_can_not_become_valid_is_stopped_there(answer: str, what: str, policy: str) -> None:
    model = Told(answer + " " * 2000, size=4)
    validator = JSONSchema(JSONSchema.Config(stream=policy), "form", model.edge())

    async def go() -> None:
        await read(await validator(chat(stream=True, response_format=form(PERSON))))

    with pytest.raises(ReplyRejected, match=what):
        run(go())
    assert model.sent * 4 < len(GOOD) + 60
    assert model.closed == 1


@pytest.mark.parametrize("policy", ["buffer", "window"])
def test_json_that_is_too_long_is_not_kept_and_fails(policy: str) -> None:
    model = Told("[" + "1," * 5000 + "1]", size=4)
    validator = JSONSchema(JSONSchema.Config(stream=policy, max_characters=100), "form", model.edge())

    async def go() -> None:
        await read(await validator(chat(stream=True, response_format=form({"type": "array"}))))

    with pytest.raises(ReplyRejected, match="more than 100 characters, which are not read"):
        run(go())
    assert model.sent * 4 <= 120


@pytest.mark.parametrize("policy", ["buffer", "window"])
@pytest.mark.parametrize("arguments", [b"{", b""])
def test_calls_of_tools_need_not_be_of_the_form(arguments: bytes, policy: str) -> None:
    called = b'{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"%b"}}]}' % arguments
    event = b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % called
    model = Told("", events=[event, b"data: [DONE]\n\n"])
    validator = JSONSchema(JSONSchema.Config(stream=policy), "form", model.edge())

    async def go() -> None:
        await read(await validator(chat(stream=True, response_format=form(PERSON))))

    run(go())


def nest(depth: int, value: Any = 1) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


def deep(depth: int) -> dict[str, Any]:
    return {"a": {"properties": deep(depth - 1)}} if depth else {}


def doubling(steps: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(steps)}
    return {"$ref": "#/$defs/a0", "$defs": {**defs, f"a{steps}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "circle"),
        ({"properties": deep(40)}, "nested deeper than"),
        ({"pattern": "(a{1,1000}){1,1000}"}, "repeats more than"),
        ({"pattern": "(?=a)b"}, "look around"),
        ({"$ref": "https://example.org/schema"}, "must point into the schema"),
        (doubling(30), "evaluates more than"),
    ],
)
def test_a_schema_that_costs_too_much_is_refused_before_a_model_is_asked(schema: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        ask("x", response_format=form(schema))
    assert caught.value.error_code == "invalid_schema"
    with pytest.raises(ValidationError, match=why) as refused:
        JSONSchema.Config(form=schema)
    assert refused.value.errors()[0]["loc"] == ("form",)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"const": 10**30}, "an integer of more than 64 bits"),
        ({"properties": deep(300)}, "nested deeper than"),
    ],
)
def test_a_schema_that_can_not_be_written_down_is_the_clients_mistake(schema: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        ask("x", response_format=form(schema))


def test_the_depth_of_instances_is_bounded_where_a_schema_multiplies_work() -> None:
    branch = {"properties": {"a": {"$ref": "#"}}, "minProperties": 5}
    schema = {"anyOf": [branch, {**branch, "minProperties": 6}]}
    assert depth_allowed(schema) == 17
    assert depth_allowed({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}) == 100
    assert depth_allowed({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}) == 100
    assert depth_of(nest(18)) == 18
    assert "nested deeper than 17" in str(compiled(schema, "x").wrong(nest(18)))


def test_patterns_are_matched_in_linear_time() -> None:
    # 2 ** 60 steps for an engine that goes back.
    with pytest.raises(ReplyRejected, match="does not match"):
        ask(json.dumps("a" * 60 + "!"), response_format=form({"type": "string", "pattern": "^(a+)+$"}))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def feed(text: str, cuts: list[int], schema: Any = None) -> str | None:
    """What a follower says of a text that comes in pieces, ended as a stream is."""
    follower = JSONFollower(schema)
    places = sorted({min(cut, len(text)) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        wrong = follower.feed(text[start:end])
        if wrong is not None:
            return wrong
    return None


@given(JSON, st.lists(st.integers(0, 200), max_size=8), st.sampled_from([None, 1]), st.booleans())
def test_valid_json_is_never_called_wrong_however_it_is_cut(
    value: Any, cuts: list[int], indent: int | None, ascii: bool
) -> None:
    assert feed(json.dumps(value, indent=indent, ensure_ascii=ascii), cuts) is None


@given(JSON, st.lists(st.integers(0, 200), max_size=8), st.integers(0, 300), st.text(max_size=3))
@example([None, ["\x1f\x1f\U00010000"]], [], 23, "0")
def test_what_is_called_wrong_can_not_be_parsed(value: Any, cuts: list[int], at: int, noise: str) -> None:
    text = json.dumps(value)
    text = text[:at] + noise + text[at:]
    wrong = feed(text, cuts)
    assert (wrong is None) == (feed(text, list(range(len(text)))) is None)
    if wrong is not None:
        # The parser of whole answers, which refuses half a surrogate pair as this one does.
        with pytest.raises(ValueError, match="line 1 column"):
            jiter.from_json(
                text.encode("utf-8", "surrogatepass"), allow_inf_nan=False, catch_duplicate_keys=True
            )


LEAVES: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": ["integer", "null"]},
    {"type": "number"},
    {"type": "boolean"},
    {"enum": [1, "a", None]},
    {"const": True},
    {},
    {"$ref": "#/$defs/d"},
]


def composed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    few = st.lists(inner, min_size=1, max_size=2)
    properties = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": properties},
            optional={"additionalProperties": st.booleans() | inner},
        ),
        st.fixed_dictionaries({"items": inner}, optional={"maxItems": st.integers(0, 2), "prefixItems": few}),
        st.fixed_dictionaries({"allOf": few}),
        st.fixed_dictionaries({"anyOf": few}),
    )


SCHEMAS = st.recursive(st.sampled_from(LEAVES), composed, max_leaves=5)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 1, 1.0, 1.5, 0, "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(SCHEMAS, VALUES, st.lists(st.integers(0, 60), max_size=4))
def test_a_value_that_fits_its_schema_is_never_called_wrong_early(
    schema: dict[str, Any], value: Any, cuts: list[int]
) -> None:
    whole = {**schema, "$defs": {"d": {"type": ["string", "array"], "items": {"type": "integer"}}}}
    wrong = feed(json.dumps(value), cuts, whole)
    if wrong is not None:
        assert not jsonschema_rs.is_valid(whole, value)


def test_the_client_is_told_what_does_not_fit_and_the_record_only_that() -> None:
    call = chat(response_format=form({"properties": {"a": {"type": "integer"}}}))
    with pytest.raises(ReplyRejected, match="private words") as caught:
        run(JSONSchema(JSONSchema.Config(), "form", Told('{"a": "private words"}').edge())(call))
    assert caught.value.param == "choices[0].message.content"
    decision = call.record.decision(Validated)
    assert decision is not None
    assert decision.failed == ("form: choices[0].message.content does not fit the schema",)

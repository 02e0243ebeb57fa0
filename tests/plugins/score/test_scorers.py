"""What each scorer makes of an answer."""

import asyncio
import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.score.exact_match import ExactMatch, ExactMatchConfig
from pipeline_plugins.score.f1 import F1
from pipeline_plugins.score.reference import Expecting

from pipeline.plugins import Registry
from pipeline.problems import ConfigError


def scores(
    plugin: str, answer: str | None, config: dict[str, Any] | None = None, **row: Any
) -> dict[str, Any]:
    loaded = Registry().find(f"score.{plugin}").load()
    scorer = loaded.cls(config=loaded.config(**(config or {})), name=plugin)
    example = Example("1", {"messages": [{"role": "user", "content": "q"}]}, row)
    passages = row.pop("passages", ())
    outcome = Outcome(
        "1", "completed", 200, answer=answer, route=row.pop("route", None), passages=tuple(passages)
    )

    async def go() -> Any:
        if hasattr(scorer, "open"):
            await scorer.open(None)
        found = scorer.score(example, outcome)
        return await found if inspect.isawaitable(found) else found

    found = asyncio.run(go())
    assert set(found) <= {metric.name for metric in scorer.metrics}
    return dict(found)


def score(plugin: str, answer: str | None, config: dict[str, Any] | None = None, **row: Any) -> Any:
    return scores(plugin, answer, config, **row).get(plugin)


@pytest.mark.parametrize(
    ("plugin", "answer", "expected", "value"),
    [
        ("exact_match", "The Llama.", "a llama", 1),
        ("exact_match", "two llamas", "a llama", 0),
        ("exact_match", "B", ["A", "B"], 1),
        ("f1", "the cat sat", "a cat sat down", 0.8),
        ("f1", "", "", 1),
        ("f1", "dog", "cat", 0),
        ("contains", "It is Paris, France.", "paris", 1),
        ("contains", "comparison", "paris", 0),
        ("rouge_l", "the cat sat on the mat", "the cat sat on the mat", 1),
        ("rouge_l", "dog", "cat", 0),
    ],
)
def test_likeness_to_what_was_expected(plugin: str, answer: str, expected: Any, value: float) -> None:
    assert score(plugin, answer, expected=expected) == pytest.approx(value)


@pytest.mark.parametrize("plugin", ["exact_match", "f1", "contains", "rouge_l", "similarity"])
def test_an_example_without_an_expected_answer_is_left_out(plugin: str) -> None:
    assert score(plugin, "a") is None


@settings(deadline=None)
@given(st.text(max_size=50), st.text(max_size=50))
def test_likeness_is_from_0_to_1_and_1_for_the_same(answer: str, expected: str) -> None:
    for scorer in (ExactMatch(ExactMatchConfig(), "e"), F1(Expecting(), "f")):
        assert 0 <= scorer.likeness(answer, expected) <= 1
        assert scorer.likeness(answer, answer) == 1


def test_an_answer_of_no_text_is_like_the_empty_one() -> None:
    assert score("exact_match", None, expected="x") == 0


def test_an_expected_answer_of_another_type_is_the_rows_mistake() -> None:
    with pytest.raises(DataError, match="`expected` is neither a text nor a list of texts"):
        score("f1", "a", expected={"x": 1})


def test_a_pattern_is_the_configs_or_the_rows_own() -> None:
    assert score("regex", "it is 42", {"pattern": r"\d+"}) == 1
    assert score("regex", "it is 42", {"pattern": r"\d+", "whole": True}) == 0
    assert score("regex", "it is 42", pattern="is") == 1
    assert score("regex", "it is 42") is None
    with pytest.raises(ConfigError, match="it is not a pattern"):
        score("regex", "", {"pattern": "("})
    with pytest.raises(DataError, match="`pattern` is not a pattern"):
        score("regex", "", pattern="(")


def test_json_is_checked_against_the_configs_schema_or_the_rows_own() -> None:
    schema = {"type": "object", "required": ["a"]}
    assert score("json_schema", '{"a": 1}', {"json_schema": schema}) == 1
    assert score("json_schema", '{"b": 1}', {"json_schema": schema}) == 0
    assert score("json_schema", '{"b": 1}', schema=schema) == 0
    assert score("json_schema", '{"b": 1}') == 1
    assert score("json_schema", "no json", {"json_schema": schema}) == 0
    with pytest.raises(ConfigError, match="it is not a JSON schema"):
        score("json_schema", "", {"json_schema": {"type": "nothing"}})


def test_a_schema_reads_no_file_and_asks_no_server(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        for place in (f"http://127.0.0.1:{server.getsockname()[1]}/", (tmp_path / "schema.json").as_uri()):
            with pytest.raises(DataError, match="it is not a JSON schema"):
                score("json_schema", "1", schema={"$ref": place})
        with pytest.raises(BlockingIOError):
            server.accept()
    assert score("json_schema", "1", schema={"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}) == 1


def test_similarity_is_higher_for_the_same_meaning() -> None:
    pytest.importorskip("onnxruntime")
    near = score(
        "similarity", "A llama is an animal of South America.", expected="Llamas live in South America."
    )
    far = score("similarity", "Interest rates rose again.", expected="Llamas live in South America.")
    assert far < 0.3 < near


def test_groundedness_is_the_share_of_claims_in_the_passages() -> None:
    pytest.importorskip("onnxruntime")
    passages = ["The Andes are a range of mountains in South America."]
    answer = "The Andes are mountains in South America. The stock market closed lower on Tuesday afternoon."
    assert score("groundedness", answer, passages=passages) == 0.5
    assert score("groundedness", answer) is None


def test_retrieval_measures_count_a_relevant_text_once_at_its_first_rank() -> None:
    relevant = ["llamas live in the andes", "alpacas have soft wool"]
    passages = ["nothing of it", "we know that llamas live in the high andes", "llamas live in the andes"]
    found = scores("retrieval", "", {"measures": ["R@3", "RR", "P@3"]}, relevant=relevant, passages=passages)
    assert found == pytest.approx({"retrieval.R@3": 0.5, "retrieval.RR": 0.5, "retrieval.P@3": 1 / 3})
    missed = scores("retrieval", "", {"measures": ["R@3"]}, relevant=relevant)
    assert missed == {"retrieval.R@3": 0.0}
    with pytest.raises(ValueError, match="`recall` is no measure"):
        scores("retrieval", "", {"measures": ["recall"]})


def test_a_record_is_looked_up_by_the_route_that_was_taken() -> None:
    assert score("recorded", "", route="large", large_right="1", small_right="0") == 1
    assert score("recorded", "", route="small", large_right="1", small_right="0") == 0
    assert score("recorded", "", large_right="1") is None
    with pytest.raises(DataError, match="`small_right` is not a number"):
        score("recorded", "", route="small", large_right="1")

"""Checks in a served graph, as clients meet them: with echo, and with the real model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from benchmarks.processes import pipeline_server

GRAPH = """
# @package _global_
defaults:
  - /validate@inputs: pii
  - /validate@words: regex
  - /validate@form: json_schema
  - /infer@model: echo
  - /infer@canned: echo
graph:
  entry: inputs
  stages:
    inputs: {next: words}
    words: {next: form, retry: form, fallback: canned}
    form: {next: model}
    model: {}
    canned: {}
words: {side: reply, require: [accepted|fine], forbid: [never], on_failure: retry, retries: 1}
"""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(
        model="default", messages=[{"role": "user", "content": text}], **more
    )


def content(response: Any) -> str:
    return str(response.parse().choices[0].message.content)


def streamed(response: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in response.parse() if c.choices)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder: Path = tmp_path_factory.mktemp("conf")
    (folder / "graph").mkdir()
    (folder / "graph" / "checked.yaml").write_text(GRAPH)
    with pipeline_server("-c", str(folder), "graph=checked") as server, client(server.url) as opened:
        yield opened


def test_several_checks_in_one_graph_pass_and_say_so(echo: OpenAI) -> None:
    response = ask(echo, "fine")
    assert content(response) == "fine"
    assert response.headers["x-pipeline-validate"] == "inputs=passed, form=passed, words=passed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_edge_is_taken_with_the_reason(echo: OpenAI, stream: bool) -> None:
    response = ask(echo, "hello", stream=stream)
    # Echo repeats the last message, which is the reason given.
    text = streamed(response) if stream else content(response)
    assert text.startswith("This answer was not accepted: choices[0].message.content does not match")
    assert "words=retried 1" in response.headers["x-pipeline-validate"]


def test_a_fallback_has_to_hold_and_the_error_says_what_failed_and_where(echo: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(echo, "never")
    assert caught.value.code == "validation_failed"
    assert caught.value.param == "choices[0].message.content"
    assert "`words`" in str(caught.value)
    assert "forbidden `never`" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_personal_data_does_not_reach_the_model_and_comes_back(echo: OpenAI, stream: bool) -> None:
    response = ask(echo, "fine, write to ann@example.org", stream=stream)
    text = streamed(response) if stream else content(response)
    assert text == "fine, write to ann@example.org"
    assert "inputs=redacted" in response.headers["x-pipeline-validate"]


def test_a_window_ends_a_stream_with_an_error_event() -> None:
    overrides = ["infer=echo", "infer@embed=none", "cache=none", "validate=regex", "validate.forbid=[never]"]
    with (
        pipeline_server(
            *overrides, "validate.side=reply", "validate.stream=window", "validate.window=8"
        ) as server,
        client(server.url) as opened,
    ):
        seen: list[str] = []
        chunks = ask(opened, "so far so good " * 5 + "never", stream=True).parse()
        with pytest.raises(openai.APIError, match="refused by `validate`") as caught:
            seen.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert caught.value.code == "validation_failed"
        assert "".join(seen).startswith("so far so good")
        assert "never" not in "".join(seen)
        # And the server goes on.
        assert content(ask(opened, "again")) == "again"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder: Path = tmp_path_factory.mktemp("conf")
    (folder / "validate").mkdir()
    preset = {"plugin": "validate.json_schema", "on_failure": "retry", "ask": False, "form": PERSON}
    (folder / "validate" / "person.yaml").write_text(json.dumps(preset))
    overrides = ["infer@embed=none", "cache=none", "validate=person", "infer.slots=2"]
    with pipeline_server("-c", str(folder), *overrides) as server, client(server.url) as opened:
        yield opened


@pytest.mark.parametrize("stream", [False, True])
def test_the_real_model_mends_its_prose_on_a_retry(llama: OpenAI, stream: bool) -> None:
    response = ask(llama, "Say hello.", stream=stream, max_tokens=100, temperature=0)
    person = json.loads(streamed(response) if stream else content(response))
    assert set(person) == {"name", "age", "tags"}
    assert response.headers["x-pipeline-validate"] == "validate=retried 1"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stream", [False, True])
def test_a_valid_request_to_the_real_model_always_gives_valid_json(
    llama: OpenAI, stream: bool, seed: int
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    response = ask(
        llama,
        "Invent a person.",
        stream=stream,
        response_format=schema,
        max_tokens=100,
        temperature=1.5,
        seed=seed,
    )
    person = json.loads(streamed(response) if stream else content(response))
    assert set(person) == {"name", "age", "tags"}
    assert response.headers["x-pipeline-validate"] == "validate=passed"

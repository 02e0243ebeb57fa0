"""The official client against the default graph with its real models."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from benchmarks.processes import pipeline_server

QUESTION = [{"role": "user", "content": "What is 2+2?"}]
SHORT: dict[str, Any] = {"model": "default", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pipeline_server("infer.slots=4") as server:
        yield f"{server.url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def chat(client: OpenAI, **changes: Any) -> Any:
    return client.chat.completions.create(**{**SHORT, **changes})


def test_a_chat_is_answered_by_the_model(client: OpenAI) -> None:
    reply = chat(client)
    assert "4" in reply.choices[0].message.content
    assert reply.object == "chat.completion"
    assert reply.model == "SmolLM2-135M-Instruct"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.refusal is None
    assert reply.choices[0].logprobs is None
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0


def test_a_stream_gives_the_same_text_in_pieces(client: OpenAI) -> None:
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert chunks[-1].choices[0].delta.content is None
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == chat(client).choices[0].message.content


def test_a_stream_ends_with_the_usage_when_asked(client: OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_async_client_is_answered_and_streamed(url: str) -> None:
    async def go() -> tuple[Any, str]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**SHORT), client.chat.completions.create(**SHORT, stream=True)
            )
            return whole, "".join([c.choices[0].delta.content or "" async for c in stream])

    whole, text = asyncio.run(go())
    assert whole.choices[0].message.content == text


def test_n_gives_that_many_choices(client: OpenAI) -> None:
    reply = chat(client, n=3, temperature=1, seed=1, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    indexes = {c.index for chunk in chat(client, n=2, stream=True) for c in chunk.choices}
    assert indexes == {0, 1}


@pytest.mark.parametrize("stop", ["=", ["=", "never"]])
def test_stop_ends_the_answer_before_the_word(client: OpenAI, stop: Any) -> None:
    reply = chat(client, stop=stop)
    assert "=" not in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"


def test_equal_seeds_give_equal_answers(client: OpenAI) -> None:
    texts = {chat(client, temperature=1, seed=7).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_the_answer_is_bounded_in_both_spellings(client: OpenAI, limit: str) -> None:
    asked: Any = {"model": "default", "messages": QUESTION, limit: 3}
    reply: Any = client.chat.completions.create(**asked)
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "length"


def test_logprobs_come_with_their_alternatives(client: OpenAI) -> None:
    content = chat(client, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in content)
    chunks = list(chat(client, logprobs=True, top_logprobs=2, max_tokens=4, stream=True))
    assert any(chunk.choices[0].logprobs for chunk in chunks)


def test_sampling_parameters_are_taken(client: OpenAI) -> None:
    reply = chat(
        client,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"1": -100},
        user="someone",
        metadata={"a": "b"},
        store=False,
    )
    assert reply.choices[0].message.content


def test_unknown_fields_are_no_mistake(client: OpenAI) -> None:
    assert chat(client, extra_body={"of_another_server": {"x": 1}}).choices


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_must_be_called_is_called(client: OpenAI, choice: Any) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"messages": messages, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 100}
    reply = chat(client, **asked)
    (call,) = reply.choices[0].message.tool_calls[:1]
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    assert reply.choices[0].finish_reason == "tool_calls"
    streamed = [
        c for chunk in chat(client, **asked, stream=True) for c in chunk.choices[0].delta.tool_calls or []
    ]
    assert "city" in json.loads("".join(c.function.arguments or "" for c in streamed if c.index == 0))


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_tools_may_be_offered(client: OpenAI, choice: str) -> None:
    assert chat(client, tools=[WEATHER], tool_choice=choice).choices


def test_a_tool_result_continues_the_conversation(client: OpenAI) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    assert chat(client, messages=messages, tools=[WEATHER]).choices


def test_json_mode_gives_an_object(client: OpenAI) -> None:
    reply = chat(client, response_format={"type": "json_object"}, max_tokens=300, stop=["}"])
    assert reply.choices[0].message.content.lstrip().startswith("{")


def test_a_schema_is_kept_whole_and_streamed(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "Invent a person."}]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    asked = {"messages": messages, "response_format": form, "max_tokens": 100}
    whole = json.loads(chat(client, **asked).choices[0].message.content)
    assert set(whole) == {"name", "age"}
    text = "".join(c.choices[0].delta.content or "" for c in chat(client, **asked, stream=True))
    assert isinstance(json.loads(text)["age"], int)


def test_content_parts_and_the_developer_role_are_taken(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert chat(client, messages=messages).choices[0].message.content


def test_an_image_is_refused_by_a_text_model(client: OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, messages=[{"role": "user", "content": [image]}])
    assert raised.value.param is not None


def test_completions_are_answered_and_streamed(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "default",
        "prompt": "The capital of France is",
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = client.completions.create(**asked)
    assert whole.object == "text_completion"
    assert "Paris" in whole.choices[0].text
    streamed = "".join(
        c.choices[0].text for c in client.completions.create(**asked, stream=True) if c.choices
    )
    assert streamed == whole.choices[0].text


def test_completions_take_several_prompts_and_logprobs(client: OpenAI) -> None:
    reply = client.completions.create(
        model="default", prompt=["One, two,", "Red, green,"], max_tokens=3, logprobs=2, temperature=0
    )
    assert len(reply.choices) == 2
    assert reply.choices[0].logprobs is not None
    assert len(reply.choices[0].logprobs.tokens or []) == 3


def test_embeddings_are_unit_vectors_that_know_meaning(client: OpenAI) -> None:
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "the stock market fell"]
    reply = client.embeddings.create(model="default", input=texts)
    cat, kitten, market = (item.embedding for item in reply.data)
    assert len(cat) == 384
    assert sum(a * a for a in cat) == pytest.approx(1, abs=1e-4)
    near = sum(a * b for a, b in zip(cat, kitten, strict=True))
    far = sum(a * b for a, b in zip(cat, market, strict=True))
    assert near > 0.5 > 0.2 > far
    assert reply.usage.prompt_tokens > 10


def test_embeddings_in_base64_are_the_same_numbers(client: OpenAI) -> None:
    plain = client.embeddings.create(model="all-MiniLM-L6-v2", input="a cat", encoding_format="float")
    coded: Any = client.embeddings.with_raw_response.create(
        model="all-MiniLM-L6-v2", input="a cat", encoding_format="base64"
    )
    data = base64.b64decode(json.loads(coded.text)["data"][0]["embedding"])
    assert struct.unpack("<384f", data) == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_models_are_listed_and_described(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"]
    assert client.models.retrieve(names[0]).id == names[0]


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        chat(client, model="gpt-unknown")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="SmolLM2-135M-Instruct", input="x")


def test_a_prompt_beyond_the_context_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, messages=[{"role": "user", "content": "word " * 5000}])
    assert raised.value.code == "context_length_exceeded"


def test_each_response_names_its_request_and_target(client: OpenAI) -> None:
    fresh = {"Cache-Control": "no-store, max-age=0"}
    raw = client.chat.completions.with_raw_response.create(**SHORT, extra_headers=fresh)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-pipeline-route"] == "infer"


def test_clients_that_hang_up_free_their_slots(url: str) -> None:
    async def go() -> str:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
            long = {**SHORT, "max_tokens": 1500, "temperature": 1, "logit_bias": {"2": -100}}
            tasks = [asyncio.create_task(client.chat.completions.create(**long)) for _ in range(8)]
            await asyncio.sleep(0.5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with asyncio.timeout(10):
                reply = await client.chat.completions.create(**SHORT)
            return reply.choices[0].message.content or ""

    assert "4" in asyncio.run(go())

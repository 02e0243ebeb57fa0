"""Responses as OpenAI's clients read them: the official client's own types are the oracle."""

import base64
import struct
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from pipeline import Usage
from pipeline.errors import InvalidRequest
from pipeline.wire import responses, sse
from pipeline.wire.responses import Choice, Stream

USAGE = Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=1)


def events(chunks: Iterable[bytes]) -> list[dict[str, Any]]:
    blocks = sse.Splitter().feed(b"".join(chunks))
    data = [sse.data_of(block) for block in blocks]
    assert data[-1] == b"[DONE]"
    return [orjson.loads(one or b"") for one in data[:-1]]


def a_stream(stream: Stream) -> list[bytes]:
    return [
        stream.start(),
        stream.text("Hel"),
        stream.text('lo "\n'),
        stream.finish("stop"),
        stream.end(USAGE),
    ]


def test_a_chat_completion_is_what_the_official_client_expects() -> None:
    body = responses.chat_completion([Choice("a", "stop"), Choice("b", "length")], USAGE, model="m")
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [c.message.content for c in parsed.choices] == ["a", "b"]
    assert [c.index for c in parsed.choices] == [0, 1]
    assert [c.finish_reason for c in parsed.choices] == ["stop", "length"]
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (
        3,
        5,
        8,
    )
    assert parsed.id.startswith("chatcmpl-")


def test_fields_without_a_value_are_null_rather_than_missing() -> None:
    body = responses.chat_completion([Choice("a", "stop")], USAGE, model="m")
    choice = body["choices"][0]
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None
    assert "logprobs" in responses.completion([Choice("a", "stop")], USAGE, model="m")["choices"][0]


def test_tool_calls_are_in_the_message_only_where_there_are_some() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = responses.chat_completion([Choice(None, "tool_calls", tool_calls=[call])], USAGE, model="m")
    message = ChatCompletion.model_validate(body).choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].id == "call_1"
    plain = responses.chat_completion([Choice("a", "stop")], USAGE, model="m")
    assert "tool_calls" not in plain["choices"][0]["message"]


def test_a_completion_is_what_the_official_client_expects() -> None:
    body = responses.completion([Choice("a", "stop")], USAGE, model="m", fingerprint="fp")
    parsed = Completion.model_validate(body, strict=True)
    assert parsed.choices[0].text == "a"
    assert parsed.system_fingerprint == "fp"
    assert parsed.id.startswith("cmpl-")


def test_ids_are_new_each_time() -> None:
    assert len({responses.new_id("chatcmpl") for _ in range(1000)}) == 1000


def test_a_chat_stream_starts_with_the_role_and_ends_with_an_empty_delta() -> None:
    found = events(a_stream(Stream("chat", model="m")))
    for event in found:
        ChatCompletionChunk.model_validate(event, strict=True)
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["content"] == ""
    assert deltas[-1] == {}
    assert [event["choices"][0]["finish_reason"] for event in found] == [None, None, None, "stop"]
    assert len({event["id"] for event in found}) == 1


def test_a_stream_put_together_is_the_reply_it_stands_for() -> None:
    whole = sse.assemble(b"".join(a_stream(Stream("chat", model="m", include_usage=True))))
    assert whole is not None
    assert whole["choices"][0]["message"]["content"] == 'Hello "\n'
    assert whole["object"] == "chat.completion"
    assert whole["usage"]["total_tokens"] == 8


def test_usage_is_null_until_its_own_chunk_without_choices() -> None:
    found = events(a_stream(Stream("chat", model="m", include_usage=True)))
    assert [event["usage"] for event in found[:-1]] == [None] * 4
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == USAGE.as_dict()


def test_without_include_usage_no_chunk_speaks_of_it() -> None:
    assert all("usage" not in event for event in events(a_stream(Stream("chat", model="m"))))


def test_a_completion_stream_has_texts_and_no_opening_chunk() -> None:
    stream = Stream("completion", model="m")
    assert stream.start() == b""
    found = events(a_stream(stream))
    Completion.model_validate(found[-1])
    assert [event["choices"][0]["finish_reason"] for event in found] == [None, None, "stop"]
    assert "".join(event["choices"][0]["text"] for event in found) == 'Hello "\n'


def test_chunks_of_several_choices_carry_their_index() -> None:
    stream = Stream("chat", model="m")
    chunks = [stream.text("b", 1, {"content": []}), stream.delta({"tool_calls": []}, 2), stream.end(USAGE)]
    found = events(chunks)
    assert [event["choices"][0]["index"] for event in found] == [1, 2]
    assert found[0]["choices"][0]["logprobs"] == {"content": []}


def test_embeddings_are_lists_of_numbers_or_base64_of_float32() -> None:
    vectors = [struct.pack("<2f", 0.5, -1.25), struct.pack("<2f", 1.0, 0.0)]
    numbers = responses.embeddings(vectors, 7, model="m")
    CreateEmbeddingResponse.model_validate(numbers, strict=True)
    assert [entry["embedding"] for entry in numbers["data"]] == [[0.5, -1.25], [1.0, 0.0]]
    assert [entry["index"] for entry in numbers["data"]] == [0, 1]
    assert numbers["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    encoded = responses.embeddings(vectors, 7, model="m", encoding_format="base64")
    assert [base64.b64decode(entry["embedding"]) for entry in encoded["data"]] == vectors


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("plain", "plain"),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
        ([{"type": "text", "text": None}], ""),
    ],
)
def test_content_is_flattened_to_its_text(content: Any, text: str) -> None:
    assert responses.text_of(content) == text


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "http://x"}}, {}, "text", None, {"type": ["text"]}]
)
def test_a_part_that_is_not_text_is_refused_by_its_place(part: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        responses.text_of([{"type": "text", "text": "a"}, part], "messages[3].content")
    assert caught.value.param == "messages[3].content[1]"
    assert caught.value.error_code == "unsupported_content"

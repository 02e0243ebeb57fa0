"""The stand-in for a model: deterministic, and as configurable as tests and benchmarks need."""

import asyncio
import base64
import struct
import time
from typing import Any

import orjson
import pytest
from pipeline_plugins.infer.echo import Echo
from pydantic import ValidationError

from pipeline import Call, Reply, Usage
from pipeline.errors import APIError, DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded, RateLimited
from pipeline.wire import sse


def ask(
    body: dict[str, Any], operation: str = "chat", seconds: float = 10.0, **config: Any
) -> tuple[Reply, bytes]:
    """The stage's reply to this body, and all of its bytes."""

    async def answer() -> tuple[Reply, bytes]:
        deadline = asyncio.get_running_loop().time() + seconds
        call = Call(id="req_1", operation=operation, body=body, deadline=deadline, received=0.0)
        reply = await Echo(Echo.Config(**config))(call)
        return reply, b"".join([chunk async for chunk in reply])

    return asyncio.run(answer())


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


def content(body: dict[str, Any], **config: Any) -> str:
    reply, raw = ask(body, **config)
    whole = sse.assemble(raw) if reply.streaming else orjson.loads(raw)
    assert whole is not None
    text: str = whole["choices"][0]["message"]["content"]
    return text


def test_a_chat_is_answered_with_the_last_words_of_the_user() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    assert content({"messages": messages}) == "second"


def test_it_says_that_it_is_not_a_model() -> None:
    _, raw = ask(chat("hi"))
    assert orjson.loads(raw)["system_fingerprint"] == "echo-not-a-model"
    assert Echo(Echo.Config()).models[0].owned_by == "echo-not-a-model"


@pytest.mark.parametrize("text", ["a b  c", "  leading and trailing \n", "one", "", " \t", "ünï cödé 日本"])
def test_a_stream_has_the_same_text_as_the_whole_answer(text: str) -> None:
    assert content(chat(text)) == text
    assert content(chat(text, stream=True)) == text


def test_tokens_are_words() -> None:
    _, raw = ask(chat("one two three"))
    usage = orjson.loads(raw)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 3, 6)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_ends_at_the_limit_of_tokens(field: str, stream: bool) -> None:
    reply, raw = ask(chat("one two three", stream=stream, **{field: 2}))
    whole = sse.assemble(raw) if stream else orjson.loads(raw)
    assert whole is not None
    assert whole["choices"][0]["message"]["content"] == "one two"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2


def test_a_limit_that_is_just_enough_is_no_limit() -> None:
    _, raw = ask(chat("one two", max_tokens=2))
    assert orjson.loads(raw)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("stop", "text"), [("c", "a b "), (["x", "b", "c"], "a "), ([], "a b c"), ("", "a b c")]
)
def test_the_answer_ends_before_the_first_stop(stop: Any, text: str) -> None:
    assert content(chat("a b c", stop=stop)) == text


@pytest.mark.parametrize("stream", [False, True])
def test_n_gives_so_many_choices(stream: bool) -> None:
    _, raw = ask(chat("hi there", n=3, stream=stream))
    whole = sse.assemble(raw) if stream else orjson.loads(raw)
    assert whole is not None
    assert [c["message"]["content"] for c in whole["choices"]] == ["hi there"] * 3


def test_a_stream_that_is_cut_has_used_what_was_sent_of_it() -> None:
    async def go() -> Reply:
        deadline = asyncio.get_running_loop().time() + 10
        body = chat("one two three four five", stream=True)
        reply = await Echo(Echo.Config())(
            Call(id="r", operation="chat", body=body, deadline=deadline, received=0.0)
        )
        chunks = aiter(reply)
        while b"two" not in await anext(chunks):
            pass
        await reply.aclose()
        return reply

    assert asyncio.run(go()).usage == Usage(5, 2)


def test_usage_comes_with_the_stream_only_when_asked_for() -> None:
    assert b'"usage"' not in ask(chat("hi", stream=True))[1]
    reply, raw = ask(chat("hi", stream=True, stream_options={"include_usage": True}))
    assert orjson.loads((raw.split(b"\n\n")[-3])[6:])["usage"]["total_tokens"] == 2
    assert reply.usage is not None


def test_json_is_answered_where_json_is_asked_for() -> None:
    text = content(chat('say "hi"', response_format={"type": "json_object"}))
    assert orjson.loads(text) == {"echo": 'say "hi"'}


def test_a_completion_echoes_each_prompt() -> None:
    _, raw = ask({"prompt": ["a b", "c"], "n": 2}, "completion")
    body = orjson.loads(raw)
    assert [choice["text"] for choice in body["choices"]] == ["a b", "a b", "c", "c"]
    assert body["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_can_not_be_echoed(prompt: Any) -> None:
    with pytest.raises(InvalidRequest):
        ask({"prompt": prompt}, "completion")


def test_copies_of_a_prompt_are_bounded_before_they_are_made() -> None:
    with pytest.raises(InvalidRequest):
        ask({"prompt": ["x"] * 2048, "n": 128}, "completion")
    with pytest.raises(InvalidRequest):
        ask({"prompt": "x" * 1_000_000, "n": 128}, "completion")


def vectors(given: Any, **more: Any) -> list[tuple[float, ...]]:
    _, raw = ask({"input": given, "encoding_format": "base64", **more}, "embedding")
    found = [base64.b64decode(entry["embedding"]) for entry in orjson.loads(raw)["data"]]
    return [struct.unpack(f"<{len(one) // 4}f", one) for one in found]


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone() -> None:
    one, two, again = vectors(["a", "b", "a"])
    assert one == again != two
    assert len(one) == 64
    assert sum(value * value for value in one) == pytest.approx(1)
    assert vectors("a") == [one]
    assert abs(sum(a * b for a, b in zip(one, two, strict=True))) < 0.6


def test_embeddings_take_tokens_fewer_dimensions_and_plain_numbers() -> None:
    assert len(vectors([1, 2, 3])) == 1
    assert len(vectors([[1, 2], [3]], dimensions=8)[1]) == 8
    _, raw = ask({"input": "a"}, "embedding")
    assert orjson.loads(raw)["data"][0]["embedding"] == pytest.approx(vectors("a")[0])
    with pytest.raises(InvalidRequest):
        vectors("a", dimensions=65)


def test_latency_and_pace_are_kept() -> None:
    started = time.perf_counter()
    ask(chat("a b c d", stream=True), latency=0.05, tokens_per_second=100)
    assert 0.09 <= time.perf_counter() - started < 1


@pytest.mark.parametrize("stream", [False, True])
def test_no_wait_goes_past_the_deadline(stream: bool) -> None:
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        ask(chat("a b", stream=stream), seconds=0.05, latency=60.0)
    with pytest.raises(DeadlineExceeded):
        ask(chat("a b", stream=stream), seconds=0.05, tokens_per_second=0.01)
    assert time.perf_counter() - started < 1


def failures(count: int = 400, **config: Any) -> list[int]:
    failed = []
    for number in range(count):
        try:
            ask(chat(f"text {number}"), **config)
        except APIError:
            failed.append(number)
    return failed


def test_the_configured_share_of_requests_fails_and_always_the_same_ones() -> None:
    failed = failures(failure_rate=0.25)
    assert 60 <= len(failed) <= 140
    assert failed == failures(failure_rate=0.25)
    assert failed != failures(failure_rate=0.25, seed=1)
    assert len(failures(20, failure_rate=1.0)) == 20
    assert failures(20, failure_rate=0.0) == []


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (503, Overloaded)])
def test_failures_have_the_configured_status(status: int, kind: type[APIError]) -> None:
    with pytest.raises(kind):
        ask(chat("hi"), failure_rate=1, failure_status=status)


def test_foreign_names_are_not_found_and_its_own_are() -> None:
    for name in ("default", "auto", "mine", "other"):
        ask(chat("hi", model=name), name="mine", aliases=["other"])
    with pytest.raises(ModelNotFound, match="mine"):
        ask(chat("hi", model="echo"), name="mine")


def test_a_wrong_config_is_refused() -> None:
    for wrong in ({"failure_rate": 2}, {"failure_status": 200}, {"latency": -1}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Echo.Config(**wrong)  # type: ignore[arg-type]


def test_a_long_stream_lets_others_have_their_turn() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        body = chat("word " * 2000, stream=True)
        call = Call(id="r", operation="chat", body=body, deadline=loop.time() + 10, received=0.0)
        async for _ in await Echo(Echo.Config())(call):
            pass
        task.cancel()
        return turns

    assert asyncio.run(main()) > 20

"""The default model, for real. One stage on one event loop serves all tests of the file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from pipeline_plugins.infer import llamacpp
from pipeline_plugins.infer.llamacpp import LlamaCpp
from pipeline_plugins.infer.llamacpp_engine import Engine
from pydantic import ValidationError

from pipeline import Call, Reply
from pipeline.errors import (
    APIError,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from pipeline.problems import ConfigError
from pipeline.wire import sse

pytest.importorskip("xllamacpp")

SLOTS = 4
HI = [{"role": "user", "content": "Say hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"type": "string", "maxLength": 8}},
        },
    },
}
OTHER = {"type": "function", "function": {"name": "add"}}


class Model:
    """The open stage and the loop it lives on, asked from synchronous tests."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        # One thread: several wait for each other at every step, for long where tests share the cores.
        config = LlamaCpp.Config(slots=SLOTS, context=512, queue=64, threads=1, aliases=["small"])
        self.stage = LlamaCpp(config)
        self.runner.run(self.stage.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))

    async def call(self, operation: str, body: dict[str, Any], seconds: float = 30) -> Reply:
        deadline = asyncio.get_running_loop().time() + seconds
        return await self.stage(
            Call(id="c", operation=operation, body=body, deadline=deadline, received=time.perf_counter())
        )

    async def read(self, operation: str, body: dict[str, Any]) -> tuple[Reply, bytes]:
        reply = await self.call(operation, body)
        return reply, b"".join([chunk async for chunk in reply])

    def chat(self, **body: Any) -> dict[str, Any]:
        return self.answer("chat", {"messages": HI, "max_tokens": 6, **body})

    def complete(self, **body: Any) -> dict[str, Any]:
        return self.answer("completion", {"prompt": "Once upon a", "max_tokens": 4, **body})

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        reply, content = self.run(self.read(operation, body))
        value: dict[str, Any] = orjson.loads(content)
        assert reply.usage is not None
        assert value["usage"] == reply.usage.as_dict()
        return value

    def stream(self, operation: str = "chat", **body: Any) -> list[dict[str, Any]]:
        given = {"messages": HI} if operation == "chat" else {"prompt": "Once upon a"}
        reply, content = self.run(self.read(operation, {**given, "max_tokens": 5, "stream": True, **body}))
        blocks = sse.Splitter().feed(content)
        assert blocks.pop() == b"data: [DONE]"
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 0
        return [orjson.loads(sse.data_of(block) or b"") for block in blocks]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    opened = Model()
    yield opened
    opened.runner.run(opened.stage.close())
    opened.runner.run(opened.stage.close())
    opened.runner.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("llamacpp")]


def test_the_model_tells_what_it_can_do(model: Model) -> None:
    (one,) = model.stage.models
    assert one.id == "SmolLM2-135M-Instruct"
    assert one.context_window == 512
    assert one.aliases == ("small",)
    assert one.operations == {"chat", "completion"}
    assert one.capabilities >= {"tools", "json_schema", "logprobs", "streaming"}


def test_its_name_is_known_before_it_is_loaded() -> None:
    stage = LlamaCpp(LlamaCpp.Config())
    assert [m.id for m in stage.models] == ["SmolLM2-135M-Instruct"]


def test_a_chat_has_openais_form(model: Model) -> None:
    value = model.chat()
    assert value["id"].startswith("chatcmpl-")
    assert (value["object"], value["model"]) == ("chat.completion", "SmolLM2-135M-Instruct")
    (choice,) = value["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["message"]["refusal"] is None
    assert 0 < value["usage"]["completion_tokens"] <= 6


@pytest.mark.parametrize("name", ["default", "auto", "small", "SmolLM2-135M-Instruct"])
def test_it_answers_to_its_names(model: Model, name: str) -> None:
    assert model.chat(model=name, max_tokens=1)["model"] == "SmolLM2-135M-Instruct"


def test_a_foreign_name_is_refused_with_those_that_exist(model: Model) -> None:
    with pytest.raises(ModelNotFound, match="`SmolLM2-135M-Instruct`, `small`, `default`"):
        model.chat(model="gpt-9")


def test_an_operation_that_it_has_not_is_refused(model: Model) -> None:
    with pytest.raises(InvalidRequest, match="embedding"):
        model.answer("embedding", {"input": "x"})


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(model: Model) -> None:
    events = model.stream()
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[-1] == {}
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert all(event["object"] == "chat.completion.chunk" for event in events)
    assert len({event["id"] for event in events}) == 1
    assert all(event["choices"][0]["logprobs"] is None for event in events)
    assert not any("usage" in event for event in events)


@pytest.mark.parametrize("operation", ["chat", "completion"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_ends_with_the_usage_where_it_was_asked_for(model: Model, operation: str, n: int) -> None:
    events = model.stream(operation, stream_options={"include_usage": True}, n=n, seed=1)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 5 * n
    assert "timings" not in events[-1]
    assert all(event["usage"] is None for event in events[:-1])


def test_a_streamed_chat_is_the_same_as_a_whole_one(model: Model) -> None:
    body = {"seed": 5, "max_tokens": 8}
    events = model.stream(**body)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == model.chat(**body)["choices"][0]["message"]["content"]


def test_a_long_prompt_tells_no_progress_to_the_client(model: Model) -> None:
    events = model.stream(messages=[{"role": "user", "content": "word " * 300}], max_tokens=3)
    assert not any("prompt_progress" in event for event in events)
    roles = [e for e in events if "role" in e["choices"][0]["delta"]]
    assert len(roles) == 1


def test_a_seed_makes_an_answer_repeatable(model: Model) -> None:
    texts = [model.chat(seed=s, temperature=1)["choices"][0]["message"]["content"] for s in (7, 7, -1, -1)]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_temperature_zero_takes_the_likeliest(model: Model) -> None:
    one, two = (model.chat(temperature=0)["choices"][0]["message"]["content"] for _ in range(2))
    assert one == two


def test_stop_ends_an_answer_before_the_text(model: Model) -> None:
    for stop in ("e", ["zzz", "e"]):
        choice = model.complete(prompt="Hello there, dear", stop=stop, max_tokens=40)["choices"][0]
        assert "e" not in choice["text"]
        assert choice["finish_reason"] == "stop"


def test_max_completion_tokens_bounds_an_answer(model: Model) -> None:
    value = model.chat(max_completion_tokens=2, max_tokens=None, ignore_eos=True)
    assert value["usage"]["completion_tokens"] == 2
    assert value["choices"][0]["finish_reason"] == "length"


def test_several_choices_differ_and_count_the_prompt_once(model: Model) -> None:
    one = model.chat(seed=1, temperature=1.5)
    value = model.chat(n=3, seed=1, temperature=1.5)
    assert [choice["index"] for choice in value["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in value["choices"]}) > 1
    assert value["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]


def test_several_choices_are_streamed_under_one_id(model: Model) -> None:
    events = model.stream(n=2, seed=3)
    assert len({event["id"] for event in events}) == 1
    for index in (0, 1):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] in ("stop", "length")


def test_more_choices_than_slots_are_answered(model: Model) -> None:
    assert len(model.chat(n=SLOTS + 2, max_tokens=1)["choices"]) == SLOTS + 2


@pytest.mark.parametrize("tops", [0, 2])
def test_a_chats_logprobs_have_as_many_alternatives_as_asked(model: Model, tops: int) -> None:
    logprobs = model.chat(logprobs=True, top_logprobs=tops, seed=2)["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    for entry in logprobs["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == tops
    streamed = model.stream(logprobs=True, top_logprobs=tops, seed=2)
    entries = [x for e in streamed for x in (e["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert all(len(entry["top_logprobs"]) == tops for entry in entries)


def test_a_completions_logprobs_have_their_old_form(model: Model) -> None:
    for body in ({"logprobs": 2}, {"logprobs": 0}):
        choice = model.complete(seed=1, **body)["choices"][0]
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"][0] == 0
        assert all(value <= 0 for value in logprobs["token_logprobs"])
        assert (logprobs["top_logprobs"] is None) == (body["logprobs"] == 0)


def test_logit_bias_forbids_a_token(model: Model) -> None:
    first = model.chat(temperature=0, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"][0]
    prompt = "Once upon a"
    assert model.complete(prompt=prompt, temperature=0, max_tokens=1)["choices"][0]["text"] == " time"
    banned = model.complete(prompt=prompt, temperature=0, max_tokens=1, logit_bias={"655": -100})
    assert banned["choices"][0]["text"] != " time"
    assert first["logprob"] <= 0


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("a", 1), (["a", "b"], 2), ([504, 2643], 1), ([[504], [2643, 260]], 2)],
)
def test_prompts_are_texts_or_tokens_one_or_many(model: Model, prompt: Any, choices: int) -> None:
    value = model.complete(prompt=prompt, max_tokens=2)
    assert value["id"].startswith("cmpl-")
    assert value["object"] == "text_completion"
    assert [choice["index"] for choice in value["choices"]] == list(range(choices))


def test_a_streamed_completion_has_its_form(model: Model) -> None:
    events = model.stream("completion")
    assert all(e["id"].startswith("cmpl-") and e["object"] == "text_completion" for e in events)
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert not any("usage" in event for event in events)


def test_echo_puts_the_prompt_before_the_answer(model: Model) -> None:
    value = model.complete(prompt=["Once", "Twice"], echo=True, n=2, max_tokens=1)
    assert [c["text"][:4] for c in value["choices"]] == ["Once", "Once", "Twic", "Twic"]
    assert model.stream("completion", echo=True)[0]["choices"][0]["text"].startswith("Once upon a")


def test_json_object_and_json_schema_give_json(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 120}, "ok": {"enum": ["yes", "no"]}},
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for seed in range(2):
        choice = model.chat(response_format=form, max_tokens=60, seed=seed)["choices"][0]
        assert choice["finish_reason"] == "stop"
        found = orjson.loads(choice["message"]["content"])
        assert set(found) == {"age", "ok"}
        assert found["ok"] in ("yes", "no")
    events = model.stream(response_format=form, max_tokens=60)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert set(orjson.loads(text)) == {"age", "ok"}
    # Cut short, it is the beginning of such JSON, and says so.
    cut = model.chat(response_format=form, max_tokens=3)["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"]["content"].startswith('{"age":')
    free = model.chat(response_format={"type": "json_object"}, max_tokens=80, seed=1)["choices"][0]
    assert free["message"]["content"].startswith("{")
    if free["finish_reason"] == "stop":
        assert isinstance(orjson.loads(free["message"]["content"]), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_tool_is_called_with_arguments_that_fit(model: Model, choice: Any) -> None:
    tools = [TOOL] if choice == "required" else [OTHER, TOOL]
    found = model.chat(tools=tools, tool_choice=choice, max_tokens=60, logprobs=True)["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["logprobs"] is None
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"]["name"] == "get_weather"
    assert set(orjson.loads(call["function"]["arguments"])) == {"city"}


def test_a_forced_tool_call_is_streamed_as_deltas(model: Model) -> None:
    events = model.stream(
        tools=[TOOL], tool_choice="required", max_tokens=60, stream_options={"include_usage": True}
    )
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert deltas[1]["tool_calls"][0]["index"] == 0
    assert set(orjson.loads(deltas[1]["tool_calls"][0]["function"]["arguments"])) == {"city"}
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert events[-1]["usage"]["total_tokens"] > 0


def test_a_tool_call_that_is_cut_short_says_so(model: Model) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    found = model.chat(tools=[TOOL], tool_choice=named, max_tokens=3)["choices"][0]
    assert found["finish_reason"] == "length"
    assert found["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_tools_may_go_unused(model: Model) -> None:
    for choice in ("auto", "none", None):
        found = model.chat(tools=[TOOL], tool_choice=choice, seed=1)["choices"][0]
        assert found["message"]["content"] is not None
    with_tools = model.chat(tools=[TOOL], max_tokens=1)["usage"]["prompt_tokens"]
    assert with_tools > model.chat(max_tokens=1)["usage"]["prompt_tokens"] + 40


def test_conversations_with_tools_parts_and_every_role_are_read(model: Model) -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    assert model.chat(messages=messages, tools=[OTHER])["usage"]["prompt_tokens"] > 40
    assert model.chat(messages=messages)["usage"]["prompt_tokens"] > 30


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repeat_penalty": True}, "repeat_penalty"),
        ({"cache_prompt": "x"}, "cache_prompt"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"n": 128, "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "["}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(model: Model, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        model.chat(**body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"prompt": ["x"] * 200, "n": 2}, "n"),
        ({"prompt": [10_000_000]}, None),
    ],
)
def test_what_a_completion_can_not_do_is_refused_by_name(
    model: Model, body: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        model.complete(**body)
    assert caught.value.param == param


def test_fields_of_llamacpps_own_server_are_not_handed_on(model: Model) -> None:
    value = model.chat(
        id_slot=99,
        n_probs=10**6,
        n_predict=-1,
        lora=[{"id": 0}],
        samplers="zz",
        response_fields=["a"],
        n_keep=-1,
    )
    assert value["choices"][0]["logprobs"] is None


def test_a_prompt_too_long_is_refused_with_both_counts(model: Model) -> None:
    for stream in (False, True):
        with pytest.raises(ContextTooLong, match="context is 512 tokens, and the prompt has 2031"):
            model.chat(messages=[{"role": "user", "content": "word " * 2000}], stream=stream)
    # `At least`: the count ended where it was clear.
    with pytest.raises(ContextTooLong, match="at least"):
        model.chat(messages=[{"role": "user", "content": "word " * 2_000_000}])


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, Any] = {
    "refers to itself": {"$ref": "#"},
    "refers in a circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "refers to itself by choice": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "never ends": {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
    "refers elsewhere": {"$ref": "http://127.0.0.1/schema"},
    "refers to nothing": {"$ref": "#/$defs/x"},
    "deep": nested(500),
    "many items": {"type": "array", "items": {}, "maxItems": 10**9},
    "long text": {"type": "string", "minLength": 10**9},
    "crossed bounds": {"type": "string", "minLength": 5, "maxLength": 2},
    "huge enumeration": {"enum": list(range(100_000))},
    "many properties": {"type": "object", "properties": {str(i): {} for i in range(5000)}},
    "long pattern": {"type": "string", "pattern": "a" * 10_000},
    "repeating pattern": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "pattern that looks around": {"type": "string", "pattern": "(?=a)b"},
    "bad pattern": {"type": "string", "pattern": "["},
    "divisors without a small multiple": {"allOf": [{"multipleOf": n} for n in (9973, 9967, 9949)]},
    "no divisor": {"type": "integer", "multipleOf": 0},
    "unknown type": {"type": "text"},
    "not a schema": {"properties": {"a": 5}},
    "no choice": {"enum": []},
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["response_format", "tools"])
def test_a_hostile_schema_is_refused_before_it_is_worked_on(model: Model, name: str, place: str) -> None:
    schema = HOSTILE[name]
    body: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    body["tool_choice"] = "required"
    if place == "response_format":
        body = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    # What is worked on for long ends at its deadline, in another error.
    with pytest.raises(InvalidRequest):
        model.chat(max_tokens=30, seed=1, **body)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^" + ".?" * 250 + "x$"},
        {"type": "string", "pattern": "^(((((a*)*)*)*)*)*b$"},
        {"type": "array", "minItems": 2000, "maxItems": 2000, "items": {"type": "string", "minLength": 2000}},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}},
        {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}},
    ],
)
def test_an_ambiguous_schema_does_not_stall_the_model(model: Model, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    # A stall would end both calls at their deadlines.
    with suppress(InvalidRequest):
        model.chat(response_format=form)
    model.chat(max_tokens=1)


LONG = {"messages": HI, "max_tokens": 450, "ignore_eos": True}


async def running(engine: Engine | None, count: int) -> None:
    """Wait until this many generations run, 20 s at most."""
    assert engine is not None
    for _ in range(4000):
        if engine.running == count:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{engine.running} generations run, not {count}")


@asynccontextmanager
async def busy(model: Model, stream: bool, count: int = SLOTS) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """All slots filled with long generations."""
    tasks = [asyncio.create_task(model.read("chat", {**LONG, "stream": stream})) for _ in range(count)]
    engine = model.stage._engine
    assert engine is not None
    try:
        await running(engine, min(count, SLOTS))
        await asyncio.sleep(0.15)
        assert engine.running == min(count, SLOTS)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_with_many_choices_lets_others_have_a_turn(model: Model, stream: bool) -> None:
    async def main() -> None:
        many = {**LONG, "max_tokens": 15, "n": 5 * SLOTS, "stream": stream}
        slow = asyncio.create_task(model.read("chat", many))
        await running(model.stage._engine, SLOTS)
        await model.read("chat", {"messages": HI, "max_tokens": 1})
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    model.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_cancelled_calls_give_their_slots_back(model: Model, stream: bool) -> None:
    async def main() -> None:
        async with busy(model, stream) as tasks:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await running(model.stage._engine, 0)
            await model.read("chat", {"messages": HI, "max_tokens": 1})

    model.run(main())


def test_a_stream_that_is_closed_gives_its_slot_back(model: Model) -> None:
    async def main() -> None:
        engine = model.stage._engine
        assert engine is not None
        for iterate in (True, False):
            reply = await model.call("chat", {**LONG, "stream": True})
            if iterate:
                async for _ in reply:
                    break
            assert engine.running == 1
            await reply.aclose()
            await running(engine, 0)

    model.run(main())


def test_a_prompt_is_given_up_while_it_is_read(model: Model) -> None:
    async def main() -> None:
        body = {"prompt": "word " * 480, "max_tokens": 1, "cache_prompt": False}
        tasks = [asyncio.create_task(model.read("completion", body)) for _ in range(SLOTS)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await running(model.stage._engine, 0)

    model.run(main())


def test_a_waiting_call_is_bounded_by_its_deadline_and_can_be_cancelled(model: Model) -> None:
    async def main() -> None:
        async with busy(model, stream=False):
            with pytest.raises(DeadlineExceeded):
                await model.call("chat", {"messages": HI, "max_tokens": 1}, seconds=0.1)
            waiting = asyncio.create_task(model.call("chat", {"messages": HI, "max_tokens": 1}))
            await asyncio.sleep(0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    model.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_stops_at_its_deadline(model: Model, stream: bool) -> None:
    async def drain(seconds: float) -> None:
        async for _ in await model.call("chat", {**LONG, "stream": stream}, seconds=seconds):
            pass

    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await drain(0.3)
        await running(model.stage._engine, 0)

    model.run(main())


def test_a_full_queue_refuses(model: Model) -> None:
    async def main() -> None:
        async with busy(model, stream=False, count=SLOTS + 64):
            with pytest.raises(Overloaded):
                await model.call("chat", {"messages": HI})

    model.run(main())


def test_concurrent_calls_get_each_their_own_answer(model: Model) -> None:
    async def one(number: int) -> None:
        schema = {"type": "object", "properties": {"n": {"const": number}}, "required": ["n"]}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        body = {"messages": HI, "max_tokens": 20, "response_format": form, "stream": number % 2 == 0}
        _, content = await model.read("chat", body)
        found = sse.assemble(content) if number % 2 == 0 else orjson.loads(content)
        assert f'"n": {number}' in found["choices"][0]["message"]["content"]

    async def main() -> None:
        await asyncio.gather(*(one(100 + number) for number in range(3 * SLOTS)))

    model.run(main())


def test_a_call_to_a_closed_stage_is_refused() -> None:
    async def main() -> None:
        stage = LlamaCpp(LlamaCpp.Config())
        await stage.close()
        call = Call(id="c", operation="chat", body={"messages": HI}, deadline=1e9, received=0)
        with pytest.raises(APIError, match="not loaded"):
            await stage(call)

    asyncio.run(main())


def test_a_model_that_is_not_there_or_damaged_fails_to_open(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\0" * 100)

    async def main(reference: str) -> None:
        stage = LlamaCpp(LlamaCpp.Config(model=reference))
        try:
            await stage.open()
        finally:
            await stage.close()

    for reference in ("package:no-such-package", str(tmp_path / "none.gguf"), str(damaged)):
        with pytest.raises(ConfigError):
            asyncio.run(main(reference))


def test_threads_keep_to_the_containers_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "QUOTA", tmp_path / "cpu.max")
    own = llamacpp._cores()
    assert own >= 1
    for quota, cores in (("100000 100000", 1), ("20000 100000", 1), ("99900000 100000", own), ("max 1", own)):
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert llamacpp._cores() == cores


def test_config_has_bounds() -> None:
    for wrong in ({"slots": 0}, {"context": 1}, {"threads": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            LlamaCpp.Config(**wrong)  # type: ignore[arg-type]


SCRIPT = """
import asyncio, sys, time
from pipeline import Call
from pipeline_plugins.infer.llamacpp import LlamaCpp
assert "xllamacpp" not in sys.modules
async def main():
    stage = LlamaCpp(LlamaCpp.Config(slots=2, context=256, threads=1))
    await stage.open()
    loop = asyncio.get_running_loop()
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "ignore_eos": True}
    call = Call(id="c", operation="chat", body=body, deadline=loop.time() + 60, received=0)
    task = asyncio.create_task(stage(call))
    await asyncio.sleep(0.2)
    if sys.argv[1] == "close":
        await stage.close()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert type(error).__name__ == "Overloaded", error
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["close", "leave"])
def test_the_interpreter_exits_cleanly_and_silently(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

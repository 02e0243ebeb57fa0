"""The torch backend: tiny models with random weights, and the packaged one for real.

Tiny models know 256 byte tokens, so that what they say is easily compared, and are in
float32, so that batching changes nothing but the last bits.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from pipeline_plugins.infer import transformers_load  # noqa: E402
from pipeline_plugins.infer.transformers import Transformers  # noqa: E402
from pipeline_plugins.infer.transformers_output import ToolCalls  # noqa: E402
from pipeline_plugins.infer.transformers_request import Sampling  # noqa: E402
from pipeline_plugins.infer.transformers_sampling import Sampler, choose  # noqa: E402
from pipeline_plugins.infer.transformers_text import Decoder, Holder, token_bytes  # noqa: E402

from pipeline import Call, Reply  # noqa: E402
from pipeline.errors import (  # noqa: E402
    ContextTooLong,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from pipeline.problems import ConfigError  # noqa: E402
from pipeline.wire import sse  # noqa: E402

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": 257,
    "bos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.5,
}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = transformers_text_alphabet()
    core = Tokenizer(models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def transformers_text_alphabet() -> dict[int, str]:
    from pipeline_plugins.infer.transformers_text import _byte_alphabet

    return _byte_alphabet()


def tiny(kind: str) -> Any:
    torch.manual_seed(7)
    if kind == "llama":
        config = hf.LlamaConfig(**SIZES)
    elif kind == "mistral":
        config = hf.MistralConfig(**SIZES, sliding_window=24)
    elif kind == "qwen2":
        config = hf.Qwen2Config(**SIZES)
    elif kind == "gemma3":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        config = hf.Gemma3TextConfig(**SIZES, sliding_window=24, layer_types=layers)
    else:
        config = hf.GPT2Config(
            vocab_size=300,
            n_positions=512,
            n_embd=64,
            n_layer=3,
            n_head=4,
            eos_token_id=257,
            bos_token_id=None,
        )
    return hf.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            tiny(kind).save_pretrained(made[kind])
            tokenizer().save_pretrained(made[kind])
        return made[kind]

    return folder


class Open:
    """An open stage and the loop it lives on, asked from synchronous tests."""

    def __init__(self, **config: Any) -> None:
        self.runner = asyncio.Runner()
        self.stage = Transformers(Transformers.Config(**config))
        self.runner.run(self.stage.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))

    def close(self) -> None:
        self.runner.run(self.stage.close())
        self.runner.close()

    async def call(self, operation: str = "completion", seconds: float = 30, **body: Any) -> Reply:
        given = {"messages": [{"role": "user", "content": "hi"}]} if operation == "chat" else {"prompt": "ab"}
        deadline = asyncio.get_running_loop().time() + seconds
        return await self.stage(
            Call(
                id="c",
                operation=operation,
                body={**given, "max_tokens": 8, **body},
                deadline=deadline,
                received=time.perf_counter(),
            )
        )

    def ask(self, operation: str = "completion", **body: Any) -> dict[str, Any]:
        reply = self.run(self.call(operation, **body))
        assert reply.usage is not None
        assert reply.json["usage"] == reply.usage.as_dict()
        return reply.json

    def text(self, **body: Any) -> str:
        return str(self.ask(**body)["choices"][0]["text"])

    def stream(self, operation: str = "completion", **body: Any) -> list[dict[str, Any]]:
        async def read() -> bytes:
            reply = await self.call(operation, stream=True, **body)
            content = b"".join([chunk async for chunk in reply])
            assert reply.usage is not None
            assert reply.usage.completion_tokens > 0
            return content

        blocks = sse.Splitter().feed(self.run(read()))
        assert blocks.pop() == b"data: [DONE]"
        return [orjson.loads(sse.data_of(block) or b"") for block in blocks]


@pytest.fixture(scope="module")
def model(folders: Any) -> Iterator[Open]:
    opened = Open(
        model=str(folders("llama")),
        name="tiny",
        aliases=["small"],
        slots=4,
        context=512,
        queue=16,
        dtype="float32",
        device="cpu",
        threads=1,
    )
    yield opened
    opened.close()


def greedy(folder: Path, prompt: bytes, count: int) -> list[int]:
    """What transformers' own `generate` says: the reference."""
    reference = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([list(prompt)])
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=257
    )
    return [token for token in out[0, len(prompt) :].tolist() if token != 257]


def tokens_of(choice: dict[str, Any]) -> list[int]:
    return [token["bytes"][0] for token in choice["logprobs"]["content"] if token["bytes"]]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma3", "gpt2"])
def test_sequences_that_join_and_leave_get_what_generate_gives_each_alone(folders: Any, kind: str) -> None:
    opened = Open(model=str(folders(kind)), slots=3, context=400, dtype="float32", device="cpu", threads=1)
    dice = random.Random(kind)
    prompts = [bytes(dice.choices(range(97, 123), k=size)) for size in (1, 5, 40, 150, 3, 300, 17)]
    lengths = [40, 3, 70, 20, 90, 12, 1]

    async def ask(prompt: bytes, length: int, pause: float) -> str:
        await asyncio.sleep(pause)
        reply = await opened.call(
            prompt=list(prompt), max_tokens=length, temperature=0, logit_bias=ascii_only()
        )
        return str(reply.json["choices"][0]["text"])

    async def everyone() -> list[str]:
        pairs = zip(prompts, lengths, strict=True)
        return await asyncio.gather(*[ask(p, n, 0.004 * i) for i, (p, n) in enumerate(pairs)])

    try:
        found = opened.run(everyone())
    finally:
        opened.close()
    for prompt, length, text in zip(prompts, lengths, found, strict=True):
        assert text == reference_text(folders(kind), prompt, length)


def ascii_only() -> dict[str, float]:
    """A bias that leaves letters only, so that tokens can be read off the text."""
    return {str(id): -100 for id in range(300) if not 97 <= id < 123}


def reference_text(folder: Path, prompt: bytes, count: int) -> str:
    """The same choice of tokens by the plain model, all tokens read anew for each."""
    reference = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(prompt)
    with torch.inference_mode():
        past, given = None, ids
        for _ in range(count):
            out = reference(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            given = [97 + int(out.logits[0, -1, 97:123].argmax())]
            ids += given
    return bytes(ids[len(prompt) :]).decode()


def test_greedy_tokens_are_those_of_generate(model: Open, folders: Any) -> None:
    choice = model.ask(prompt="hello", temperature=0, max_tokens=30, logprobs=0)["choices"][0]
    assert len(choice["logprobs"]["tokens"]) <= 30
    said = bytes(token for token in greedy(folders("llama"), b"hello", 30) if token < 256)
    assert choice["text"] == said.decode("utf-8", "replace").rstrip("\ufffd")


def test_a_chat_has_openais_form(model: Open) -> None:
    reply = model.ask("chat", logprobs=True, top_logprobs=3, max_tokens=5, temperature=0)
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "tiny"
    choice = reply["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    assert choice["finish_reason"] in ("stop", "length")
    for entry in choice["logprobs"]["content"]:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
    assert reply["usage"]["prompt_tokens"] == len("user\nhi\nassistant\n") + 3


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": "one two"}]}),
        ("completion", {"prompt": ["ab", "c"]}),
    ],
)
def test_it_counts_a_prompt_as_its_reply_will(model: Open, operation: str, body: dict[str, Any]) -> None:
    given = Call(id="c", operation=operation, body={**body, "max_tokens": 1}, deadline=1e9, received=0)
    (served,) = model.stage.models
    assert served.count is not None
    assert served.count(given) == model.ask(operation, **body)["usage"]["prompt_tokens"]


def test_a_stream_says_what_the_whole_reply_says(model: Open) -> None:
    for operation in ("chat", "completion"):
        body: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "n": 2}
        whole = model.ask(operation, **body)
        events = model.stream(operation, **body, stream_options={"include_usage": True})
        assert events[-1]["usage"] == whole["usage"]
        assert events[-1]["choices"] == []
        for index in (0, 1):
            parts = [c for e in events for c in e["choices"] if c["index"] == index]
            expected = whole["choices"][index]
            if operation == "chat":
                assert parts[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
                text = "".join(part["delta"].get("content", "") for part in parts)
                assert text == expected["message"]["content"]
            else:
                assert "".join(part["text"] for part in parts) == expected["text"]
            assert parts[-1]["finish_reason"] == expected["finish_reason"]


def test_streamed_text_is_whole_characters_and_streamed_logprobs_are_complete(model: Open) -> None:
    body: dict[str, Any] = {"prompt": "é", "seed": 5, "max_tokens": 60, "logprobs": 1, "ignore_eos": True}
    whole = model.ask(**body)["choices"][0]
    parts = [event["choices"][0] for event in model.stream(**body)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    tokens = [t for part in parts if part["logprobs"] for t in part["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]
    assert len(tokens) == 60


def test_a_seed_repeats_an_answer_and_choices_differ(model: Open) -> None:
    first = model.ask(prompt="x", n=3, seed=11, max_tokens=20)
    again = model.ask(prompt="x", n=3, seed=11, max_tokens=20)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    assert model.text(prompt="x", seed=12, max_tokens=20) != texts[0]
    assert first["usage"]["prompt_tokens"] == 1


def test_several_prompts_come_back_in_order(model: Open) -> None:
    bias = ascii_only()
    one = [model.text(prompt=p, temperature=0, logit_bias=bias) for p in ("aaa", "bbb")]
    both = model.ask(prompt=["aaa", "bbb"], n=2, temperature=0, logit_bias=bias)
    assert [c["text"] for c in both["choices"]] == [one[0], one[0], one[1], one[1]]
    assert [c["index"] for c in both["choices"]] == [0, 1, 2, 3]
    assert both["usage"]["prompt_tokens"] == 6


def test_a_stop_text_ends_the_answer_wherever_tokens_are_cut(model: Open) -> None:
    bias = ascii_only()
    text = model.text(temperature=0, max_tokens=40, logit_bias=bias)
    stop = text[10:14]
    at = text.index(stop)
    reply = model.ask(temperature=0, max_tokens=40, logit_bias=bias, stop=["zzzzzzzz", stop], logprobs=0)
    choice = reply["choices"][0]
    assert choice["text"] == text[:at]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == at
    assert reply["usage"]["completion_tokens"] == at + 4
    streamed = model.stream(temperature=0, max_tokens=40, logit_bias=bias, stop=stop)
    assert "".join(event["choices"][0]["text"] for event in streamed) == text[:at]


def test_the_models_own_end_is_a_stop_and_a_limit_is_a_length(model: Open) -> None:
    ended = model.ask(logit_bias={"257": 100}, max_tokens=5)
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")
    assert ended["usage"]["completion_tokens"] == 1
    limited = model.ask(logit_bias={"97": 100}, max_completion_tokens=3)
    assert (limited["choices"][0]["text"], limited["choices"][0]["finish_reason"]) == ("aaa", "length")
    assert (
        model.ask(logit_bias={"257": 100}, ignore_eos=True, max_tokens=3)["usage"]["completion_tokens"] == 3
    )


def test_penalties_keep_a_token_from_being_said_again(model: Open) -> None:
    bias = {"97": 100, "98": 99.5}
    assert model.text(logit_bias=bias, temperature=0, max_tokens=4).startswith("a")
    said = model.text(logit_bias={"97": 100, "98": 100}, temperature=0, max_tokens=6, frequency_penalty=2)
    assert set(said) == {"a", "b"}


def test_an_answer_ends_where_the_context_does(model: Open) -> None:
    reply = model.ask(prompt=[97] * 506, max_tokens=100, logit_bias={"97": 100})
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] == 512


def test_a_prompt_that_is_too_long_is_refused_with_its_count(model: Open) -> None:
    with pytest.raises(ContextTooLong, match="512 tokens, and the prompt has 512"):
        model.ask(prompt=[97] * 512)
    with pytest.raises(ContextTooLong) as caught:
        model.ask("chat", messages=[{"role": "user", "content": "word " * 120}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("operation", "body", "error", "param"),
    [
        ("completion", {"model": "gpt-4"}, ModelNotFound, "model"),
        ("embedding", {}, InvalidRequest, "model"),
        ("completion", {"prompt": [300]}, InvalidRequest, "prompt"),
        ("completion", {"prompt": ""}, InvalidRequest, "prompt"),
        ("completion", {"suffix": "x"}, InvalidRequest, "suffix"),
        ("completion", {"top_k": -1}, InvalidRequest, "top_k"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, InvalidRequest, None),
    ],
)
def test_what_it_can_not_do_is_refused(
    model: Open, operation: str, body: dict[str, Any], error: type[Exception], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        model.ask(operation, **body)
    assert param is None or caught.value.param == param  # type: ignore[attr-defined]


def test_all_its_names_are_answered(model: Open) -> None:
    for name in ("tiny", "small", "default", "auto"):
        model.ask(model=name)


def idle(model: Open) -> bool:
    engine = model.stage._engine
    assert engine is not None
    return engine.running == 0 and not engine._waiting and engine._reading is None


async def until_running(model: Open) -> None:
    engine = model.stage._engine
    assert engine is not None
    while engine.running == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def until_idle(model: Open, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not idle(model):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("way", ["cancel", "close", "close unread"])
def test_a_call_that_nobody_waits_for_frees_its_rows(model: Open, way: str) -> None:
    async def leave() -> None:
        body: dict[str, Any] = {"n": 4, "max_tokens": 250, "logit_bias": {"97": 100}}
        if way == "cancel":
            task = asyncio.create_task(model.call(**body))
            await until_running(model)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        else:
            reply = await model.call(stream=True, **body)
            if way == "close":
                await anext(aiter(reply))
            assert not idle(model)
            await reply.aclose()
        await until_idle(model, 1)

    model.run(leave())
    assert model.text(max_tokens=2, logit_bias={"97": 100}) == "aa"


def test_a_deadline_ends_an_answer_and_a_wait(model: Open) -> None:
    async def late() -> None:
        long = {"max_tokens": 250, "logit_bias": {"97": 100}}
        others = [asyncio.create_task(model.call(**long)) for _ in range(4)]
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineExceeded):
            await model.call(seconds=0.05, **long)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        with pytest.raises(DeadlineExceeded):
            await model.call(seconds=-1)
        await until_idle(model)

    model.run(late())


def test_more_than_the_queue_holds_is_turned_away(model: Open) -> None:
    async def crowd() -> list[Any]:
        calls = [model.call(max_tokens=30, logit_bias={"97": 100}, n=4) for _ in range(12)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = model.run(crowd())
    refused = [result for result in results if isinstance(result, Overloaded)]
    answered = [result for result in results if isinstance(result, Reply)]
    assert refused
    assert answered
    assert len(refused) + len(answered) == 12


def test_a_hundred_clients_get_their_own_answers_while_some_leave(model: Open, folders: Any) -> None:
    opened = Open(model=str(folders("llama")), slots=8, context=128, dtype="float32", device="cpu", threads=1)
    letters = [chr(97 + index % 26) for index in range(100)]

    async def client(index: int) -> str:
        bias = {str(ord(letters[index])): 100.0}
        reply = await opened.call(
            prompt=letters[index] * (1 + index % 7),
            max_tokens=3 + index % 9,
            logit_bias=bias,
            stream=index % 2 == 0,
        )
        if index % 10 == 0:
            await reply.aclose()
            return ""
        if not reply.streaming:
            return str(reply.json["choices"][0]["text"])
        events = [event async for event in sse.events(reply)]
        return "".join(event["choices"][0]["text"] for event in events)

    async def everyone() -> list[str]:
        found = await asyncio.gather(*[client(index) for index in range(100)])
        await until_idle(opened)
        return found

    try:
        for index, text in enumerate(opened.run(everyone())):
            assert text == ("" if index % 10 == 0 else letters[index] * (3 + index % 9))
    finally:
        opened.close()


def test_a_failure_of_the_model_fails_the_calls_and_not_the_stage(
    model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.stage._engine._network, "read", broken)  # type: ignore[union-attr]
        with pytest.raises(InternalError, match="RuntimeError"):
            model.ask()
    assert model.text(max_tokens=1, logit_bias={"97": 100}) == "a"


def test_closing_ends_what_runs_and_leaves_no_thread(folders: Any) -> None:
    before = set(threading.enumerate())
    opened = Open(model=str(folders("llama")), slots=2, context=512, dtype="float32", device="cpu")

    async def run() -> None:
        task = asyncio.create_task(opened.call(max_tokens=400, logit_bias={"97": 100}))
        await until_running(opened)
        await opened.stage.close()
        with pytest.raises(Overloaded):
            await task
        with pytest.raises(Overloaded):
            await opened.call()

    opened.run(run())
    opened.close()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("transformers")]
    assert left == []


def test_a_grammar_holds_the_answer_to_its_schema(model: Open) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["kind", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}
    reply = model.ask("chat", response_format=form, max_tokens=60, n=2)
    for choice in reply["choices"]:
        pet = json.loads(choice["message"]["content"])
        assert pet["kind"] in ("cat", "dog")
        assert 0 <= pet["age"] <= 9
        assert choice["finish_reason"] == "stop"
    (cut,) = model.ask("chat", response_format=form, max_tokens=3)["choices"]
    assert cut["finish_reason"] == "length"
    assert '{"kind": "'.startswith(cut["message"]["content"])


TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["x", "y"]}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}


def test_a_tool_that_must_be_called_is_called(model: Open) -> None:
    pytest.importorskip("llguidance")
    body: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 100}
    choice = model.ask("chat", **body)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "look_up"
    assert json.loads(call["function"]["arguments"])["word"] in ("x", "y")
    assert choice["finish_reason"] == "tool_calls"
    events = model.stream("chat", **body)
    deltas = [c["delta"] for e in events for c in e["choices"] if "tool_calls" in c["delta"]]
    assert deltas[0]["tool_calls"][0]["function"]["name"] == "look_up"


def test_without_llguidance_a_schema_is_refused_by_name(model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequest, match="pip install llguidance") as caught:
        model.ask("chat", response_format={"type": "json_object"})
    assert caught.value.param == "response_format"
    with pytest.raises(InvalidRequest) as caught:
        model.ask("chat", tools=[TOOL], tool_choice="required")
    assert caught.value.param == "tool_choice"


def test_calls_of_tools_are_taken_out_of_the_text_however_it_is_cut() -> None:
    text = (
        'Sure.<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>{"name": "b"}</tool_call> done <tool_call>not json</tool_call>'
    )
    for size in (1, 2, 7, 50, len(text)):
        taken, shown = ToolCalls(), ""
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        for index, part in enumerate(parts):
            shown += taken.feed(part, last=index == len(parts) - 1)[0]
        assert shown == "Sure.\n done <tool_call>not json</tool_call>"
        assert [call["function"] for call in taken.found] == [
            {"name": "a", "arguments": '{"x":1}'},
            {"name": "b", "arguments": "{}"},
        ]


def test_a_call_without_its_end_counts_when_it_is_whole() -> None:
    taken = ToolCalls()
    assert taken.feed('<tool_call>{"name": "a"}', last=True)[0] == ""
    assert taken.found[0]["function"]["name"] == "a"
    assert ToolCalls().feed("a <tool_", last=True)[0] == "a <tool_"


def test_text_is_decoded_in_whole_characters() -> None:
    text = "naïve 日本語 😀 end"
    decoder = Decoder(lambda ids: bytes(ids).decode("utf-8", "replace"))
    pieces = [decoder.feed(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    for byte in "😀".encode()[:3]:
        assert decoder.feed(byte) == ""
    assert decoder.finish() == ""


def test_bytes_that_are_no_text_do_not_hold_back_the_rest_for_ever() -> None:
    decoder = Decoder(lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert "ok" in "".join(decoder.feed(byte) for byte in b"\xff" * 20 + b"ok")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_marks_are_found_across_parts_and_what_may_begin_one_is_held_back(size: int) -> None:
    text = "aab abac abab END"
    holder, passed, found = Holder(["abab", "zz"]), "", None
    for start in range(0, len(text), size):
        part, found = holder.feed(text[start : start + size])
        passed += part
        if found:
            break
    assert (passed, found) == ("aab abac ", "abab")
    holder = Holder(["abc"])
    assert holder.feed("xab") == ("x", None)
    assert holder.finish() == "ab"


def test_the_bytes_of_tokens_are_told() -> None:
    of = token_bytes(tokenizer())
    assert [of(id) for id in (0, 32, 97, 195, 257)] == [b"\0", b" ", b"a", b"\xc3", b"<|im_end|>"]


def draws(settings: Sampling, logits: list[float], count: int = 400) -> set[int]:
    sampler = Sampler(settings)
    return {choose(torch.tensor([logits]), [sampler])[0].token for _ in range(count)}


LOGITS = [3.0, 2.0, 1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Sampling(temperature=0), {0}),
        (Sampling(temperature=1, seed=1), {0, 1, 2, 3, 4}),
        (Sampling(temperature=0.01, seed=1), {0}),
        (Sampling(temperature=2, top_k=2, seed=1), {0, 1}),
        (Sampling(temperature=1, top_p=0.7, seed=1), {0, 1}),
        (Sampling(temperature=1, top_p=0, seed=1), {0}),
        (Sampling(temperature=2, min_p=0.3, seed=1), {0, 1, 2}),
        (Sampling(temperature=0, bias={4: 100.0, 9999: 1.0}), {4}),
    ],
)
def test_settings_decide_what_can_be_chosen(settings: Sampling, expected: set[int]) -> None:
    assert draws(settings, LOGITS) == expected


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1, seed=3))
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    drawn = [choose(logits.clone(), [sampler])[0].token for _ in range(4000)]
    shares = [drawn.count(token) / 4000 for token in range(3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_top_p_looks_further_where_the_likeliest_do_not_suffice() -> None:
    sampler = Sampler(Sampling(temperature=1, top_p=0.999, seed=3))
    drawn = {choose(torch.zeros(1, 4000), [sampler])[0].token for _ in range(300)}
    assert max(drawn) > 600


def test_rows_are_sampled_each_by_its_own_settings_and_dice() -> None:
    settings = [Sampling(temperature=0), Sampling(seed=4), Sampling(seed=4, top_k=3), Sampling(seed=4)]
    rows = [Sampler(one) for one in settings]
    alone = Sampler(Sampling(seed=4))
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        together = [chosen.token for chosen in choose(logits.clone(), rows)]
        assert together[0] == int(logits[0].argmax())
        assert together[1] == choose(logits[1:2].clone(), [alone])[0].token
        assert together[2] in logits[2].topk(3).indices.tolist()


def test_logprobs_are_of_the_model_and_not_of_the_settings() -> None:
    row = Sampler(Sampling(temperature=0, bias={3: 50.0}, logprobs=2))
    chosen = choose(torch.tensor([LOGITS]), [row])[0]
    expected = torch.log_softmax(torch.tensor(LOGITS), -1)
    assert chosen.token == 3
    assert chosen.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in chosen.top] == [0, 1]


class TestConversion:
    """A GGUF is converted once; what its conversion gives is a tiny model here."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        self.made = 0

        def convert(path: Path) -> tuple[Any, Any]:
            self.made += 1
            return tiny("llama"), tokenizer()

        monkeypatch.setattr(transformers_load, "_convert", convert)
        file = tmp_path / "some.gguf"
        file.write_bytes(b"GGUF")
        return file

    def get(self, path: Path, cache: str = "cache") -> Any:
        model, _ = transformers_load._from_gguf(path, torch.float32, path.parent / cache)
        return model

    def test_it_is_made_once_and_reused(self, path: Path) -> None:
        first, second = self.get(path), self.get(path)
        assert self.made == 1
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert len(list((path.parent / "cache").iterdir())) == 1
        path.write_bytes(b"GGUF of another model")
        self.get(path)
        assert self.made == 2

    @pytest.mark.parametrize("damage", ["cut", "gone", "header"])
    def test_a_damaged_one_is_made_anew(self, path: Path, damage: str) -> None:
        self.get(path)
        (weights,) = (path.parent / "cache").glob("*/model.safetensors")
        content = weights.read_bytes()
        weights.unlink()
        if damage != "gone":
            weights.write_bytes(content[:-1] if damage == "cut" else b"\xff" * 16 + content[16:])
        self.get(path)
        assert self.made == 2
        assert weights.read_bytes() == content

    def test_without_a_writable_cache_it_is_used_all_the_same(self, path: Path) -> None:
        (path.parent / "file").write_text("")
        assert self.get(path, "file/below").device.type == "cpu"
        assert self.made == 1


def refusal(**config: Any) -> str:
    async def open() -> None:
        stage = Transformers(Transformers.Config(**config))
        try:
            await stage.open()
        finally:
            await stage.close()

    with pytest.raises(ConfigError) as caught:
        asyncio.run(open())
    return str(caught.value)


def test_a_model_that_is_not_there_or_not_usable_is_said(tmp_path: Path, folders: Any) -> None:
    assert "there is no file `./nowhere`" in refusal(model="./nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert "holds no .safetensors file" in refusal(model=str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "can't load" in refusal(model=str(tmp_path))


def test_a_device_that_is_not_there_is_said_with_those_that_are(folders: Any) -> None:
    if not torch.cuda.is_available():
        assert "There is `cpu`" in refusal(model=str(folders("llama")), device="cuda:1")


def test_a_model_with_other_state_is_refused(tmp_path: Path) -> None:
    config = hf.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, eos_token_id=257)
    hf.MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "batched here" in refusal(model=str(tmp_path), device="cpu", dtype="float32")


def test_a_folder_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    refusal(model=str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [{"slots": 0}, {"device": "tpu"}, {"dtype": "int4"}, {"trust_remote_code": True}, {"context": 1}],
)
def test_the_config_is_bounded(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Transformers.Config(**config)


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline_plugins.infer.transformers; "
        "print(sorted({'torch', 'transformers', 'numpy', 'jinja2'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_packaged_model_answers() -> None:
    pytest.importorskip("gguf")
    opened = Open(slots=2, context=512)
    try:
        assert opened.stage.name == "SmolLM2-135M-Instruct"
        question = [{"role": "user", "content": "What is the capital of France?"}]
        reply = opened.ask("chat", messages=question, temperature=0, max_tokens=20)
        assert "Paris" in reply["choices"][0]["message"]["content"]
        assert reply["choices"][0]["finish_reason"] == "stop"
    finally:
        opened.close()

"""What each check costs per KB of text, and what the stage around it adds to a call and a chunk."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import jiter
import pytest
from pipeline_plugins.validate.finding import Subject, Text
from pipeline_plugins.validate.groundedness import Groundedness
from pipeline_plugins.validate.injection import Injection
from pipeline_plugins.validate.json_follow import JSONFollower
from pipeline_plugins.validate.json_schema import JSONSchema
from pipeline_plugins.validate.language import Language
from pipeline_plugins.validate.length import Length
from pipeline_plugins.validate.pii import PII
from pipeline_plugins.validate.regex import Regex
from pipeline_plugins.validate.validator import Validator

from pipeline import Call, Edge, Record, Reply
from pipeline.kinds import Retrieved
from pipeline.wire import responses
from pipeline.wire.responses import Choice
from pipeline.wire.usage import Usage

SENTENCE = "The quick brown fox called +1 202 555 0143 at 9:30, then wrote to nobody about order 8123 again. "
PROSE = SENTENCE * 42
ROW = {"name": "Ann", "age": 3, "tags": ["a", "b"], "at": {"x": 1.5, "y": 2.25}}
ROWS = json.dumps([ROW] * 64)
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
            "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}

PATH = ("choices", 0, "message", "content")


def edge(text: str = "", pieces: int = 0) -> Edge:
    """A model that answers at once with this text, in so many pieces if streaming."""
    body = responses.chat_completion([Choice(text, "stop")], Usage(1, 1), model="m")
    stream = responses.Stream("chat", model="m")
    size = max(1, len(text) // max(pieces, 1))
    cut = [stream.text(text[at : at + size]) for at in range(0, len(text), size)]
    events = [stream.start(), *cut, stream.finish("stop"), stream.end(Usage(1, 1))]

    async def chunks() -> AsyncIterator[bytes]:
        for event in events:
            yield event

    async def answer(call: Call) -> Reply:
        return Reply(chunks=chunks()) if call.streaming else Reply.of(body)

    return Edge("validate", "next", "model", answer)


def call(text: str = "hi", **body: Any) -> Call:
    """A chat that says this."""
    return Call(
        id="1",
        operation="chat",
        body={"messages": [{"role": "user", "content": text}], **body},
        deadline=1e12,
        received=0,
    )


def least(work: Callable[[], Any], times: int) -> float:
    """CPU seconds of one run, the least of five goes."""

    def once() -> float:
        started = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - started) / times

    return min(once() for _ in range(5))


def checks() -> dict[str, tuple[Validator[Any], str, int]]:
    """Each check with a text that passes it, and how often to run it."""
    patterns = [r"\bsecret\b", r"(?:password|passwd)\s*[:=]\s*\S+", r"[A-Z]{5}-\d{7}"]
    return {
        "regex, 3 patterns": (Regex(Regex.Config(forbid=patterns), "x", edge()), PROSE, 20),
        "length": (Length(Length.Config(unit="words"), "x", edge()), PROSE, 100),
        "pii, 6 entities": (PII(PII.Config(), "x", edge()), PROSE, 2),
        "injection": (Injection(Injection.Config(), "x", edge()), PROSE, 10),
        "json_schema": (JSONSchema(JSONSchema.Config(form=SCHEMA), "x", edge()), ROWS, 50),
    }


@pytest.mark.parametrize(
    "name", ["regex, 3 patterns", "length", "pii, 6 entities", "injection", "json_schema"]
)
def test_check(benchmark: Any, note: Callable[..., None], name: str) -> None:
    check, text, times = checks()[name]
    subject = Subject("reply", call(), [Text(PATH, text, "assistant")])
    seconds = benchmark.pedantic(lambda: least(lambda: list(check.find(subject)), times), rounds=1)
    beside = ""
    if name == "json_schema":
        parse = least(lambda: jiter.from_json(text.encode()), times)
        beside = f"parsing alone: {parse / len(text) * 1024 * 1e6:.1f} µs"
    note(f"validate {name}, per KB", seconds / len(text) * 1024 * 1e6, "µs CPU", None, beside)


def test_language(benchmark: Any, note: Callable[..., None]) -> None:
    pytest.importorskip("lingua")
    check = Language(Language.Config(), "x", edge())
    subject = Subject("reply", call(), [Text(PATH, PROSE[:1024], "assistant")])
    list(check.find(subject))
    seconds = benchmark.pedantic(lambda: least(lambda: list(check.find(subject)), 3), rounds=1)
    note(
        "validate language, of 11, for the first KB",
        seconds * 1e6,
        "µs CPU",
        None,
        "the first 2,000 characters decide",
    )


def test_groundedness(benchmark: Any, note: Callable[..., None]) -> None:
    pytest.importorskip("onnxruntime")
    check = Groundedness(Groundedness.Config(), "x", edge())
    asyncio.run(check.open())
    record = Record()
    passages = tuple(f"Passage {i} says that {SENTENCE}" for i in range(5))
    record.decide(Retrieved("docs", 5, 0.0, passages))
    asked = call()
    asked.record = record
    text = " ".join(f"Claim {i} is that the quick brown fox wrote to nobody." for i in range(20))[:1024]
    subject = Subject("reply", asked, [Text(PATH, text, "assistant")])
    seconds = benchmark.pedantic(lambda: least(lambda: list(check.find(subject)), 1), rounds=1)
    note("validate groundedness, 1 KB against 5 passages", seconds * 1e3, "ms CPU", None, "in a thread")


def test_json_in_a_stream(benchmark: Any, note: Callable[..., None]) -> None:
    pieces = [ROWS[at : at + 4] for at in range(0, len(ROWS), 4)]

    def follow() -> None:
        follower = JSONFollower(SCHEMA)
        for piece in pieces:
            assert follower.feed(piece) is None

    seconds = benchmark.pedantic(lambda: least(follow, 5), rounds=1)
    note(
        "validate json_schema followed in a stream, per KB",
        seconds / len(ROWS) * 1024 * 1e6,
        "µs CPU",
        None,
        "4 characters at a time",
    )


def test_stage(benchmark: Any, note: Callable[..., None]) -> None:
    config = Length.Config()

    def through(stage: Any, streaming: bool) -> float:
        async def go() -> float:
            started = time.process_time()
            for _ in range(50 if streaming else 2000):
                reply = await stage(call(stream=streaming))
                async for _ in reply:
                    pass
            return (time.process_time() - started) / (50 if streaming else 2000)

        return min(asyncio.run(go()) for _ in range(5))

    text, pieces = "word " * 400, 400
    plain, bare = edge("fine"), edge(text, pieces)
    whole = through(Length(config, "x", plain), False) - through(plain, False)
    note("validate stage around both sides of a call", whole * 1e6, "µs CPU")
    streams = {}
    for policy in ("buffer", "window", "after"):
        stage = Regex(Regex.Config(forbid=["never"], side="reply", stream=policy), "x", bare)
        streams[policy] = (through(stage, True) - through(bare, True)) / pieces * 1e6
    benchmark.pedantic(lambda: None, rounds=1)
    beside = f"buffer: {streams['buffer']:.1f} µs, after: {streams['after']:.1f} µs"
    note("validate regex in a window, per streamed chunk", streams["window"], "µs CPU", None, beside)

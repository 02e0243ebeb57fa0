"""`infer=echo`: repeats what it is given. Not a model; for tests, demos and benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import struct
from collections.abc import AsyncIterator
from math import sqrt
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply, Usage
from pipeline.errors import InvalidRequest, ModelNotFound, Overloaded, RateLimited, UpstreamFailed
from pipeline.wire import responses
from pipeline.wire.responses import Choice

FINGERPRINT = "echo-not-a-model"

FAILURES = {429: RateLimited, 502: UpstreamFailed, 503: Overloaded}

WORDS = re.compile(r"\S+\s*")


class Echo:
    """Answers with the last message's own words, one token each. It is not a model.

    The same request always gets the same answer, the same wait and the same failure.
    """

    class Config(BaseModel):
        """How it answers."""

        model_config = ConfigDict(extra="forbid")

        name: str = Field("echo", min_length=1, max_length=256, description="Model name to answer to.")
        aliases: list[str] = Field(default_factory=list, description="Further names to answer to.")
        latency: float = Field(0.0, ge=0, le=600, description="Seconds before the first token.")
        tokens_per_second: float = Field(0.0, ge=0, le=1e6, description="Pace after it; 0 is at once.")
        failure_rate: float = Field(0.0, ge=0, le=1, description="Share of distinct requests that fail.")
        failure_status: Literal[429, 502, 503] = Field(503, description="HTTP status of those.")
        dimensions: int = Field(64, ge=1, le=4096, description="Length of an embedding.")

    def __init__(self, config: Config) -> None:
        self.config = config
        model = Model(
            id=config.name,
            operations=frozenset({"chat", "completion", "embedding"}),
            aliases=tuple(config.aliases),
            owned_by=FINGERPRINT,
        )
        self.models = (model,)
        self._names = {config.name, *config.aliases, *DEFAULT_NAMES}

    async def __call__(self, call: Call) -> Reply:
        """Echo the call. Raises `ModelNotFound` for a foreign name, and failures as configured."""
        config = self.config
        if call.model not in self._names:
            raise ModelNotFound(
                f"The model `{call.model}` does not exist; this is `{config.name}`.", param="model"
            )
        if config.failure_rate:
            self._fail_perhaps(call)
        if config.latency:
            await asyncio.sleep(config.latency)
        if call.operation == "embedding":
            return self._embed(call)
        answers, prompt_tokens = _answers(call)
        usage = Usage(prompt_tokens, sum(len(WORDS.findall(a.text or "")) for a in answers))
        if call.streaming:
            return Reply(chunks=self._stream(call, answers, usage), usage=usage, model=config.name)
        if config.tokens_per_second:
            await asyncio.sleep(usage.completion_tokens / config.tokens_per_second)
        build = responses.chat_completion if call.operation == "chat" else responses.completion
        body = build(answers, usage, model=config.name, fingerprint=FINGERPRINT)
        return Reply.of(body, usage=usage)

    def _fail_perhaps(self, call: Call) -> None:
        if random.Random(call.raw).random() < self.config.failure_rate:
            raise FAILURES[self.config.failure_status]("This failure was configured: `failure_rate`.")

    async def _stream(self, call: Call, answers: list[Choice], usage: Usage) -> AsyncIterator[bytes]:
        pause = 1 / self.config.tokens_per_second if self.config.tokens_per_second else 0.0
        options = call.body.get("stream_options") or {}
        stream = responses.Stream(
            call.operation,
            model=self.config.name,
            include_usage=options.get("include_usage") is True,
            fingerprint=FINGERPRINT,
        )
        for index, answer in enumerate(answers):
            if start := stream.start(index):
                yield start
            for word in WORDS.findall(answer.text or ""):
                if pause:
                    await asyncio.sleep(pause)
                yield stream.text(word, index)
            yield stream.finish(answer.finish_reason, index)
        yield stream.end(usage)

    def _embed(self, call: Call) -> Reply:
        given = call.body["input"]
        inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        vectors = [self._vector(one) for one in inputs]
        tokens = sum(len(one.split()) if isinstance(one, str) else len(one) for one in inputs)
        form = call.body.get("encoding_format")
        body = responses.embeddings(vectors, tokens, model=self.config.name, encoding_format=form)
        return Reply.of(body, usage=Usage(tokens))

    def _vector(self, text: Any) -> bytes:
        """A unit vector drawn from the text's hash: equal texts are equal, others unrelated."""
        drawn = random.Random(hashlib.sha256(orjson.dumps(text)).digest())
        values = [drawn.gauss(0, 1) for _ in range(self.config.dimensions)]
        length = sqrt(sum(v * v for v in values))
        return struct.pack(f"<{len(values)}f", *(v / length for v in values))


def _answers(call: Call) -> tuple[list[Choice], int]:
    """The choices of a chat or completion, and the prompt's tokens."""
    body = call.body
    if call.operation == "chat":
        texts = [
            responses.text_of(m.get("content"), f"messages[{i}].content")
            for i, m in enumerate(body["messages"])
        ]
        prompts = [texts[-1]]
        prompt_tokens = sum(len(text.split()) for text in texts)
    else:
        given = body["prompt"]
        prompts = [given] if isinstance(given, str) else given
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise InvalidRequest("This is not a model and has no token ids; give text.", param="prompt")
        prompt_tokens = sum(len(prompt.split()) for prompt in prompts)
    return [_answer(p, body) for p in prompts for _ in range(body.get("n") or 1)], prompt_tokens


def _answer(text: str, body: dict[str, Any]) -> Choice:
    form = (body.get("response_format") or {}).get("type")
    if form in ("json_object", "json_schema"):
        text = orjson.dumps({"echo": text}).decode()
    reason = "stop"
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.partition(stop)[0]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    words = WORDS.findall(text)
    if limit is not None and len(words) > limit:
        text, reason = "".join(words[:limit]).rstrip(), "length"
    return Choice(text, reason)

"""`infer=echo`: repeats what it is given. Not a model; for tests, demos and benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
import re
import struct
from collections.abc import AsyncIterator
from itertools import islice
from math import hypot
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Model, Reply, Usage
from pipeline.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    UpstreamFailed,
)
from pipeline.wire import responses
from pipeline.wire.responses import Choice

FINGERPRINT = "echo-not-a-model"

FAILURES = {429: RateLimited, 502: UpstreamFailed, 503: Overloaded}

MAX_CHOICES = 4096
MAX_TEXT = 64 * 1024 * 1024
"""Choices and characters of one answer: `n` copies of a long prompt add up."""

TURN = 64
"""Vectors made, or words sent without a pause, before other calls get their turn."""

WORDS = re.compile(r"\s*\S+\s*|\s+")


class Echo:
    """Answers with the last user message's own words, one token each. It is not a model.

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
        seed: int = Field(0, ge=0, lt=2**63, description="Picks which requests fail, and the embeddings.")
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
        """Echo the call.

        Raises `ModelNotFound` for a foreign name, `InvalidRequest` for what can't be echoed
        as text, `DeadlineExceeded`, and the failures that are configured.
        """
        config = self.config
        if call.model not in self._names:
            raise ModelNotFound(
                f"The model `{call.model[:256]}` does not exist; this is `{config.name}`.", param="model"
            )
        if config.failure_rate:
            self._fail_perhaps(call)
        if config.latency:
            await _pause(config.latency, call)
        if call.operation == "embedding":
            return await self._embed(call)
        answers, prompt_tokens = _answers(call)
        usage = Usage(prompt_tokens, sum(len((answer.text or "").split()) for answer in answers))
        if call.streaming:
            settled: list[Reply] = []
            reply = Reply(chunks=self._stream(call, answers, usage, settled), model=config.name)
            settled.append(reply)
            return reply
        if config.tokens_per_second:
            await _pause(usage.completion_tokens / config.tokens_per_second, call)
        build = responses.chat_completion if call.operation == "chat" else responses.completion
        body = build(answers, usage, model=config.name, fingerprint=FINGERPRINT)
        return Reply.of(body, usage=usage)

    def _fail_perhaps(self, call: Call) -> None:
        digest = hashlib.sha256(b"%d %b" % (self.config.seed, call.raw)).digest()
        if int.from_bytes(digest[:8], "big") < self.config.failure_rate * 2**64:
            raise FAILURES[self.config.failure_status]("This failure was configured: `failure_rate`.")

    async def _stream(
        self, call: Call, answers: list[Choice], usage: Usage, settled: list[Reply]
    ) -> AsyncIterator[bytes]:
        """The events; what was sent of them goes to the reply in `settled`, also if that is not all."""
        pause = 1 / self.config.tokens_per_second if self.config.tokens_per_second else 0.0
        options = call.body.get("stream_options") or {}
        stream = responses.Stream(
            call.operation,
            model=self.config.name,
            include_usage=options.get("include_usage") is True,
            fingerprint=FINGERPRINT,
        )
        sent = 0
        try:
            for index, answer in enumerate(answers):
                if start := stream.start(index):
                    yield start
                for found in WORDS.finditer(answer.text or ""):
                    sent += 1
                    if pause:
                        await _pause(pause, call)
                    elif sent % TURN == 0:
                        await asyncio.sleep(0)
                    yield stream.text(found[0], index)
                yield stream.finish(answer.finish_reason, index)
            sent = usage.completion_tokens
            yield stream.end(usage)
        finally:
            settled[0].usage = Usage(usage.prompt_tokens, min(sent, usage.completion_tokens))

    async def _embed(self, call: Call) -> Reply:
        given = call.body["input"]
        inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        length = call.body.get("dimensions") or self.config.dimensions
        if length > self.config.dimensions:
            raise InvalidRequest(
                f"`dimensions` may be {self.config.dimensions} at most, not {length}.", param="dimensions"
            )
        vectors = []
        for index, one in enumerate(inputs):
            vectors.append(self._vector(one, length))
            if index % TURN == TURN - 1:
                await asyncio.sleep(0)
        tokens = sum(len(one.split()) if isinstance(one, str) else len(one) for one in inputs)
        form = call.body.get("encoding_format")
        body = responses.embeddings(vectors, tokens, model=self.config.name, encoding_format=form)
        return Reply.of(body, usage=Usage(tokens))

    def _vector(self, text: Any, length: int) -> bytes:
        """A unit vector made of the text's hash: equal texts are equal, others unrelated."""
        seeded = b"%d %b" % (self.config.seed, orjson.dumps(text))
        values = struct.unpack(f"<{length}h", hashlib.shake_128(seeded).digest(2 * length))
        norm = hypot(*values) or 1.0
        return struct.pack(f"<{length}f", *(value / norm for value in values))


async def _pause(seconds: float, call: Call) -> None:
    """Sleep, but not past the call's deadline."""
    if seconds < call.remaining:
        await asyncio.sleep(seconds)
        return
    await asyncio.sleep(call.remaining)
    raise DeadlineExceeded("The call's deadline passed during a wait that was configured.")


def _answers(call: Call) -> tuple[list[Choice], int]:
    """The choices of a chat or completion, and the prompt's tokens."""
    body = call.body
    if call.operation == "chat":
        texts = [
            responses.text_of(m.get("content"), f"messages[{i}].content")
            for i, m in enumerate(body["messages"])
        ]
        said = [text for m, text in zip(body["messages"], texts, strict=True) if m.get("role") == "user"]
        prompts = [said[-1] if said else texts[-1]]
        prompt_tokens = sum(len(text.split()) for text in texts)
    else:
        given = body["prompt"]
        prompts = [given] if isinstance(given, str) else given
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise InvalidRequest("This is not a model and has no token ids; give text.", param="prompt")
        prompt_tokens = sum(len(prompt.split()) for prompt in prompts)
    n = body.get("n") or 1
    if n * len(prompts) > MAX_CHOICES or n * sum(map(len, prompts)) > MAX_TEXT:
        raise InvalidRequest(
            f"An answer has {MAX_CHOICES} choices and {MAX_TEXT} characters at most.", param="n"
        )
    return [answer for prompt in prompts for answer in [_answer(prompt, body)] * n], prompt_tokens


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
    if limit is not None and len(text) > limit:
        words = list(islice(WORDS.finditer(text), limit + 1))
        if len(words) > limit:
            text, reason = text[: words[limit].start()].rstrip(), "length"
    return Choice(text, reason)

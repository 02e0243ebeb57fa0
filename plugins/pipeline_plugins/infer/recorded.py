"""`infer=recorded`: a model whose answers are on record, for experiments that need none made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Model, Reply, Usage
from pipeline.errors import InvalidRequest, ModelNotFound
from pipeline.problems import ConfigError, Problem
from pipeline.stage import DEFAULT_NAMES
from pipeline.wire import responses
from pipeline_plugins.evaluate.example import DataError

FINGERPRINT = "recorded"


class Recorded:
    """Answers the last message with what a file says was answered to it; tokens are words.

    What caches, routers and checks do with a model's answers can be measured so without the
    model, and the same each time. A question that is not in the file is refused.
    """

    class Config(BaseModel):
        """Which record."""

        model_config = ConfigDict(extra="forbid")
        path: str = Field(..., min_length=1, description="JSONL, CSV or Parquet, as `data=file` reads it.")
        prompt: str = Field("prompt", min_length=1, description="Column of the question.")
        answer: str = Field("answer", min_length=1, description="Column of the answer.")
        name: str = Field("recorded", min_length=1, max_length=256, description="Model name to answer to.")
        latency: float = Field(0.0, ge=0, le=600, description="Seconds that an answer takes.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.models = (Model(config.name, frozenset({"chat"}), owned_by=FINGERPRINT),)
        self.files = (Path(config.path).expanduser(),)
        self._names = {config.name, *DEFAULT_NAMES}
        self._answers: dict[str, str] = {}

    async def open(self) -> None:
        """Read the record. Raises `ConfigError`."""
        self._answers = await asyncio.to_thread(self._read)

    def _read(self) -> dict[str, str]:
        from pipeline_plugins.data.file import File

        columns = {"prompt": self.config.prompt, "answer": self.config.answer}
        try:
            examples = File(File.Config(path=self.config.path, columns=columns)).read().examples
        except DataError as error:
            raise ConfigError([Problem("path", str(error))]) from None
        return {
            example.body["messages"][-1]["content"]: str(example.fields["answer"]) for example in examples
        }

    async def __call__(self, call: Call) -> Reply:
        """Answer a chat. Raises `ModelNotFound`, and `InvalidRequest` for what is not on record."""
        if call.model not in self._names:
            known = f"The model `{call.model[:256]}` does not exist; this is `{self.config.name}`."
            raise ModelNotFound(known, param="model")
        messages = call.body.get("messages") or [{}]
        said = [responses.text_of(m.get("content"), f"messages[{i}].content") for i, m in enumerate(messages)]
        answer = self._answers.get(said[-1])
        if answer is None:
            raise InvalidRequest("No answer to this is on record.", param="messages", code="not_recorded")
        if self.config.latency:
            await asyncio.sleep(self.config.latency)
        usage = Usage(sum(len(text.split()) for text in said), len(answer.split()))
        if call.streaming:
            return Reply(chunks=self._stream(call, answer, usage), usage=usage, model=self.config.name)
        choices = [responses.Choice(answer, "stop")]
        body = responses.chat_completion(choices, usage, model=self.config.name, fingerprint=FINGERPRINT)
        return Reply.of(body, usage=usage)

    async def _stream(self, call: Call, answer: str, usage: Usage) -> AsyncIterator[bytes]:
        options = call.body.get("stream_options") or {}
        wanted = options.get("include_usage") is True
        stream = responses.Stream("chat", model=self.config.name, include_usage=wanted)
        yield stream.start() + stream.text(answer) + stream.finish("stop") + stream.end(usage)

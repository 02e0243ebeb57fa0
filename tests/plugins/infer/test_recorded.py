"""`infer=recorded`: answers from a file, whole and streamed, and what it refuses."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.infer.recorded import Recorded

from pipeline import Call, Reply
from pipeline.errors import InvalidRequest, ModelNotFound
from pipeline.problems import ConfigError
from pipeline.wire import sse


def ask(path: Path, question: str, **body: Any) -> tuple[Reply, dict[str, Any] | None]:
    async def go() -> tuple[Reply, dict[str, Any] | None]:
        stage = Recorded(Recorded.Config(path=str(path)))
        await stage.open()
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": question}]
        call = Call(id="1", operation="chat", body={"messages": messages, **body}, deadline=1e12, received=0)
        reply = await stage(call)
        return reply, sse.assemble(
            b"".join([chunk async for chunk in reply])
        ) if reply.streaming else reply.json

    return asyncio.run(go())


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    path.write_text("prompt,answer\nWhere is it?,It is here.\n")
    return path


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_on_record_gets_its_answer(record: Path, stream: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply, body = ask(record, "Where is it?", **options)
    assert body is not None
    assert body["choices"][0]["message"]["content"] == "It is here."
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 3)
    assert body["usage"]["completion_tokens"] == 3


def test_what_is_not_on_record_and_other_models_are_refused(record: Path) -> None:
    with pytest.raises(InvalidRequest, match="on record"):
        ask(record, "Who is it?")
    with pytest.raises(ModelNotFound, match="this is `recorded`"):
        ask(record, "Where is it?", model="gpt-5")


def test_a_record_that_can_not_be_read_is_told_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ask(tmp_path / "none.csv", "Where is it?")
    (tmp_path / "a.csv").write_text("prompt,reply\na,b\n")
    with pytest.raises(ConfigError, match="there is no column `answer`"):
        ask(tmp_path / "a.csv", "a")

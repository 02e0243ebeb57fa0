"""Edges that answer as told, and calls to send along them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from pipeline import Call, Edge, Record, Reply, Usage
from pipeline.wire import responses
from pipeline.wire.responses import Choice


class Told:
    """A model that gives the answers of a list, one for each call; notes calls and closings.

    A stream is cut into pieces of `size` characters, or as `cut` says.
    """

    def __init__(
        self, *answers: str | Exception, size: int = 3, events: Sequence[bytes] | None = None
    ) -> None:
        self.answers = list(answers)
        self.size = size
        self.events = events
        self.calls: list[Call] = []
        self.sent = 0
        self.closed = 0

    def edge(self, name: str = "next") -> Edge:
        return Edge("validate", name, "model", self)

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        usage = Usage(1, len(answer.split()))
        if call.streaming:
            return Reply(chunks=self._stream(call, answer), usage=usage, model="told")
        build = responses.chat_completion if call.operation == "chat" else responses.completion
        return Reply.of(build([Choice(answer, "stop")], usage, model="told"), usage=usage)

    async def _stream(self, call: Call, answer: str) -> AsyncIterator[bytes]:
        stream = responses.Stream(call.operation, model="told")
        try:
            if self.events is not None:
                for event in self.events:
                    yield event
                return
            yield stream.start()
            for at in range(0, len(answer), self.size):
                self.sent += 1
                yield stream.text(answer[at : at + self.size], logprobs={"content": [{"token": "x"}]})
                await asyncio.sleep(0)
            yield stream.finish("stop")
            yield stream.end(Usage(1, 1))
        finally:
            self.closed += 1


def chat(text: str = "hi", *, operation: str = "chat", record: Record | None = None, **body: Any) -> Call:
    given: dict[str, Any]
    given = {"messages": [{"role": "user", "content": text}]} if operation == "chat" else {"prompt": text}
    return Call(
        id="req_1", operation=operation, body={**given, **body}, deadline=1e12, received=0, record=record
    )


async def read(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


def said(content: bytes) -> str:
    """The text of a reply's only choice, streamed or not."""
    from pipeline import End
    from pipeline.wire.sse import assemble

    whole = assemble(content) if content.startswith((b"data", b":")) else None
    if whole is None:
        whole = End("completed", 0, None, 0, None, None, (content,)).assembled()
    assert whole is not None
    choice = whole["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


Make = Callable[..., Any]

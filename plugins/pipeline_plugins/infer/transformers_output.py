"""From the engine's pieces to OpenAI's replies, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import orjson

from pipeline import Reply, Usage
from pipeline.wire import responses
from pipeline.wire.responses import Choice, new_id
from pipeline_plugins.infer.llamacpp_output import check_json, forced_call, logprobs_of
from pipeline_plugins.infer.llamacpp_request import Job
from pipeline_plugins.infer.transformers_text import Entry, Holder, Piece

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolCalls:
    """Takes the calls of tools, as ChatML models write them, out of a text that grows."""

    def __init__(self) -> None:
        self._outside = Holder([OPEN])
        self._inside: str | None = None
        self.found: list[dict[str, Any]] = []

    def feed(self, text: str, *, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """The text outside of calls, and the calls that are complete now."""
        shown = ""
        calls: list[dict[str, Any]] = []
        while True:
            if self._inside is None:
                passed, mark = self._outside.feed(text)
                shown += passed
                if mark is None:
                    break
                # What follows the mark was held back; a fresh holder must not see it twice.
                self._inside, text = self._outside.finish(), ""
            self._inside += text
            body, closed, text = self._inside.partition(CLOSE)
            if not closed and not last:
                break
            call = _call(body, len(self.found))
            if call is None:
                shown += OPEN + body + closed
            else:
                self.found.append(call)
                calls.append(call)
            self._inside = None
            if not closed:
                break
        return shown + (self._outside.finish() if last else ""), calls


def _call(text: str, index: int) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
        name, arguments = value["name"], value.get("arguments") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    written = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    function = {"name": name, "arguments": written}
    return {"index": index, "id": new_id("call").replace("-", "_"), "type": "function", "function": function}


class Output:
    """One call's reply while it grows; `of` tells the bytes of a token."""

    def __init__(
        self, job: Job, prompt_tokens: int, model: str, of: Callable[[int], bytes], *, calls: bool
    ) -> None:
        self.job = job
        self.model = model
        count = len(job.texts)
        self._of = of
        self._prompt_tokens = prompt_tokens
        self._texts = [self._echo(index) for index in range(count)]
        self._offsets = [0] * count
        self._entries: list[list[Entry]] = [[] for _ in range(count)]
        self._tools = [ToolCalls() if calls else None for _ in range(count)]
        self._forced: list[dict[str, Any] | None] = [None] * count
        self._reasons = ["length"] * count
        self._tokens = [0] * count
        self._stream = responses.Stream(
            "chat" if job.chat else "completion", model=model, include_usage=job.include_usage
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far: each prompt counts once."""
        return Usage(self._prompt_tokens, sum(self._tokens))

    def _echo(self, index: int) -> str:
        return self.job.echo[index // self.job.choices_per_prompt] if self.job.echo else ""

    def add(self, index: int, piece: Piece) -> tuple[str, list[dict[str, Any]]]:
        """Note a piece; the text and the tool calls that it adds to the choice."""
        text = piece.text
        calls: list[dict[str, Any]] = []
        tools = self._tools[index]
        if tools is not None:
            text, calls = tools.feed(text, last=piece.reason is not None)
        self._texts[index] += text
        self._tokens[index] = piece.tokens
        if piece.reason is not None:
            calls += self._end(index, piece.reason)
        return text, calls

    def _end(self, index: int, reason: str) -> list[dict[str, Any]]:
        job, tools = self.job, self._tools[index]
        if job.json:
            check_json(self._texts[index], ended=reason == "stop")
        called = tools is not None and bool(tools.found)
        if job.forced:
            self._forced[index] = forced_call(self._texts[index], job.forced)
        self._reasons[index] = "tool_calls" if (called or job.forced) and reason == "stop" else reason
        forced = self._forced[index]
        return [] if forced is None else [{"index": 0, **forced}]

    def keep(self, index: int, piece: Piece) -> None:
        """Note a piece of a reply that is sent whole."""
        self.add(index, piece)
        self._entries[index] += piece.entries

    def whole(self) -> Reply:
        """The reply, all choices complete."""
        choices = [self._choice(index) for index in range(len(self._texts))]
        build = responses.chat_completion if self.job.chat else responses.completion
        usage = self.usage
        return Reply.of(build(choices, usage, model=self.model), usage=usage)

    def _choice(self, index: int) -> Choice:
        tools, forced = self._tools[index], self._forced[index]
        found = [forced] if forced is not None else [] if tools is None else tools.found
        calls = [{key: value for key, value in call.items() if key != "index"} for call in found]
        text: str | None = None if forced is not None else self._texts[index]
        logprobs = self._logprobs(self._entries[index], 0) if self.job.logprobs is not None else None
        return Choice(None if calls and not text else text, self._reasons[index], logprobs, calls or None)

    def opening(self) -> bytes:
        """The first events of a stream."""
        events = b""
        for index in range(len(self._texts)):
            events += self._stream.start(index)
            if echo := self._echo(index):
                events += self._stream.text(echo, index)
        return events

    def events(self, index: int, piece: Piece) -> bytes:
        """The events of a stream that a piece makes."""
        text, calls = self.add(index, piece)
        events = b""
        if self.job.forced:
            text = ""
        if text or piece.entries:
            logprobs = None
            if self.job.logprobs is not None:
                logprobs = self._logprobs(piece.entries, self._offsets[index])
            self._offsets[index] += len(text)
            events += self._stream.text(text, index, logprobs)
        for call in calls:
            events += self._stream.delta({"tool_calls": [call]}, index)
        if piece.reason is not None:
            events += self._stream.finish(self._reasons[index], index)
        return events

    def ending(self) -> bytes:
        """The last events of a stream."""
        return self._stream.end(self.usage)

    def _logprobs(self, entries: Sequence[Entry], offset: int) -> dict[str, Any] | None:
        given = [
            {**self._token(e.token, e.logprob), "top_logprobs": [self._token(*one) for one in e.top]}
            for e in entries
        ]
        return logprobs_of({"content": given}, self.job, offset)

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._of(token)
        return {
            "token": content.decode("utf-8", "replace"),
            "logprob": max(logprob, -9999.0),
            "bytes": list(content),
        }


class Streamed(AsyncGenerator[bytes, None]):
    """The chunks of a reply. Unlike a generator function's, closing it always runs `stop`."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], stop: Callable[[], None]) -> None:
        self._chunks = chunks
        self._stop = stop

    async def asend(self, value: None) -> bytes:
        """The next chunk."""
        try:
            return await self._chunks.__anext__()
        except BaseException:
            self._stop()
            raise

    async def athrow(self, *arguments: Any) -> bytes:
        """Have an error raised where the stream is."""
        self._stop()
        return await self._chunks.athrow(*arguments)

    async def aclose(self) -> None:
        """Stop what makes the chunks."""
        self._stop()
        await self._chunks.aclose()

"""From llama.cpp's chunks to OpenAI's: as few changes to the bytes as will do.

llama.cpp hands over JSON objects, one per token. In the common case, one choice without
logprobs, a chunk is wrapped and never parsed.
"""

from __future__ import annotations

import re
from typing import Any

import jiter
import orjson

from pipeline.errors import APIError, ContextTooLong, InternalError, InvalidRequest, Overloaded
from pipeline.wire import sse
from pipeline.wire.responses import new_id
from pipeline.wire.usage import Usage, find_usage
from pipeline_plugins.infer.llamacpp_request import Job

JSON_STARTS = frozenset('{["-0123456789tfn')
ERROR = b'{"error"'
USAGE = b'{"choices":[],'
PROGRESS = b',"prompt_progress"'
TIMINGS = b',"timings"'
DELTA = b'"index":0,"delta":'
DELTA_WITH_LOGPROBS = b'"index":0,"logprobs":null,"delta":'
OPENING = b'{"role":"assistant","content":null}'
FIRST = {"role": "assistant", "content": "", "refusal": None}
OPENING_DELTA = {"role": "assistant", "content": None}
OPENED = orjson.dumps(FIRST)


def error_of(chunk: bytes) -> APIError:
    """The error that an error object of llama.cpp stands for."""
    try:
        found = jiter.from_json(chunk)["error"]
        message, kind, code = str(found.get("message")), str(found.get("type")), found.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return InternalError("llama.cpp failed without saying why.")
    if kind == "exceed_context_size_error":
        asked, room = found.get("n_prompt_tokens"), found.get("n_ctx")
        return ContextTooLong(
            f"This model's context is {room} tokens, and the prompt has {asked}. Shorten it."
        )
    if code == 503:
        return Overloaded(f"llama.cpp is not available: {message}")
    if code is not None and 400 <= int(code) < 500:
        return InvalidRequest(f"The model can't do this: {message}")
    return InternalError(f"llama.cpp failed: {message}")


def is_progress(chunk: bytes) -> bool:
    """Whether a chunk tells only how far the prompt has been read."""
    return PROGRESS in chunk[-200:]


def check_json(text: str, *, ended: bool) -> None:
    """Raise `InvalidRequest` when an answer that a schema should have shaped is not JSON.

    The grammar engine gives up in silence on a schema that is beyond its limits. An answer
    that has not `ended` is only looked at where it begins.
    """
    good = not text or text[0] in JSON_STARTS
    if good and ended:
        try:
            jiter.from_json(text.encode())
        except ValueError:
            good = False
    if not good:
        raise InvalidRequest(
            "The answer can't be held to this schema: it is contradictory, endless or too large.",
            param="response_format",
            code="invalid_schema",
        )


class Chunks:
    """Turns one choice's chunks into the events of a stream, without parsing them."""

    def __init__(self, job: Job) -> None:
        self.usage: Usage | None = None
        self._chat = job.chat
        self._with_usage = job.include_usage
        self._started = not job.chat

    def events(self, chunks: list[bytes]) -> bytes:
        """The events for these chunks, joined."""
        parts: list[bytes] = []
        for chunk in chunks:
            if chunk.startswith(USAGE):
                self.usage = find_usage(chunk)
                if self._with_usage:
                    head, cut, _ = chunk.partition(TIMINGS)
                    parts += (b"data: ", head, b"}\n\n" if cut else b"\n\n")
                continue
            if not self._chat:
                if b'"usage":{' in chunk:
                    parts.append(self._last_of_completion(chunk))
                    continue
                # In a text the quotes would be escaped, so this can only be the id.
                chunk = chunk.replace(b'"id":"chatcmpl-', b'"id":"cmpl-', 1)
            elif not self._started:
                self._started = True
                if OPENING in chunk:
                    chunk = chunk.replace(OPENING, OPENED, 1)
                else:
                    parts.append(self._event(_opening(chunk)))
            parts.append(self._event(chunk))
        return b"".join(parts)

    def _event(self, chunk: bytes) -> bytes:
        if self._chat:
            chunk = chunk.replace(DELTA, DELTA_WITH_LOGPROBS, 1)
        if self._with_usage:
            return b'data: %b,"usage":null}\n\n' % chunk[:-1]
        return b"data: %b\n\n" % chunk

    def _last_of_completion(self, chunk: bytes) -> bytes:
        """A completion's last chunk has the usage within, where OpenAI sends another event."""
        event = jiter.from_json(chunk)
        usage = event.pop("usage")
        self.usage = Usage.from_dict(usage)
        event["id"] = event["id"].replace("chatcmpl-", "cmpl-", 1)
        event.pop("timings", None)
        if not self._with_usage:
            return sse.encode(event)
        return sse.encode({**event, "usage": None}) + sse.encode({**event, "choices": [], "usage": usage})


def _opening(chunk: bytes) -> bytes:
    """The opening event for a chat that llama.cpp begins with another chunk.

    It does when the first tokens are no whole text, or none at all.
    """
    event = jiter.from_json(chunk)
    event["choices"][0] |= {"delta": FIRST, "finish_reason": None}
    event["choices"][0].pop("logprobs", None)
    return orjson.dumps(event)


class Events:
    """Turns the chunks of several choices, or chunks with logprobs, into one stream's events."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._id = new_id("chatcmpl" if job.chat else "cmpl")
        self._usages: dict[int, Usage] = {}
        self._offsets: dict[int, int] = {}
        self._started: set[int] = set()
        self._texts: dict[int, str] = {}
        self._last: dict[str, Any] = {}

    def events(self, index: int, chunks: list[bytes]) -> bytes:
        """The events for these chunks of the choice with this index, joined."""
        parts = []
        job = self._job
        for chunk in chunks:
            event = jiter.from_json(chunk)
            usage = event.pop("usage", None)
            event.pop("timings", None)
            event["id"] = self._id
            if usage is not None:
                self._usages[index] = Usage.from_dict(usage) or Usage()
                self._last = event
            if not event["choices"]:
                continue
            if self._job.include_usage:
                event["usage"] = None
            choice = event["choices"][0]
            choice["index"] = index
            if job.chat and index not in self._started:
                opening = {"index": index, "delta": FIRST, "logprobs": None, "finish_reason": None}
                parts.append(sse.encode({**event, "choices": [opening]}))
                if choice["delta"] == OPENING_DELTA:
                    self._started.add(index)
                    continue
            self._adapt(choice, index)
            parts.append(sse.encode(event))
        return b"".join(parts)

    def _adapt(self, choice: dict[str, Any], index: int) -> None:
        job = self._job
        first = index not in self._started
        self._started.add(index)
        if job.chat:
            delta = choice["delta"]
            if job.json:
                self._check(delta.get("content") or "", choice, index)
            if first:
                delta.pop("role", None)
        elif first and job.echo:
            choice["text"] = job.echo[index // job.choices_per_prompt] + choice["text"]
        choice.setdefault("logprobs", None)
        if job.logprobs is not None:
            offset = self._offsets.get(index, 0)
            choice["logprobs"] = logprobs_of(choice.get("logprobs"), job, offset)
            self._offsets[index] = offset + len(choice.get("text") or "")

    def _check(self, text: str, choice: dict[str, Any], index: int) -> None:
        self._texts[index] = known = self._texts.get(index, "") + text
        check_json(known, ended=choice.get("finish_reason") == "stop")

    def usage(self) -> Usage:
        """The tokens of all choices: each prompt counts once."""
        return total(self._usages, self._job)

    def end(self) -> bytes:
        """The usage event, where the client asked for it."""
        if not self._job.include_usage:
            return b""
        return sse.encode({**self._last, "choices": [], "usage": self.usage().as_dict()})


def total(usages: dict[int, Usage], job: Job) -> Usage:
    """The tokens of several choices together: each prompt counts once."""
    firsts = [u for i, u in usages.items() if i % job.choices_per_prompt == 0]
    return Usage(
        sum(u.prompt_tokens for u in firsts),
        sum(u.completion_tokens for u in usages.values()),
        sum(u.cached_tokens for u in firsts),
    )


def logprobs_of(given: dict[str, Any] | None, job: Job, offset: int = 0) -> dict[str, Any] | None:
    """llama.cpp's logprobs in the form that the client asked for: chat's, or completions' own."""
    entries = (given or {}).get("content")
    if entries is None:
        return None
    wanted = job.logprobs or 0
    if job.chat:
        return {"content": [_entry(entry, wanted) for entry in entries], "refusal": None}
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    tops = [{t["token"]: t["logprob"] for t in e["top_logprobs"][:wanted]} for e in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if wanted else None,
        "text_offset": offsets,
    }


def _entry(entry: dict[str, Any], wanted: int) -> dict[str, Any]:
    tops = [_token(top) for top in entry["top_logprobs"][:wanted]]
    return {**_token(entry), "top_logprobs": tops}


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry["bytes"]}


def whole(chunks: list[bytes], job: Job, index: int = 0) -> dict[str, Any]:
    """One choice's reply, put together from its chunks as if it had not been streamed."""
    content = b"".join(b"data: %b\n\n" % chunk for chunk in chunks)
    reply = sse.assemble(content)
    if reply is None or not reply["choices"]:
        raise InternalError("llama.cpp gave no answer.")
    choice = reply["choices"][0]
    choice["index"] = index
    if job.logprobs is not None or choice.get("logprobs") is None:
        choice["logprobs"] = logprobs_of(choice.get("logprobs"), job)
    if job.chat:
        choice["message"] = _message(choice["message"], choice, job)
    elif job.echo:
        choice["text"] = job.echo[index // job.choices_per_prompt] + choice["text"]
    return reply


def _message(given: dict[str, Any], choice: dict[str, Any], job: Job) -> dict[str, Any]:
    message = {**given, "role": "assistant", "refusal": None}
    if job.json:
        check_json(str(given.get("content") or ""), ended=choice["finish_reason"] == "stop")
    calls = [{k: v for k, v in call.items() if k != "index"} for call in given.get("tool_calls") or ()]
    if job.forced:
        calls = [forced_call(str(given.get("content") or ""), job.forced)]
        message["content"] = None
        if choice["finish_reason"] == "stop":
            choice["finish_reason"] = "tool_calls"
    if calls:
        message["tool_calls"] = calls
    elif message.get("content") is None:
        message["content"] = ""
    return message


def forced_call(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The tool call that an answer in JSON stands for; its arguments cut short if it was."""
    try:
        value = orjson.loads(text)
        name, arguments = value["name"], orjson.dumps(value["arguments"]).decode()
    except (ValueError, KeyError, TypeError):
        named = _NAME.search(text)
        given = _ARGUMENTS.search(text)
        name = names[0] if len(names) == 1 or named is None else named[1]
        arguments = text[given.end() :] if given else ""
    id = new_id("call").replace("-", "_")
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


_NAME = re.compile(r'"name"\s*:\s*"([^"]*)"')
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*')


def combine(replies: list[dict[str, Any]], job: Job) -> tuple[dict[str, Any], Usage]:
    """The replies of all choices as one, and its usage."""
    usages = {i: Usage.from_dict(reply.get("usage") or {}) or Usage() for i, reply in enumerate(replies)}
    usage = total(usages, job)
    first = replies[0]
    return {
        "id": first["id"] if job.chat else first["id"].replace("chatcmpl-", "cmpl-", 1),
        "object": first["object"],
        "created": first["created"],
        "model": first["model"],
        "system_fingerprint": first.get("system_fingerprint"),
        "choices": [reply["choices"][0] for reply in replies],
        "usage": usage.as_dict(),
    }, usage

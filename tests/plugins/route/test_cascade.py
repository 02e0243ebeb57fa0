"""`route=cascade`: the cheap answer where it will do, the next target's where it will not."""

import asyncio
import json
from collections.abc import AsyncIterator
from math import log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.route.answer import confidence, flaw, without_logprobs_in_events
from pipeline_plugins.route.cascade import Cascade

from pipeline import Call, Model, Reply, Usage
from pipeline.errors import APIError, ContextTooLong, InvalidRequest, RateLimited, UpstreamFailed
from pipeline.kinds import Routed
from pipeline.wire import sse
from tests.plugins.route.calls import CHAT, a_call, an_edge, chunks_of, read, run, some_edges

SURE = Model("small", CHAT, capabilities=frozenset({"logprobs", "streaming", "json_object"}))


class Unprocessable(InvalidRequest):
    status = 422


def an_answer(text: str | None, probability: float | None = None, **more: Any) -> dict[str, Any]:
    logprobs = None
    if probability is not None:
        logprobs = {"content": [{"token": w, "logprob": log(probability)} for w in (text or "").split()]}
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop", **more}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def as_events(answer: dict[str, Any]) -> list[bytes]:
    """An answer as a stream, a word and its logprob at a time."""
    (choice,) = answer["choices"]
    words = (choice["message"]["content"] or "").split(" ")
    events = []
    for index, word in enumerate(words):
        logprobs = choice["logprobs"] and {"content": choice["logprobs"]["content"][index : index + 1]}
        delta = {"content": word if index == 0 else f" {word}"}
        part = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        events.append(sse.encode({"object": "chat.completion.chunk", "choices": [part]}))
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}
    events.append(sse.encode({"choices": [end]}))
    events.append(sse.encode({"choices": [], "usage": answer["usage"]}))
    return [*events, sse.DONE]


class Small:
    """A target that gives an answer, with logprobs only where they are asked for."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Call] = []

    async def __call__(self, call: Call) -> Reply:
        self.asked.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, Reply):
            return self.answer
        answer = self.answer
        if not call.body.get("logprobs"):
            answer = {**answer, "choices": [{**c, "logprobs": None} for c in answer["choices"]]}
        if call.streaming:
            return Reply(chunks=chunks_of(as_events(answer)))
        return Reply.of(answer)


async def large(call: Call) -> Reply:
    answer = an_answer("from the large one")
    return Reply(chunks=chunks_of(as_events(answer))) if call.streaming else Reply.of(answer)


def ask(
    answer: Any, *, model: Model = SURE, config: dict[str, Any] | None = None, named: str = "", **body: Any
) -> Any:
    """What a small and a large target make of a call: text, decision, the small one, the whole answer."""
    small = answer if isinstance(answer, Small) else Small(answer)
    if named:
        body["model"] = named
    edges = some_edges(
        an_edge("small", model, answer=small), an_edge("large", Model("large", CHAT), answer=large)
    )
    router = Cascade(Cascade.Config(**(config or {})), edges)

    async def go() -> tuple[Call, bytes]:
        await router.open()
        call = a_call(**body)
        return call, await read(await router(call))

    call, content = run(go())
    whole = sse.assemble(content) if call.streaming else json.loads(content)
    routed = call.record.decision(Routed)
    assert routed is not None
    assert call.record.headers["x-pipeline-route"] == routed.target
    return whole and whole["choices"][0]["message"]["content"], routed, small, whole


BOTH = pytest.mark.parametrize("stream", [False, True])


@BOTH
def test_a_sure_answer_will_do(stream: bool) -> None:
    text, routed, small, whole = ask(an_answer("it is four", 0.9), stream=stream)
    assert (text, routed) == ("it is four", Routed("small", "first"))
    assert small.asked[0].body["logprobs"] is True
    assert whole["choices"][0]["logprobs"] is None, "the client did not ask for them"
    assert whole["usage"]["completion_tokens"] == 2


@BOTH
def test_an_unsure_answer_escalates(stream: bool) -> None:
    text, routed, _, _ = ask(an_answer("it is five", 0.5), stream=stream)
    assert (text, routed) == ("from the large one", Routed("large", "small: confidence 0.50"))


@BOTH
def test_logprobs_that_the_client_asked_for_are_kept(stream: bool) -> None:
    _, _, _, whole = ask(an_answer("it is four", 0.9), stream=stream, logprobs=True)
    assert len(whole["choices"][0]["logprobs"]["content"]) == 3


@BOTH
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (an_answer(""), "empty"),
        (an_answer(None), "empty"),
        (an_answer("no", finish_reason="content_filter"), "withheld by a filter"),
        (an_answer("half", finish_reason=None), "broken off"),
        (UpstreamFailed("x"), "UpstreamFailed"),
        (RateLimited("x"), "RateLimited"),
        (Unprocessable("x"), "Unprocessable"),
        (ContextTooLong("x"), "ContextTooLong"),
        (ValueError("a bug"), "it broke"),
    ],
)
def test_an_answer_that_fails_escalates(answer: Any, why: str, stream: bool) -> None:
    text, routed, _, _ = ask(answer, stream=stream)
    assert (text, routed.reason) == ("from the large one", f"small: {why}")


def test_a_refusal_escalates() -> None:
    answer = an_answer(None)
    answer["choices"][0]["message"]["refusal"] = "I can't"
    assert ask(answer)[1].reason == "small: a refusal"


@pytest.mark.parametrize("status", [422, 429, 500, 503])
def test_a_status_that_says_failure_escalates(status: int) -> None:
    assert ask(Reply(body=b"{}", status=status))[1].reason == f"small: status {status}"


def test_a_context_that_is_too_small_escalates() -> None:
    body = b'{"error": {"code": "context_length_exceeded"}}'
    assert ask(Reply(body=body, status=400))[1].target == "large"


@pytest.mark.parametrize("answer", [InvalidRequest("x"), Reply(body=b'{"choices":[]}', status=400)])
def test_the_clients_own_mistake_does_not(answer: Any) -> None:
    if isinstance(answer, APIError):
        with pytest.raises(InvalidRequest):
            ask(answer)
        return
    small = Small(answer)
    router = Cascade(Cascade.Config(), some_edges(an_edge("small", answer=small), an_edge("large")))

    async def go() -> Reply:
        await router.open()
        return await router(a_call())

    assert run(go()) is answer


@BOTH
def test_what_should_be_json_and_is_not_escalates(stream: bool) -> None:
    asked: dict[str, Any] = {"response_format": {"type": "json_object"}, "stream": stream}
    assert ask(an_answer("{oops", 0.99), **asked)[1].reason == "small: not JSON"
    assert ask(an_answer('{"a":1}', 0.99), **asked)[1].target == "small"
    assert ask(an_answer('{"a":', 0.99, finish_reason="length"), **asked)[1].target == "small"


def test_a_target_that_does_not_say_it_has_logprobs_is_not_asked_for_them() -> None:
    text, _, small, _ = ask(an_answer("it is five", 0.1), model=Model("small", CHAT))
    assert text == "it is five"
    assert "logprobs" not in small.asked[0].body


def test_confidence_may_be_left_out() -> None:
    text, _, small, _ = ask(an_answer("it is five", 0.1), config={"min_confidence": None})
    assert text == "it is five"
    assert "logprobs" not in small.asked[0].body


def test_a_named_model_is_not_second_guessed() -> None:
    text, routed, small, _ = ask(an_answer("it is five", 0.1), named="small")
    assert (text, routed.target) == ("it is five", "small")
    assert "logprobs" not in small.asked[0].body


def test_a_stream_that_breaks_before_it_is_judged_escalates() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield as_events(an_answer("half of it"))[0]
        raise UpstreamFailed("gone")

    text, routed, _, _ = ask(Reply(chunks=breaks()), stream=True)
    assert (text, routed.reason) == ("from the large one", "small: UpstreamFailed")


def test_a_stream_too_long_to_hold_escalates() -> None:
    answer = an_answer("word " * 500)
    _, routed, _, _ = ask(answer, stream=True, config={"max_bytes": 2000})
    assert routed.reason == "small: its answer is too long to be held back"


def test_a_target_that_takes_too_long_gives_way() -> None:
    class Hangs(Small):
        async def __call__(self, call: Call) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

    _, routed, _, _ = ask(Hangs(None), config={"patience": 0.02})
    assert routed.reason == "small: took longer than 0.02 s"


def test_the_last_targets_stream_is_not_held_back() -> None:
    gate = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()
        yield b"second"

    async def flows(call: Call) -> Reply:
        return Reply(chunks=chunks())

    edges = some_edges(an_edge("small", answer=Small(UpstreamFailed("x"))), an_edge("large", answer=flows))
    router = Cascade(Cascade.Config(), edges)

    async def go() -> None:
        await router.open()
        stream = aiter(await router(a_call(stream=True)))
        assert await anext(stream) == b"first"
        gate.set()
        assert await anext(stream) == b"second"

    run(go())


@pytest.mark.parametrize("body", [True, False])
def test_usage_and_headers_of_the_cheap_answer_are_kept(body: bool) -> None:
    async def small(call: Call) -> Reply:
        answer = an_answer("it is four", 0.9)
        headers = [(b"content-type", b"x"), (b"x-upstream", b"1")]
        if body:
            return Reply(body=json.dumps(answer).encode(), headers=headers, usage=Usage(3, 9), model="s")
        return Reply(chunks=chunks_of(as_events(answer)), headers=headers, usage=Usage(3, 9), model="s")

    edges = some_edges(an_edge("small", SURE, answer=small), an_edge("large"))
    router = Cascade(Cascade.Config(), edges)

    async def go() -> Reply:
        await router.open()
        return await router(a_call(stream=not body))

    reply = run(go())
    assert (reply.usage, reply.model) == (Usage(3, 9), "s")
    assert (b"x-upstream", b"1") in reply.headers


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=1), min_size=1, max_size=3))
def test_confidence_is_the_geometric_mean_of_the_least_sure_choice(choices: list[list[float]]) -> None:
    answer = {"choices": [{"logprobs": {"content": [{"logprob": log(p)} for p in ps]}} for ps in choices]}
    found = confidence(answer)
    means = []
    for ps in choices:
        product = 1.0
        for p in ps:
            product *= p ** (1 / len(ps))
        means.append(product)
    assert found == pytest.approx(min(means))


def test_confidence_reads_completions_too_and_is_unknown_without_logprobs() -> None:
    completion = {"choices": [{"text": "a", "logprobs": {"token_logprobs": [None, log(0.5)]}}]}
    assert confidence(completion) == pytest.approx(0.5)
    assert confidence({"choices": [{"logprobs": None}]}) is None
    assert confidence({}) is None


def test_tool_calls_are_an_answer_without_text() -> None:
    message = {"content": None, "tool_calls": [{"id": "1"}]}
    assert flaw({"choices": [{"message": message, "finish_reason": "tool_calls"}]}, json=True) == ""


def test_logprobs_are_taken_out_of_events_and_nothing_else_is() -> None:
    events = as_events(an_answer("it is four", 0.9))
    plain = without_logprobs_in_events(b"".join(events))
    assert b"token" not in plain.replace(b"completion_tokens", b"").replace(b"prompt_tokens", b"")
    assert plain.endswith(sse.DONE)
    before, after = sse.assemble(b"".join(events)), sse.assemble(plain)
    assert before is not None
    assert after is not None
    assert after["choices"][0]["message"] == before["choices"][0]["message"]
    assert after["usage"] == before["usage"]

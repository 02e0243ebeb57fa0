"""What follows when a check fails, on requests, replies and streams."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.validate.finding import Copy, Finding, Subject, without
from pipeline_plugins.validate.policy import Policy, ReplyRejected, RequestRejected
from pipeline_plugins.validate.validator import Validator, told
from pydantic import ValidationError

from pipeline import Call, Edge, End, Reply
from pipeline.errors import UpstreamFailed
from pipeline.kinds import Validated
from pipeline.problems import ConfigError
from pipeline.wire.sse import DONE
from tests.plugins.validate.models import Told, chat, read, run, said


class Pieces(Policy):
    redactable = piecewise = True


class NoBad(Validator[Policy]):
    """Refuses the word `bad`."""

    Config = Pieces

    def find(self, subject: Subject) -> Iterator[Finding]:
        for text in subject.texts:
            at = text.text.find("bad")
            while at >= 0:
                yield Finding(text.path, "says `bad`", (at, at + 3), "good")
                at = text.text.find("bad", at + 3)


class Whole(NoBad):
    Config = Policy


def stage(
    model: Told, *, cls: type[Validator[Policy]] = NoBad, retry: Any = None, fallback: Any = None, **c: Any
):
    edges = {"retry": retry and retry.edge("retry"), "fallback": fallback and fallback.edge("fallback")}
    return cls(cls.Config(**c), "words", model.edge(), **edges)


def ask(stage: Validator[Policy], text: str = "hi", **body: Any) -> tuple[str, Any]:
    """The answer's text and the call with its record."""
    call = chat(text, **body)

    async def go() -> str:
        return said(await read(await stage(call)))

    return run(go()), call


def test_a_good_call_goes_by_as_it_is() -> None:
    model = Told("fine")
    validator, call = stage(model), chat()

    async def go() -> None:
        reply = await validator(call)
        assert model.calls == [call]
        assert reply.model is None

    run(go())
    assert call.record.decision(Validated) == Validated(True)
    assert call.record.headers == {"x-pipeline-validate": "words=passed"}


def test_a_bad_request_is_refused_with_400_before_a_model_is_asked() -> None:
    model = Told("fine")
    call = chat("a bad one")
    with pytest.raises(RequestRejected, match=r"`words`: messages\[0\].content says `bad`") as caught:
        run(stage(model)(call))
    assert caught.value.status == 400
    assert caught.value.param == "messages[0].content"
    assert not model.calls
    assert call.record.decision(Validated) == Validated(False, ("words: messages[0].content says `bad`",))


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_answer_is_refused_with_422(stream: bool) -> None:
    model = Told("a bad one")
    with pytest.raises(ReplyRejected, match=r"choices\[0\].message.content says `bad`") as caught:
        run(stage(model)(chat(stream=stream)))
    assert caught.value.status == 422
    assert caught.value.envelope()["error"]["code"] == "validation_failed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_is_told_the_answer_and_the_reason(stream: bool) -> None:
    first, second = Told("a bad one"), Told("bad again", "fine")
    text, call = ask(stage(first, retry=second, on_failure="retry", retries=2), stream=stream)
    assert text == "fine"
    assert [len(model.calls) for model in (first, second)] == [1, 2]
    messages = second.calls[0].body["messages"]
    assert messages[0] == {"role": "user", "content": "hi"}
    assert messages[1] == {"role": "assistant", "content": "a bad one"}
    assert "says `bad`" in messages[2]["content"]
    # Each attempt starts from the request: reasons do not pile up.
    assert [m["content"] for m in second.calls[1].body["messages"]][1] == "bad again"
    assert len(second.calls[1].body["messages"]) == 3
    assert call.record.decision(Validated) == Validated(True, (), 2)
    assert call.record.headers["x-pipeline-validate"] == "words=retried 2"


def test_retries_end_and_are_counted() -> None:
    model, again = Told("bad"), Told("bad")
    call = chat()
    with pytest.raises(ReplyRejected, match="after 3 attempts"):
        run(stage(model, retry=again, on_failure="retry", retries=2)(call))
    assert len(again.calls) == 2
    decision = call.record.decision(Validated)
    assert decision is not None
    assert (decision.passed, decision.retries) == (False, 2)


def test_when_retries_end_a_fallback_answers() -> None:
    text, _ = ask(
        stage(Told("bad"), retry=Told("bad"), fallback=Told("canned"), on_failure="retry", retries=1)
    )
    assert text == "canned"


def test_a_completion_is_retried_as_it_was() -> None:
    again = Told("fine")
    text, _ = ask(stage(Told("bad"), retry=again, on_failure="retry"), operation="completion")
    assert text == "fine"
    assert again.calls[0].body == {"prompt": "hi"}


@pytest.mark.parametrize("text", ["bad", "hi"])
def test_a_fallback_answers_for_a_bad_request_or_reply(text: str) -> None:
    answer, call = ask(stage(Told("bad"), fallback=Told("canned"), on_failure="fallback"), text)
    assert answer == "canned"
    assert call.record.headers["x-pipeline-validate"] == "words=fallback"


def test_a_fallback_has_to_hold_too() -> None:
    with pytest.raises(ReplyRejected):
        run(stage(Told("bad"), fallback=Told("bad"), on_failure="fallback")(chat()))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["buffer", "window"])
def test_redaction_replaces_what_was_found_on_both_sides(stream: bool, mode: str) -> None:
    model = Told("so bad, not badly bad")
    validator = stage(model, on_failure="redact", stream=mode, window=4)
    text, call = ask(validator, "a bad one", stream=stream)
    assert text == "so good, not goodly good"
    assert model.calls[0].body["messages"][0]["content"] == "a good one"
    decision = call.record.decision(Validated)
    assert decision is not None
    assert decision.passed


def test_redaction_takes_the_log_probabilities_along() -> None:
    validator = stage(Told("so bad"), on_failure="redact")

    async def go() -> bytes:
        return await read(await validator(chat(stream=True)))

    content = run(go())
    assert said(content) == "so good"
    assert content.count(b'"token"') == 1  # the piece without it keeps its own
    assert content.endswith(DONE)


@pytest.mark.parametrize("mode", ["buffer", "window", "after"])
def test_a_flag_passes_on_and_is_noted(mode: str) -> None:
    text, call = ask(stage(Told("a bad one"), on_failure="flag", stream=mode), stream=True)
    assert text == "a bad one"
    decision = call.record.decision(Validated)
    assert decision is not None
    assert not decision.passed


def test_a_stream_that_is_valid_comes_out_byte_for_byte() -> None:
    async def go(mode: str) -> bytes:
        return await read(await stage(Told("all is well " * 50), stream=mode, window=20)(chat(stream=True)))

    async def plain() -> list[bytes]:
        return [e async for e in (await Told("all is well " * 50)(chat(stream=True)))]

    def ids(content: bytes) -> bytes:
        import re

        return re.sub(rb'"id":"[^"]*","object":"chat.completion.chunk","created":\d+', b"", content)

    wanted = ids(b"".join(run(plain())))
    for mode in ("buffer", "window", "after"):
        assert ids(run(go(mode))) == wanted


def test_a_window_shows_nothing_of_what_it_finds_and_ends_with_an_error() -> None:
    model = Told("x" * 100 + " bad " + "y" * 1000)
    validator = stage(model, stream="window", window=10)
    seen: list[bytes] = []

    async def go() -> None:
        reply = await validator(chat(stream=True))
        try:
            async for chunk in reply:
                seen.append(chunk)  # noqa: PERF401 - what came before the error counts
        finally:
            await reply.aclose()

    with pytest.raises(ReplyRejected):
        run(go())
    assert b"xxx" in b"".join(seen)
    assert b" ba" not in b"".join(seen)
    assert DONE not in seen
    assert model.sent < 60
    assert model.closed == 1


def test_a_buffered_stream_that_nobody_waits_for_is_closed() -> None:
    class Slow(Told):
        async def _stream(self, call: Any, answer: str) -> AsyncIterator[bytes]:
            try:
                yield b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
                await asyncio.sleep(60)
            finally:
                self.closed += 1

    async def go(mode: str) -> int:
        model = Slow("x")
        validator = stage(model, stream=mode, window=1)

        async def consume() -> None:
            reply = await validator(chat(stream=True))
            try:
                await read(reply)
            finally:
                await reply.aclose()

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        return model.closed

    assert [run(go(mode)) for mode in ("buffer", "window", "after")] == [1, 1, 1]


def test_a_followed_stream_that_nobody_begins_to_read_is_closed() -> None:
    model = Told("fine")
    ends: list[End] = []

    async def go() -> None:
        reply = await stage(model, stream="window")(chat(stream=True))
        reply.on_end(ends.append)
        await reply.aclose()

    run(go())
    assert ends[0].outcome == "cancelled"


def test_after_only_reports() -> None:
    validator = stage(Told("a bad one"), stream="after", on_failure="flag")
    call = chat(stream=True)

    async def go() -> tuple[bytes, list[End]]:
        ends: list[End] = []
        reply = await validator(call)
        reply.on_end(ends.append)
        return await read(reply), ends

    content, ends = run(go())
    assert content.index(b": x-pipeline-validate: words=reported 1") < content.index(DONE)
    assert ends[0].outcome == "completed"
    decision = call.record.decision(Validated)
    assert decision is not None
    assert decision.failed == ("words: choices[0].message.content says `bad`",)


def test_usage_and_model_of_a_followed_stream_are_those_of_the_inner_one() -> None:
    async def go() -> list[End]:
        ends: list[End] = []
        reply = await stage(Told("two words"), stream="window")(chat(stream=True))
        assert reply.model == "told"
        reply.on_end(ends.append)
        await read(reply)
        return ends

    (end,) = run(go())
    assert end.usage is not None
    assert end.usage.completion_tokens == 2


@pytest.mark.parametrize("mode", ["buffer", "window"])
def test_an_error_event_of_the_model_is_an_error_and_no_answer(mode: str) -> None:
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"so ba"}}]}\n\n',
        b'data: {"error":{"message":"out of memory"}}\n\n',
    ]

    async def go() -> None:
        await read(await stage(Told("", events=events), stream=mode)(chat(stream=True)))

    with pytest.raises(UpstreamFailed, match="out of memory"):
        run(go())


@pytest.mark.parametrize("mode", ["buffer", "window", "after"])
@pytest.mark.parametrize(
    "strange",
    [
        b'"choices":5',
        b'"choices":["x"]',
        b'"choices":[{"delta":[1]}]',
        b'"choices":[{"index":[],"delta":{"content":"hi"}}]',
        b'"choices":[{"delta":{"tool_calls":["x"]}}]',
        b'"choices":[{"delta":{"tool_calls":[{"function":"x"}]}}]',
    ],
)
def test_a_stream_that_has_not_the_form_of_one_is_the_upstreams_failure(mode: str, strange: bytes) -> None:
    async def go() -> None:
        model = Told("", events=[b"data: {%s}\n\n" % strange])
        await read(await stage(model, stream=mode)(chat(stream=True)))

    with pytest.raises(UpstreamFailed, match="can't be checked"):
        run(go())


@pytest.mark.parametrize(
    "strange", ['"x"', '["x"]', '[{"message":["x"]}]', '[{"message":{"content":"hi","tool_calls":["x"]}}]']
)
def test_an_answer_that_has_not_the_form_of_one_is_the_upstreams_failure(strange: str) -> None:
    async def answer(call: Any) -> Reply:
        return Reply(body=b'{"choices":%s}' % strange.encode())

    checked = NoBad(NoBad.Config(), "words", Edge("validate", "next", "model", answer))
    with pytest.raises(UpstreamFailed, match="can't be checked"):
        run(checked(chat()))


@pytest.mark.parametrize("mode", ["buffer", "window"])
def test_text_that_a_stream_sends_in_parts_is_checked_and_redacted(mode: str) -> None:
    parts = b'{"content":[{"type":"text","text":"so ba"},{"type":"text","text":"d it is"}]}'
    events = [b'data: {"choices":[{"index":0,"delta":%s}]}\n\n' % parts, DONE]

    async def go() -> bytes:
        return await read(
            await stage(Told("", events=events), stream=mode, on_failure="redact")(chat(stream=True))
        )

    sent = run(go())
    assert b'"text":"so ba"' not in sent
    assert b'" it is"' in sent


def test_a_reason_that_is_a_sentence_is_told_with_one_full_stop() -> None:
    assert told([Finding(("prompt",), "could not be read: nothing listens there.")]) == (
        "prompt could not be read: nothing listens there"
    )


def test_text_after_a_finish_reason_is_checked_like_any() -> None:
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"fine"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":" so bad"}}]}\n\n',
        DONE,
    ]

    async def go() -> None:
        await read(await stage(Told("", events=events), stream="window")(chat(stream=True)))

    with pytest.raises(ReplyRejected):
        run(go())


def test_an_error_of_the_model_passes() -> None:
    async def fails(call: Any) -> Reply:
        return Reply.of({"error": {"message": "bad"}}, status=429)

    validator = NoBad(Pieces(), "words", Edge("v", "next", "m", fails))
    assert run(validator(chat())).status == 429


def test_arguments_of_tools_are_texts_too() -> None:
    calls = (b'{"name":"f","arguments":"{\\"a\\": \\"b"}', b'{"arguments":"ad\\"}"}')
    events = [
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":%b}]}}]}\n\n' % call
        for call in calls
    ]
    events.append(DONE)
    for mode in ("buffer", "window"):
        with pytest.raises(ReplyRejected, match=r"tool_calls\[0\].function.arguments says"):
            run(_all(stage(Told("", events=events), stream=mode)))


@pytest.mark.parametrize(
    ("delta", "place"),
    [
        (
            b'{"tool_calls":[{"index":0,"custom":{"name":"f","input":"bad"}}]}',
            r"tool_calls\[0\].custom.input",
        ),
        (b'{"function_call":{"name":"f","arguments":"bad"}}', "function_call.arguments"),
    ],
)
def test_what_tools_of_other_kinds_are_called_with_is_text_too(delta: bytes, place: str) -> None:
    events = [b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % delta, DONE]
    for mode in ("buffer", "window"):
        with pytest.raises(ReplyRejected, match=f"{place} says"):
            run(_all(stage(Told("", events=events), stream=mode)))
    message = orjson.loads(delta)
    request = chat(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", **message}])
    with pytest.raises(RequestRejected, match=rf"messages\[1\].{place} says"):
        run(stage(Told("fine"))(request))


def test_what_a_client_expects_of_the_answer_is_checked_and_redacted() -> None:
    model = Told("fine")
    ask(stage(model, on_failure="redact"), prediction={"type": "content", "content": "so bad"})
    assert model.calls[0].body["prediction"] == {"type": "content", "content": "so good"}


async def _all(validator: Validator[Policy]) -> bytes:
    return await read(await validator(chat(stream=True)))


def test_a_text_that_is_too_long_is_not_read_and_fails() -> None:
    with pytest.raises(RequestRejected, match="more than 10 characters"):
        run(stage(Told("x"), max_characters=10)(chat("x" * 11)))
    with pytest.raises(ReplyRejected, match="more than 10 characters"):
        run(_all(stage(Told("x" * 1000), max_characters=10)))


@pytest.mark.parametrize(
    ("operation", "key", "given", "place"),
    [
        ("completion", "prompt", [1, 2], "prompt"),
        ("completion", "prompt", ["fine", [1, 2]], r"prompt\[1\]"),
        ("embedding", "input", [[1], [2]], r"input\[0\]"),
    ],
)
def test_token_ids_can_not_be_read_and_fail(operation: str, key: str, given: Any, place: str) -> None:
    model = Told("x")
    call = Call(id="1", operation=operation, body={key: given}, raw=b"{}", deadline=1e9, received=0.0)  # type: ignore[arg-type]
    for on_failure in ("reject", "redact"):
        with pytest.raises(RequestRejected, match=f"{place} is given as token ids"):
            run(stage(model, on_failure=on_failure)(call))
    assert model.calls == []


def test_an_answer_too_long_to_be_held_is_only_flagged_and_comes_whole() -> None:
    model = Told("x" * 1000)
    validator = stage(model, max_characters=10, on_failure="flag")
    text, call = ask(validator, stream=True)
    assert text == "x" * 1000
    assert call.record.headers["x-pipeline-validate"] == "words=flagged"
    assert model.closed == 1


def test_an_answer_too_long_to_be_held_that_nobody_begins_to_read_is_closed() -> None:
    model = Told("x" * 1000)

    async def go() -> None:
        validator = stage(model, max_characters=10, on_failure="flag")
        await (await validator(chat(stream=True))).aclose()

    run(go())
    assert model.closed == 1


def test_a_long_text_is_checked_in_a_thread_that_ends_with_the_stage() -> None:
    import threading

    class Where(NoBad):
        def find(self, subject: Subject) -> Iterator[Finding]:
            threads.append(threading.current_thread().name)
            yield from ()

    threads: list[str] = []
    validator = stage(Told("x"), cls=Where)

    async def go() -> None:
        await validator(chat("x" * 10_000))
        await validator.close()

    run(go())
    assert threads[0].startswith("validate-words")
    assert threads[1] == "MainThread"


def test_embeddings_are_checked_on_their_way_in_only() -> None:
    async def answers(call: Any) -> Reply:
        return Reply.of({"data": []})

    validator = NoBad(Pieces(), "words", Edge("v", "next", "m", answers))
    assert run(validator(_embedding("fine"))).json == {"data": []}
    with pytest.raises(RequestRejected, match=r"input\[1\] says"):
        run(validator(_embedding(["x", "bad"])))


def _embedding(text: Any) -> Any:
    from pipeline import Call

    return Call(id="1", operation="embedding", body={"input": text}, deadline=1e12, received=0)


def test_several_stages_add_to_one_record() -> None:
    model = Told("bad")
    inner = stage(model, on_failure="flag")
    outer = NoBad(Pieces(on_failure="redact"), "outer", Edge("a", "next", "b", inner))
    call = chat()
    run(outer(call))
    decision = call.record.decision(Validated)
    assert decision is not None
    assert [line.split(":")[0] for line in decision.failed] == ["words", "outer"]
    assert not decision.passed
    assert call.record.headers["x-pipeline-validate"] == "words=flagged, outer=redacted"


@pytest.mark.parametrize(
    ("cls", "config", "field", "message"),
    [
        (NoBad, {"on_failure": "redact", "stream": "after"}, "stream", "can't be redacted"),
        (NoBad, {"on_failure": "retry", "side": "request"}, "on_failure", "not asked for again"),
        (NoBad, {"on_failure": "retry", "stream": "window"}, "stream", "only while nothing has been sent"),
        (NoBad, {"on_failure": "retry", "stream": "after"}, "stream", "with `stream: buffer`"),
        (NoBad, {"on_failure": "fallback", "stream": "window"}, "stream", "only while nothing has been sent"),
        (Whole, {"on_failure": "redact"}, "on_failure", "no places"),
        (Whole, {"stream": "window"}, "stream", "needs the whole answer"),
        (NoBad, {"retries": 11}, "retries", "less than or equal to 10"),
    ],
)
def test_a_policy_that_can_not_work_is_told_with_the_config(
    cls: type[NoBad], config: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        cls.Config(**config)
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize("edge", ["retry", "fallback"])
def test_an_edge_that_the_policy_needs_and_the_graph_lacks_is_told(edge: str) -> None:
    with pytest.raises(ConfigError, match=f"needs the edge `{edge}`") as caught:
        stage(Told("x"), on_failure=edge)
    assert caught.value.problems[0].path == "on_failure"


@given(
    st.text("abd ", max_size=200),
    st.integers(1, 9),
    st.integers(3, 12),
    st.sampled_from(["buffer", "window"]),
)
def test_redaction_of_a_stream_is_that_of_the_whole_however_it_is_cut(
    text: str, size: int, window: int, mode: str
) -> None:
    validator = stage(Told(text, size=size), on_failure="redact", stream=mode, window=window)

    async def go() -> str:
        return said(await read(await validator(chat(stream=True))))

    assert (run(go()) or "") == text.replace("bad", "good")


def test_a_body_is_copied_where_it_changes_and_shared_elsewhere() -> None:
    first: dict[str, Any] = {"message": {"content": "a"}}
    body = {"choices": [first, {"message": {"content": "b"}}]}
    copy = Copy(body)
    copy.write(("choices", 0, "message", "content"), "c")
    assert first["message"]["content"] == "a"
    assert copy.body["choices"][0]["message"]["content"] == "c"
    assert copy.body["choices"][1] is body["choices"][1]
    assert without(body, [], []) == body

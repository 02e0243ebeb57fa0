"""The checks that ask a model or a server: judge, moderation, groundedness."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pipeline_plugins.validate.finding import Subject, Text
from pipeline_plugins.validate.groundedness import SENTENCE, Groundedness
from pipeline_plugins.validate.judge import Judge
from pipeline_plugins.validate.moderation import Moderation
from pipeline_plugins.validate.policy import ReplyRejected, RequestRejected
from pydantic import ValidationError

from pipeline import Call, Record
from pipeline.errors import Overloaded
from pipeline.kinds import Retrieved, Validated
from tests.plugins.infer.upstream import Exchange, Upstream
from tests.plugins.validate.models import Told, chat, read, run, said

# judge


def judged(verdict: str | Exception, *, stream: bool = False, **config: Any) -> tuple[str, Told, Call]:
    judge = Told(verdict)
    check = Judge(Judge.Config(**config), "judge", Told("the answer").edge(), judge.edge("judge"))
    call = chat("the question", stream=stream, model="gpt", tools=[], n=1)

    async def go() -> str:
        return said(await read(await check(call)))

    return str(run(go())), judge, call


@pytest.mark.parametrize("stream", [False, True])
def test_a_good_score_passes_and_the_judge_sees_rubric_question_and_answer(stream: bool) -> None:
    answer, judge, call = judged('{"reason": "fine", "score": 7}', stream=stream, rubric="It rhymes.")
    assert answer == "the answer"
    (asked,) = judge.calls
    system, user = (message["content"] for message in asked.body["messages"])
    assert "It rhymes." in system
    assert "the question" in user
    assert "the answer" in user
    assert not asked.streaming
    assert (asked.model, asked.id, asked.deadline) == ("default", call.id, call.deadline)
    assert set(asked.body) == {"model", "messages", "max_tokens", "temperature", "response_format"}


def test_a_low_score_fails_with_its_reason() -> None:
    with pytest.raises(ReplyRejected, match=r"content scored 3 of 10, below 6: it is rude"):
        judged('{"reason": "it is rude", "score": 3}')


@pytest.mark.parametrize(("score", "passed"), [(9, True), (3, False)])
@pytest.mark.parametrize("stream", ["buffer", "after"])
def test_a_score_is_recorded_whether_it_passes_or_not(score: int, passed: bool, stream: str) -> None:
    verdict = f'{{"reason": "so so", "score": {score}}}'
    policy = Judge.Config(stream=stream, on_failure="flag")
    check = Judge(policy, "judge", Told("x").edge(), Told(verdict).edge("judge"))
    call = chat(stream=True)

    async def go() -> None:
        await read(await check(call))

    run(go())
    valid = call.record.decision(Validated)
    assert valid is not None
    assert (valid.passed, valid.scores) == (passed, {"judge": score})


def test_a_retried_answer_has_the_score_of_the_last_one() -> None:
    verdicts = Told('{"reason": "rude", "score": 2}', '{"reason": "fine", "score": 8}')
    model = Told("first", "second").edge()
    check = Judge(Judge.Config(on_failure="retry"), "judge", model, verdicts.edge("judge"), retry=model)
    call = chat()
    run(check(call))
    assert call.record.decision(Validated) == Validated(True, (), 1, {"judge": 8})


@pytest.mark.parametrize(
    "verdict",
    [
        "no JSON",
        "{}",
        '{"score": 11, "reason": "x"}',
        '{"score": NaN, "reason": "x"}',
        '{"score": "9", "reason": "x"}',
        Overloaded("busy"),
    ],
)
def test_a_judge_that_gives_no_verdict_counts_as_configured(verdict: Any) -> None:
    with pytest.raises(ReplyRejected, match="could not be judged"):
        judged(verdict)
    assert judged(verdict, when_unable="pass")[0] == "the answer"


def test_what_the_judges_stages_decide_is_not_about_the_call() -> None:
    class Decides(Told):
        async def __call__(self, call: Call) -> Any:
            call.record.decide(Validated(False, ("other",)))
            call.record.headers["x-pipeline-route"] = "judge"
            return await super().__call__(call)

    judge = Decides('{"reason": "fine", "score": 7}')
    check = Judge(Judge.Config(), "judge", Told("x").edge(), judge.edge("judge"))
    call = chat()
    run(check(call))
    assert call.record.decision(Validated) == Validated(True, scores={"judge": 7})
    assert call.record.headers == {"x-pipeline-validate": "judge=passed"}
    assert [step.edge for step in call.record.steps] == ["next", "judge"]


# moderation


def moderated(
    text: str, results: Callable[[Any], Any], *, status: int = 200, reply: str = "fine", **config: Any
) -> list[Exchange]:
    async def answer(exchange: Exchange) -> None:
        await exchange.answer(json.dumps({"results": results(exchange.json["input"])}).encode(), status)

    async def go() -> list[Exchange]:
        async with Upstream(answer) as upstream:
            config.setdefault("base_url", upstream.url)
            check = Moderation(Moderation.Config(**config), "moderation", Told(reply).edge())
            await check.open()
            call = chat(text)
            call.deadline = asyncio.get_running_loop().time() + 20
            try:
                await check(call)
            finally:
                await check.close()
            return upstream.seen

    return run(go())  # type: ignore[no-any-return]


def by_word(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "flagged": "bad" in text,
            "categories": {"violence": "bad" in text, "hate": False},
            "category_scores": {"violence": 0.9 if "bad" in text else 0.4, "hate": 0.0},
        }
        for text in texts
    ]


def test_texts_go_to_the_endpoint_with_key_and_model() -> None:
    seen = moderated("hello", by_word, api_key="k-123", model="omni")
    assert [exchange.path for exchange in seen] == ["/v1/moderations", "/v1/moderations"]
    assert seen[0].json == {"input": ["hello"], "model": "omni"}
    assert seen[1].json["input"] == ["fine"]
    assert seen[0].headers["authorization"] == "Bearer k-123"


def test_what_is_flagged_fails_with_its_categories() -> None:
    with pytest.raises(RequestRejected, match=r"messages\[0\].content is objectionable: violence"):
        moderated("bad", by_word)
    with pytest.raises(ReplyRejected, match="violence"):
        moderated("fine", by_word, reply="bad")


def test_own_thresholds_decide_where_there_are_any() -> None:
    moderated("bad", by_word, thresholds={"violence": 0.95})
    with pytest.raises(RequestRejected, match="violence"):
        moderated("fine", by_word, thresholds={"violence": 0.3})
    with pytest.raises(RequestRejected, match="could not be moderated"):
        moderated("fine", by_word, thresholds={"violins": 0.3})


def test_an_endpoint_that_does_not_answer_fails_the_text_unless_told_to_pass() -> None:
    for results, status in ((by_word, 500), (lambda texts: [], 200), (lambda texts: [1], 200)):
        with pytest.raises(RequestRejected, match="could not be moderated"):
            moderated("fine", results, status=status)
        moderated("fine", results, status=status, when_unable="pass")
    with pytest.raises(RequestRejected, match="could not be moderated"):
        moderated("fine", by_word, base_url="http://127.0.0.1:1/v1")


def test_addresses_and_keys_that_can_not_be_are_told_without_the_key() -> None:
    with pytest.raises(ValidationError, match="must be a URL"):
        Moderation.Config(base_url="example")
    with pytest.raises(ValidationError) as caught:
        Moderation.Config(api_key="hidden\n")
    assert "hidden" not in str(caught.value)


# groundedness

PASSAGE = (
    "The Eiffel Tower was finished in 1889. It is 330 metres tall and stands in Paris. "
    "Gustave Eiffel's company designed and built the tower."
)


@pytest.fixture(scope="module")
def grounded() -> Any:
    pytest.importorskip("onnxruntime")
    check = Groundedness(Groundedness.Config(), "grounds", Told("x").edge())
    asyncio.run(check.open())
    return check


def claims(check: Any, answer: str, passages: tuple[str, ...] = (PASSAGE,)) -> list[str]:
    record = Record()
    record.decide(Retrieved("docs", len(passages), 0.1, passages))
    text = Text(("choices", 0, "message", "content"), answer, "assistant")
    found = list(check.find(Subject("reply", chat(record=record), [text])))
    return [answer[slice(*finding.span)].strip() if finding.span else finding.what for finding in found]


def test_claims_that_the_passages_make_pass(grounded: Any) -> None:
    assert (
        claims(grounded, "The tower stands in Paris and is 330 metres tall. It was finished in 1889.") == []
    )


def test_the_support_of_the_weakest_claim_is_the_score(grounded: Any) -> None:
    answer = "The tower stands in Paris and is 330 metres tall."
    scores = []
    for one in (answer, f"{answer} Napoleon ordered the construction of the railway station.", "Yes."):
        record = Record()
        record.decide(Retrieved("docs", 1, 0.1, (PASSAGE,)))
        text = Text(("choices", 0, "message", "content"), one, "assistant")
        asyncio.run(grounded.check(Subject("reply", chat(record=record), [text])))
        valid = record.decision(Validated)
        scores.append(valid.scores["grounds"] if valid is not None else None)
    supported, invented, claims_nothing = scores
    assert 0 < invented < Groundedness.Config().least < supported <= 1
    assert claims_nothing is None


def test_claims_that_no_passage_makes_are_found_where_they_stand(grounded: Any) -> None:
    invented = "Napoleon ordered the construction of the railway station."
    assert claims(grounded, f"The tower stands in Paris and is 330 metres tall. {invented}") == [invented]


def test_a_number_that_no_passage_has_is_found(grounded: Any) -> None:
    wrong = "The tower is 350 metres tall and stands in Paris."
    assert claims(grounded, wrong) == [wrong]


def test_without_passages_nothing_is_held_against_an_answer(grounded: Any) -> None:
    assert claims(grounded, "Napoleon ordered the construction of the railway station.", ()) == []


def test_an_answer_of_too_many_claims_fails(grounded: Any) -> None:
    (what,) = claims(grounded, "The tower stands in Paris today. " * 65)
    assert what == "makes more than 64 claims, which are not compared"


def test_what_is_not_grounded_can_be_taken_out(grounded: Any) -> None:
    record = Record()
    record.decide(Retrieved("docs", 1, 0.1, (PASSAGE,)))
    model = Told("The tower stands in Paris, 330 metres tall. Napoleon ordered it from the railway company.")
    check = Groundedness(Groundedness.Config(on_failure="redact"), "grounds", model.edge())

    async def go() -> str:
        await check.open()
        reply = await check(chat(record=record, stream=True))
        try:
            return said(await read(reply))
        finally:
            await check.close()

    assert run(go()) == "The tower stands in Paris, 330 metres tall."


def test_sentences_end_where_people_end_them() -> None:
    text = "At 3.5 m, e.g. here. Yes! No?\nA line\n1889。次。"
    assert [m[0].strip() for m in SENTENCE.finditer(text)] == [
        "At 3.5 m, e.g.",
        "here.",
        "Yes!",
        "No?",
        "A line",
        "1889。",
        "次。",
    ]

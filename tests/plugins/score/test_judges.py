"""Scorers that ask a model: what they are asked, what comes of a verdict, and that places are swapped."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.score.judge import Judge, JudgeConfig
from pipeline_plugins.score.pairwise import Pairwise, PairwiseConfig
from pipeline_plugins.score.verdict import question_of

from pipeline import Call, Reply
from pipeline.problems import ConfigError
from pipeline.stage import Edge

EXAMPLE = Example("1", {"messages": [{"role": "user", "content": "What is red?"}]}, {"expected": "good"})


class Graph:
    """A graph of which one stage judges."""

    def __init__(self, verdict: Callable[[dict[str, str]], Any]) -> None:
        self.stages = {"large": self}
        self.asked: list[Call] = []
        self._verdict = verdict

    def way_to(self, stage: str) -> Edge | None:
        return Edge("test", "judge", stage, self) if stage in self.stages else None

    async def __call__(self, call: Call) -> Reply:
        self.asked.append(call)
        shown = dict(re.findall(r"<(\w+)-\w+>\n(.*?)\n</", call.body["messages"][1]["content"], re.DOTALL))
        said = self._verdict(shown)
        content = said if isinstance(said, str) else orjson.dumps(said).decode()
        return Reply.of({"choices": [{"message": {"content": content}}]})


def scored(scorer: Any, graph: Any, answer: str) -> dict[str, float | None]:
    async def go() -> dict[str, float | None]:
        await scorer.open(graph)
        found: dict[str, float | None] = await scorer.score(
            EXAMPLE, Outcome("1", "completed", 200, answer=answer)
        )
        return found

    return asyncio.run(go())


def test_a_judge_sees_question_reference_and_answer_and_gives_a_part_of_ten() -> None:
    graph = Graph(lambda shown: {"reason": "so", "score": 7})
    assert scored(Judge(JudgeConfig(stage="large"), "judge"), graph, "mine") == {
        "judge": 0.7,
        "judge.unable": 0,
    }
    (call,) = graph.asked
    shown = call.body["messages"][1]["content"]
    assert all(text in shown for text in ("What is red?", "good", "mine"))
    assert call.body["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("said", ["no json", [], {"score": 11}, {"score": "7"}, {"score": True}, {}])
def test_a_verdict_of_no_use_is_none_and_counted(said: Any) -> None:
    judge = Judge(JudgeConfig(), "judge")
    assert scored(judge, Graph(lambda shown: said), "mine") == {"judge": None, "judge.unable": 1}


def prefers(text: str) -> Callable[[dict[str, str]], Any]:
    return lambda shown: {"reason": "", "better": "first" if shown["first"] == text else "second"}


@pytest.mark.parametrize(
    ("verdict", "value", "consistent"),
    [
        (prefers("mine"), 1.0, 1.0),
        (prefers("good"), 0.0, 1.0),
        (lambda shown: {"reason": "", "better": "equal"}, 0.5, 1.0),
        (lambda shown: {"reason": "", "better": "first"}, 0.5, 0.0),
        (lambda shown: {"reason": "", "better": "second"}, 0.5, 0.0),
    ],
)
def test_a_choice_counts_only_if_it_holds_in_both_orders(
    verdict: Any, value: float, consistent: float
) -> None:
    graph = Graph(verdict)
    found = scored(Pairwise(PairwiseConfig(), "pair"), graph, "mine")
    assert found == {"pair": value, "pair.consistent": consistent}
    assert len(graph.asked) == 2


def test_a_pair_without_a_verdict_is_left_out() -> None:
    assert scored(Pairwise(PairwiseConfig(), "pair"), Graph(lambda shown: "?"), "mine") == {}


def test_a_stage_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"there is no stage `larg`\. Did you mean `large`?"):
        scored(Judge(JudgeConfig(stage="larg"), "judge"), Graph(lambda shown: {}), "mine")


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "x"}]}]}, "a"),
        ({"prompt": "once"}, "once"),
        ({"prompt": ["once", "twice"]}, "once\ntwice"),
        ({"prompt": [1, 2]}, ""),
    ],
)
def test_the_question_of_a_recorded_call_is_found_whatever_its_form(
    body: dict[str, Any], question: str
) -> None:
    assert question_of(body) == question

"""`score=judge`: a model scores answers against a rubric."""

from __future__ import annotations

from pydantic import Field

from pipeline.graph import Graph
from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.reference import texts
from pipeline_plugins.score.verdict import Bench, Judging, question_of
from pipeline_plugins.validate.judge import SCHEMA

RUBRIC = "The answer is correct, and answers what was asked."


class JudgeConfig(Judging):
    """What is judged by."""

    rubric: str = Field(RUBRIC, min_length=1, max_length=20_000, description="What a good answer is like.")
    field: str = Field("expected", min_length=1, description="Column of an answer that is known to be good.")


class Judge:
    """A score of 0 to 10, divided by 10; `NAME.unable` is the share of verdicts that were none."""

    Config = JudgeConfig

    def __init__(self, config: JudgeConfig, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name), Metric(f"{name}.unable", "lower", None))
        self._bench = Bench(config)

    async def open(self, graph: Graph) -> None:
        """Find who judges. Raises `ConfigError`."""
        self._bench.open(graph)

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """From 0 to 1, None without a verdict."""
        shown = {"question": question_of(example.body)}
        if expected := texts(example, self.config.field):
            shown["reference"] = expected[0]
        shown["answer"] = outcome.answer or ""
        system = (
            f"You judge an answer by this rubric:\n{self.config.rubric}\n\nThe form is "
            '{"reason": "one sentence", "score": 0 to 10}, 10 where the rubric is met in full.'
        )
        verdict = await self._bench.verdict(system, shown, SCHEMA)
        value = None if verdict is None else verdict.get("score")
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10
        own, unable = (metric.name for metric in self.metrics)
        return {own: value / 10 if valid and isinstance(value, int) else None, unable: float(not valid)}

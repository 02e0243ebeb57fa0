"""`score=pairwise`: a model says which of two answers is better, asked in both orders."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.graph import Graph
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.reference import texts
from pipeline_plugins.score.verdict import Bench, Judging, question_of

RUBRIC = "The better answer is correct, complete and to the point."

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 300},
        "better": {"type": "string", "enum": ["first", "second", "equal"]},
    },
    "required": ["reason", "better"],
    "additionalProperties": False,
}
FOR_THE_FIRST = {"first": 1.0, "equal": 0.5, "second": 0.0}


class PairwiseConfig(Judging):
    """What answers are held against."""

    rubric: str = Field(
        RUBRIC, min_length=1, max_length=20_000, description="What makes an answer the better one."
    )
    against: str | None = Field(None, description="Folder of a run whose answers it is; null: the row's own.")
    field: str = Field("expected", min_length=1, description="Column of the other answer, without a run.")


class Pairwise:
    """1 where this answer is better than the other one, 0 where worse, 0.5 where equal.

    Judges favour a place. So each pair is shown in both orders: where the verdicts contradict
    each other, neither counts and the answers are equal. `NAME.consistent` is the share of
    pairs where they agree.
    """

    Config = PairwiseConfig

    def __init__(self, config: PairwiseConfig, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name), Metric(f"{name}.consistent", None, None))
        self._bench = Bench(config)
        self._run = Path(config.against or "").expanduser()
        self._others: dict[str, str | None] | None = None

    async def open(self, graph: Graph) -> None:
        """Find who judges, and read the other answers. Raises `ConfigError`."""
        self._bench.open(graph)
        if self.config.against is not None:
            from pipeline_plugins.evaluate.table import EXAMPLES, read_columns

            if not (self._run / EXAMPLES).is_file():
                raise ConfigError(
                    [Problem("against", f"there is no complete run in `{self.config.against}`.")]
                )
            try:
                found = await asyncio.to_thread(read_columns, self._run / EXAMPLES, ["id", "answer"])
            except DataError as error:
                raise ConfigError([Problem("against", str(error))]) from None
            self._others = dict(zip(found["id"], found["answer"], strict=True))

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """1, 0.5 or 0; None where there is no other answer, or a verdict is missing."""
        if self._others is not None:
            other = self._others.get(example.id)
        else:
            other = next(iter(texts(example, self.config.field)), None)
        if other is None:
            return {}
        own, question = outcome.answer or "", question_of(example.body)
        ahead = await self._first_is_better(question, own, other)
        behind = await self._first_is_better(question, other, own)
        if ahead is None or behind is None:
            return {}
        consistent = ahead == 1 - behind
        name, agreed = (metric.name for metric in self.metrics)
        return {name: ahead if consistent else 0.5, agreed: float(consistent)}

    async def _first_is_better(self, question: str, first: str, second: str) -> float | None:
        system = (
            f"You compare two answers to a question. {self.config.rubric} The form is "
            '{"reason": "one sentence", "better": "first", "second" or "equal"}.'
        )
        shown = {"question": question, "first": first, "second": second}
        verdict = await self._bench.verdict(system, shown, SCHEMA)
        return None if verdict is None else FOR_THE_FIRST.get(str(verdict.get("better")))

"""`score=similarity`: how near an answer is in meaning to an expected one."""

from __future__ import annotations

import asyncio

from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.embedding import Embedding
from pipeline_plugins.score.reference import Expecting, texts


class Similarity(Embedding):
    """The highest cosine of the answer's vector (all-MiniLM-L6-v2) with an expected one's."""

    Config = Expecting

    def __init__(self, config: Expecting, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    def applies(self, example: Example) -> bool:
        """Whether something is expected."""
        return bool(texts(example, self.config.field))

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """From -1 to 1."""
        expected = texts(example, self.config.field)
        if not expected:
            return {self.metrics[0].name: None}
        vectors = await asyncio.to_thread(
            self.embedder.embed, [outcome.answer or "", *expected], truncate=True
        )
        return {self.metrics[0].name: float((vectors[1:] @ vectors[0]).max())}

"""`score=similarity`: how near an answer is in meaning to an expected one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.reference import Expecting, texts

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.infer.minilm_embedder import Embedder


class Similarity:
    """The highest cosine of the answer's vector (all-MiniLM-L6-v2) with an expected one's."""

    Config = Expecting
    _embedder: Embedder | None = None

    def __init__(self, config: Expecting, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    async def open(self, graph: Graph) -> None:
        """Load the embedding model. Raises `ConfigError` where it is missing."""
        from pipeline_plugins.infer.minilm_embedder import Embedder

        self._embedder = await asyncio.to_thread(Embedder)

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """From -1 to 1."""
        if self._embedder is None:
            raise RuntimeError("the scorer is not open")
        expected = texts(example, self.config.field)
        if not expected:
            return {self.metrics[0].name: None}
        vectors = await asyncio.to_thread(
            self._embedder.embed, [outcome.answer or "", *expected], truncate=True
        )
        return {self.metrics[0].name: float((vectors[1:] @ vectors[0]).max())}

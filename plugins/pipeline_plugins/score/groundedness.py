"""`score=groundedness`: the share of an answer's claims that the retrieved passages support."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.validate.groundedness import claims_in, support

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.infer.minilm_embedder import Embedder


class Groundedness:
    """By the measure of `validate=groundedness`. Answers without passages or claims are left out."""

    class Config(BaseModel):
        """How close is close enough."""

        model_config = ConfigDict(extra="forbid")
        least: float = Field(0.5, ge=0, le=1, description="Support that a claim needs from a passage.")
        claim_words: int = Field(4, ge=1, le=100, description="Shorter sentences claim nothing.")

    _embedder: Embedder | None = None

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    async def open(self, graph: Graph) -> None:
        """Load the embedding model. Raises `ConfigError` where it is missing."""
        from pipeline_plugins.infer.minilm_embedder import Embedder

        self._embedder = await asyncio.to_thread(Embedder)

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """From 0 to 1."""
        if self._embedder is None:
            raise RuntimeError("the scorer is not open")
        claims = [claim[0] for claim in claims_in(outcome.answer or "", self.config.claim_words)]
        if not outcome.passages or not claims:
            return {self.metrics[0].name: None}
        found = await asyncio.to_thread(support, self._embedder, claims, outcome.passages)
        return {self.metrics[0].name: sum(one >= self.config.least for one in found) / len(found)}

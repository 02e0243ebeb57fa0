"""`score=groundedness`: the share of an answer's claims that the retrieved passages support."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.embedding import Embedding
from pipeline_plugins.validate.groundedness import claims_in, support


class Groundedness(Embedding):
    """By the measure of `validate=groundedness`. Answers without passages or claims are left out."""

    class Config(BaseModel):
        """How close is close enough."""

        model_config = ConfigDict(extra="forbid")
        least: float = Field(0.5, ge=0, le=1, description="Support that a claim needs from a passage.")
        claim_words: int = Field(4, ge=1, le=100, description="Shorter sentences claim nothing.")

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    async def score(self, example: Example, outcome: Outcome) -> Scores:
        """From 0 to 1."""
        claims = [claim[0] for claim in claims_in(outcome.answer or "", self.config.claim_words)]
        if not outcome.passages or not claims:
            return {self.metrics[0].name: None}
        found = await asyncio.to_thread(support, self.embedder, claims, outcome.passages)
        return {self.metrics[0].name: sum(one >= self.config.least for one in found) / len(found)}

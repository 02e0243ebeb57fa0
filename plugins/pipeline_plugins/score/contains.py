"""`score=contains`: whether what was expected is somewhere in the answer."""

from __future__ import annotations

from pydantic import Field

from pipeline_plugins.score.reference import Expecting, Reference, normalised


class ContainsConfig(Expecting):
    """How strictly."""

    normalise: bool = Field(True, description="Leave case, punctuation, articles and space out.")


class Contains(Reference):
    """1 where an expected text is in the answer, as whole words where both are normalised."""

    Config = ContainsConfig

    def __init__(self, config: ContainsConfig, name: str) -> None:
        super().__init__(config, name)
        self._normalise = config.normalise

    def likeness(self, answer: str, expected: str) -> float:
        """1 or 0."""
        if not self._normalise:
            return float(expected in answer)
        return float(f" {normalised(expected)} " in f" {normalised(answer)} ")

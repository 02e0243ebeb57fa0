"""`score=exact_match`: whether an answer is one that was expected."""

from __future__ import annotations

from pydantic import Field

from pipeline_plugins.score.reference import Expecting, Reference, normalised


class ExactMatchConfig(Expecting):
    """How strictly."""

    normalise: bool = Field(
        True,
        description="Leave case, punctuation, articles and space out, as SQuAD does; else only outer space.",
    )


class ExactMatch(Reference):
    """1 where the answer equals an expected one, else 0."""

    Config = ExactMatchConfig

    def __init__(self, config: ExactMatchConfig, name: str) -> None:
        super().__init__(config, name)
        self._form = normalised if config.normalise else str.strip

    def likeness(self, answer: str, expected: str) -> float:
        """1 or 0."""
        return float(self._form(answer) == self._form(expected))

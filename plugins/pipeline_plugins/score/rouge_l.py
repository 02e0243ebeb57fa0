"""`score=rouge_l`: the longest common subsequence of words with an expected answer."""

from __future__ import annotations

from pydantic import Field

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.score.reference import Expecting, Reference


class RougeLConfig(Expecting):
    """How words are compared."""

    stem: bool = Field(True, description="Compare word stems (Porter).")


class RougeL(Reference):
    """ROUGE-L's F measure, by Google's `rouge-score`."""

    Config = RougeLConfig

    def __init__(self, config: RougeLConfig, name: str) -> None:
        super().__init__(config, name)
        try:
            from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
        except ImportError as error:
            hint = "pip install 'llm-pipeline[eval]'"
            raise ConfigError([Problem("", f"ROUGE needs {error.name}.", hint)]) from None
        self._scorer = RougeScorer(["rougeL"], use_stemmer=config.stem)

    def likeness(self, answer: str, expected: str) -> float:
        """From 0 to 1."""
        return float(self._scorer.score(expected, answer)["rougeL"].fmeasure)

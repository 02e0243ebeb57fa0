"""`score=regex`: whether an answer matches a pattern."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.reference import texts


class Regex:
    """1 where the pattern is found in the answer, else 0. Patterns are RE2's, whose time is linear."""

    class Config(BaseModel):
        """The pattern: one for all examples, or each row's own."""

        model_config = ConfigDict(extra="forbid")
        pattern: str | None = Field(None, description="For all examples; null: each row's own.")
        field: str = Field("pattern", min_length=1, description="Column of a row's own pattern.")
        whole: bool = Field(False, description="The whole answer must match.")

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)
        try:
            import re2  # type: ignore[import-untyped]
        except ImportError:
            hint = "pip install 'llm-pipeline[validate]'"
            raise ConfigError([Problem("", "patterns need google-re2.", hint)]) from None
        self._re2: Any = re2
        if config.pattern is not None:
            try:
                self._re2.compile(config.pattern)
            except re2.error as error:
                raise ConfigError([Problem("pattern", f"it is not a pattern: {_said(error)}")]) from None

    def applies(self, example: Example) -> bool:
        """Whether there is a pattern."""
        return bool(self._patterns(example))

    def _patterns(self, example: Example) -> list[str]:
        given = self.config.pattern
        return [given] if given is not None else texts(example, self.config.field)

    def score(self, example: Example, outcome: Outcome) -> Scores:
        """1 or 0; None where there is no pattern."""
        own = self._patterns(example)
        if not own:
            return {self.metrics[0].name: None}
        find = self._re2.fullmatch if self.config.whole else self._re2.search
        try:
            matches = any(find(pattern, outcome.answer or "") is not None for pattern in own)
        except self._re2.error as error:
            raise DataError(f"`{self.config.field}` is not a pattern: {_said(error)}") from None
        return {self.metrics[0].name: float(matches)}


def _said(error: Exception) -> str:
    found = error.args[0] if error.args else ""
    return found.decode() if isinstance(found, bytes) else str(found)

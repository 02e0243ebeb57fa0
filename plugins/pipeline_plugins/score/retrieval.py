"""`score=retrieval`: whether the passages that were found are those that answer the question."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.example import Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores
from pipeline_plugins.score.reference import texts

WORD = re.compile(r"\w+")


class Retrieval:
    """Ranking measures of `ir_measures`, against the row's relevant texts.

    A passage finds a relevant text if it has at least `overlap` of its words, in a row's order
    or not; a text that was found again counts no further. Examples without relevant texts are
    left out, those without passages found nothing.
    """

    class Config(BaseModel):
        """What is measured, and when a text is found."""

        model_config = ConfigDict(extra="forbid")
        field: str = Field("relevant", min_length=1, description="Column of the relevant text, or of a list.")
        measures: list[str] = Field(
            ["R@5", "nDCG@5", "RR"], min_length=1, description="Measures by their names in `ir_measures`."
        )
        overlap: float = Field(
            0.5, gt=0, le=1, description="Share of a text's words that a passage must have."
        )

        @field_validator("measures")
        @classmethod
        def _are_known(cls, value: list[str]) -> list[str]:
            library = _library()
            for name in value:
                try:
                    library.parse_measure(name)
                except (NameError, ValueError, KeyError, SyntaxError):
                    raise ValueError(
                        f"`{name}` is no measure; expected one such as `R@5`, `nDCG@10`, `RR`, `AP`"
                    ) from None
            return value

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self._measures = [_library().parse_measure(measure) for measure in config.measures]
        self.metrics = tuple(Metric(f"{name}.{measure}") for measure in config.measures)

    def applies(self, example: Example) -> bool:
        """Whether something is relevant."""
        return bool(texts(example, self.config.field))

    def score(self, example: Example, outcome: Outcome) -> Scores:
        """Each measure."""
        relevant = [_words(text) for text in texts(example, self.config.field)]
        if not relevant:
            return {}
        ranked: dict[str, float] = {}
        missing = set(range(len(relevant)))
        for rank, passage in enumerate(outcome.passages):
            words, least = _words(passage), self.config.overlap
            found = {at for at in missing if len(relevant[at] & words) >= least * len(relevant[at])}
            missing -= found
            for text in map(str, found) if found else [f"other {rank}"]:
                ranked[text] = -float(rank)
        judged = {"q": {str(at): 1 for at in range(len(relevant))}}
        scored = _library().calc_aggregate(self._measures, judged, {"q": ranked}) if ranked else {}
        return {
            metric.name: float(scored.get(measure, 0.0))
            for metric, measure in zip(self.metrics, self._measures, strict=True)
        }


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def _library() -> Any:
    try:
        import ir_measures
    except ImportError:
        raise ConfigError(
            [Problem("", "retrieval measures need ir-measures.", "pip install 'llm-pipeline[eval]'")]
        ) from None
    return ir_measures

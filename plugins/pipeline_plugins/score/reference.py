"""What scorers have in common that hold an answer to what was expected."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Expecting(BaseModel):
    """Where the expected answers are."""

    model_config = ConfigDict(extra="forbid")
    field: str = Field("expected", min_length=1, description="Column of the expected answer, or of a list.")


class Reference:
    """The best of an answer's likenesses to any of the expected ones; examples without one are left out."""

    Config: ClassVar[type[Expecting]] = Expecting

    def __init__(self, config: Expecting, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    def likeness(self, answer: str, expected: str) -> float:
        """From 0 to 1."""
        raise NotImplementedError

    def applies(self, example: Example) -> bool:
        """Whether something is expected."""
        return bool(texts(example, self.config.field))

    def score(self, example: Example, outcome: Outcome) -> Scores:
        """The metric of this scorer's name."""
        return {self.metrics[0].name: best(self.config.field, self.likeness, example, outcome)}


def best(
    field: str, likeness: Callable[[str, str], float], example: Example, outcome: Outcome
) -> float | None:
    """The highest likeness; None where nothing is expected."""
    expected = texts(example, field)
    return max((likeness(outcome.answer or "", one) for one in expected), default=None)


def texts(example: Example, field: str) -> list[str]:
    """A column's text, or texts. Raises `DataError` for anything else."""
    found = example.fields.get(field)
    if found is None:
        return []
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(one, str | int | float) for one in listed):
        raise DataError(f"`{field}` is neither a text nor a list of texts.")
    return [str(one) for one in listed]


def normalised(text: str) -> str:
    """As SQuAD's evaluation does: lower case, without punctuation, articles and runs of space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())

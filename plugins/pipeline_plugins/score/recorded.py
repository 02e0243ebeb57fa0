"""`score=recorded`: what is on record of the target that answered."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores

WORDS = {"true": 1.0, "false": 0.0}


class Recorded:
    """The value of the row's column for the route that was taken, say `large_right`.

    For routers, judged by how well each target is known to have answered: nothing has to be
    answered anew. Examples that no router sent on are left out.
    """

    class Config(BaseModel):
        """Where the record is."""

        model_config = ConfigDict(extra="forbid")
        field: str = Field(
            "{route}_right", pattern=r"\{route\}", description="Column, `{route}` being the target."
        )

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)

    def score(self, example: Example, outcome: Outcome) -> Scores:
        """The recorded number. Raises `DataError` where the row has none."""
        if outcome.route is None:
            return {}
        field = self.config.field.replace("{route}", outcome.route)
        try:
            value = example.fields[field]
            return {self.metrics[0].name: float(WORDS.get(str(value).lower(), value))}
        except (KeyError, TypeError, ValueError):
            raise DataError(f"`{field}` is not a number.") from None

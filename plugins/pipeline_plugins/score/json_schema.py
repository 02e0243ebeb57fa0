"""`score=json_schema`: whether an answer is JSON that fits a schema."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.example import DataError, Example, Outcome
from pipeline_plugins.evaluate.metric import Metric, Scores


class JSONSchema:
    """1 where the answer is JSON and fits the schema; without a schema, where it is JSON.

    What a `$ref` points to is within the schema: nothing is fetched or read.
    """

    class Config(BaseModel):
        """The schema: one for all examples, or each row's own."""

        model_config = ConfigDict(extra="forbid")
        json_schema: dict[str, Any] | None = Field(
            None, description="For all examples; null: each row's own."
        )
        field: str = Field("schema", min_length=1, description="Column of a row's own schema, as JSON.")

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.metrics = (Metric(name),)
        self._known: dict[bytes, Any] = {}
        try:
            import jsonschema_rs
        except ImportError:
            hint = "pip install 'llm-pipeline[validate]'"
            raise ConfigError([Problem("", "schemas need jsonschema-rs.", hint)]) from None
        self._library: Any = jsonschema_rs
        if config.json_schema is not None:
            try:
                self._fits(config.json_schema, None)
            except DataError as error:
                raise ConfigError([Problem("json_schema", str(error))]) from None

    def score(self, example: Example, outcome: Outcome) -> Scores:
        """1 or 0."""
        schema = self.config.json_schema
        if schema is None:
            schema = example.fields.get(self.config.field, {})
            schema = _parsed(schema, self.config.field) if isinstance(schema, str) else schema
        try:
            value = orjson.loads(outcome.answer or "")
        except orjson.JSONDecodeError:
            return {self.metrics[0].name: 0.0}
        return {self.metrics[0].name: float(self._fits(schema, value))}

    def _fits(self, schema: Any, value: Any) -> bool:
        key = orjson.dumps(schema)
        if key not in self._known:
            try:
                self._known[key] = self._library.validator_for(schema, offline=True)
            except (self._library.ValidationError, ValueError) as error:
                raise DataError(f"it is not a JSON schema: {str(error).splitlines()[0]}") from None
        return bool(self._known[key].is_valid(value))


def _parsed(text: str, field: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise DataError(f"`{field}` is not JSON.") from None

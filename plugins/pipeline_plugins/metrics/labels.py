"""Label values: what the configuration knows, and one word for all else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.stage import DEFAULT_NAMES, Model

OTHER = "other"
"""The model of every name that the configuration does not know: clients can send any number."""

OTHER_ERROR = "_OTHER"
"""The conventions' word for an error without a name of its own."""

ERRORS = 100
"""Error types told apart. They are written in code, all but what an upstream may say."""


class Names:
    """The model names and error types that have series of their own."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = frozenset(more)
        self._models = DEFAULT_NAMES | self._more
        self._errors: set[str] = set()
        self._stages: dict[str, str] = {}

    def learn(self, stages: Mapping[str, Iterable[Model]], reached: Iterable[Model]) -> None:
        """Know the models of each stage, and those that calls reach; forget those of a former graph."""
        own = {stage: tuple(models) for stage, models in stages.items()}
        every = (*reached, *(model for models in own.values() for model in models))
        found = {name for model in every for name in (model.id, *model.aliases) if name is not None}
        self._models = DEFAULT_NAMES | self._more | found
        single = {stage: models[0].id for stage, models in own.items() if len(models) == 1}
        self._stages = {stage: name for stage, name in single.items() if name is not None}

    def of_stage(self, stage: str) -> str | None:
        """The model of a stage that has one, whatever it was asked for."""
        return self._stages.get(stage)

    def model(self, name: str) -> str:
        """A model's label."""
        return name if name in self._models else OTHER

    def error(self, type: str) -> str:
        """An error type's label."""
        if type not in self._errors:
            if len(self._errors) >= ERRORS:
                return OTHER_ERROR
            self._errors.add(type)
        return type

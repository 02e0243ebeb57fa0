"""Whose calls a rule counts together; the words that every limit shares."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal

from pipeline import Call, Edge, Model

Scope = Literal["key", "owner", "model", "global"]
"""`key`: each key apart; `owner`: all keys of one owner together; `model`: each model apart,
for all who use it; `global`: everything together."""

CHOICES_KEPT = 1024
"""Names whose model is remembered; clients can send any number of them."""


def subject(scope: Scope, call: Call, model: str) -> str:
    """What a call is counted under within a scope; `model` comes from `Reached.name`."""
    if scope == "key":
        return call.tenant.key
    if scope == "owner":
        return call.tenant.owner
    return model if scope == "model" else ""


class Reached:
    """Which model a call will probably reach along an edge."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._known: dict[tuple[str, str, frozenset[str] | None], Model | None] = {}

    def model(self, call: Call) -> Model | None:
        """The model, one of that name before one that takes any; None where none fits."""
        asked = (call.operation, call.model, call.tenant.models)
        if asked in self._known:
            return self._known[asked]
        fitting = [model for model in self._edge.models if model.offered(call)]
        found = min(fitting, key=lambda model: model.id is None, default=None)
        if len(self._known) < CHOICES_KEPT:
            self._known[asked] = found
        return found

    def name(self, model: Model | None, call: Call, named: Container[str] = ()) -> str:
        """A name to count under: the model's own, or one of those `named` in the configuration.

        Names that clients make up are all `*`: else a new name would be a new limit.
        """
        if call.model in named:
            return call.model
        return "*" if model is None or model.id is None else model.id

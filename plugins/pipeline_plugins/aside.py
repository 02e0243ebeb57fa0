"""Calls that a stage makes of its own, on the way of one that it was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline import Call, Record


def aside(call: Call, operation: str, body: dict[str, Any]) -> Call:
    """A call for the operator's own target, on the way of another: whatever models the key may use."""
    return Call(
        id=call.id,
        operation=operation,
        body=body,
        deadline=call.deadline,
        received=call.received,
        tenant=replace(call.tenant, models=None),
        headers=call.headers,
        # What its stages decide is not about the call that it helps; what they spend is.
        record=Record(steps=call.record.steps, helps=call.record),
    )

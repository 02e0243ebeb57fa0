"""Guards: metrics of which a variant may be worse than the control by so much, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Guard(BaseModel):
    """What a variant must not be."""

    model_config = ConfigDict(extra="forbid")

    metric: Literal["failed", "invalid", "latency_s", "ttft_s", "cost_usd", "completion_tokens"] = Field(
        description="What is watched; less of each is better."
    )
    worse_by: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="How much more than the control's mean is allowed, in the metric's unit; "
        "for `failed` and `invalid` 0.05 is five points of percent.",
    )


@dataclass(slots=True, frozen=True)
class Broken:
    """A guard that a variant has broken for certain: by at least `low`, at most `high`."""

    variant: str
    metric: str
    low: float
    high: float

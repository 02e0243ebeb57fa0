"""`eval=graph`: how examples are run, and how what comes of them is summed up."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Evaluation(BaseModel):
    """The config node `eval`."""

    model_config = ConfigDict(extra="forbid")

    dir: str = Field("runs", min_length=1, description="Folder in which runs and sweeps get theirs.")
    concurrency: int = Field(8, ge=1, le=4096, description="Examples under way at a time.")
    speed: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Send recorded calls when they are due, at this many times their own pace, however slow "
        "answers are; null: as fast as `concurrency` allows.",
    )
    request: dict[str, Any] = Field(
        default_factory=dict, description="Fields of each request that its row does not have."
    )
    stream: bool = Field(False, description="Ask for streams, which have a time to the first chunk.")
    owner: str = Field("anonymous", min_length=1, max_length=256, description="Owner that the calls are of.")
    quality: str | None = Field(
        None, max_length=256, description="Metric that `quality` stands for; null: the first scorer's first."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of resampling, and of examples drawn from the data.")
    resamples: int = Field(2000, ge=100, le=100_000, description="Resamples of an interval's bootstrap.")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="Of intervals.")
    objective: list[str] = Field(
        default_factory=lambda: ["quality"],
        min_length=1,
        max_length=8,
        description="Metrics that a sweeper which optimises is told, in its order of directions.",
    )
    reuse: bool = Field(
        True,
        description="Sweeps: take a model's answer to an equal request from another point of the sweep, "
        "with the time and cost that it had there.",
    )


class GraphEvaluation:
    """Runs each example through the composed graph, in this process."""

    Config = Evaluation

    def __init__(self, config: Evaluation) -> None:
        self.config = config

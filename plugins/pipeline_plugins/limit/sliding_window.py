"""`limit=sliding_window`: never more than so much in any 60 seconds."""

from __future__ import annotations

from pipeline import Edge
from pipeline_plugins.limit.buckets import SlidingWindows
from pipeline_plugins.limit.rate import RateConfig, RateLimit


class SlidingWindow(RateLimit):
    """Lets through what keeps every span of 60 seconds within the limit."""

    Config = RateConfig
    algorithm = "sliding_window"

    def __init__(self, config: RateConfig, next: Edge, name: str) -> None:
        super().__init__(config, next, name)
        self.local = SlidingWindows()

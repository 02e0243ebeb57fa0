"""`limit=token_bucket`: so much per minute, filling up evenly; short bursts pass."""

from __future__ import annotations

from pipeline import Edge
from pipeline_plugins.limit.buckets import TokenBuckets
from pipeline_plugins.limit.rate import RateConfig, RateLimit


class TokenBucket(RateLimit):
    """Lets through bursts up to a limit per minute, and its rate after that."""

    Config = RateConfig
    algorithm = "token_bucket"

    def __init__(self, config: RateConfig, next: Edge, name: str) -> None:
        super().__init__(config, next, name)
        self.local = TokenBuckets()

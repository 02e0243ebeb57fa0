"""`cache=acme`: answers a request that was answered before."""

from time import monotonic

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Reply
from pipeline.kinds import Cached


class Cache:
    """Keeps whole replies in memory."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        ttl: float = Field(60.0, gt=0, description="Seconds that a reply is kept.")
        size: int = Field(1000, ge=1, le=100_000, description="Replies kept at most.")

    def __init__(self, config: Config, next: Edge) -> None:
        self.config, self.next = config, next
        self.replies: dict[tuple[str, bytes], tuple[float, bytes]] = {}

    async def __call__(self, call: Call) -> Reply:
        key, now = (call.tenant.key, call.raw), monotonic()
        kept = self.replies.get(key)
        hit = kept is not None and kept[0] > now
        call.record.decide(Cached("hit" if hit else "miss"))
        call.record.headers["x-pipeline-cache"] = "hit" if hit else "miss"
        if kept is not None and hit:
            return Reply(body=kept[1])
        reply = await self.next(call)
        if reply.body is not None and len(self.replies) < self.config.size:
            self.replies[key] = (now + self.config.ttl, reply.body)
        return reply

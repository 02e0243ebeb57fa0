"""`audit=acme`: a kind that the framework does not know, with an address of its own."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Reply, hookimpl
from pipeline.hookspecs import Route


class Audit:
    """Counts calls, and shows the count at `/acme/audit`."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        label: str = Field("calls", description="What the count is called.")

    def __init__(self, config: Config, next: Edge) -> None:
        self.config, self.next, self.calls = config, next, 0

    async def __call__(self, call: Call) -> Reply:
        self.calls += 1
        return await self.next(call)

    @hookimpl
    def pipeline_routes(self) -> list[Route]:
        return [Route("/acme/audit", self.show)]

    async def show(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps({self.config.label: self.calls}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

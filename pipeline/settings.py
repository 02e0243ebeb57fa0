"""The server's own settings: the `server` config group."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ServerConfig(BaseModel):
    """Where the server listens, and the bounds it holds clients to."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", description="Address to bind; off loopback only with authentication.")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 picks a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that accept connections on the port.")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Host headers accepted, `*.example.org` too; empty accepts any."
    )
    backlog: int = Field(2048, ge=1, le=65_535, description="Connections that may wait to be accepted.")
    max_connections: int = Field(4096, ge=1, le=1_000_000, description="Open connections per worker.")
    max_header_bytes: int = Field(65_536, ge=1_024, le=1_048_576, description="Request line and headers.")
    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1_024, le=1_073_741_824, description="Body of a request."
    )
    header_timeout: Seconds = Field(10.0, description="Seconds to receive all headers.")
    body_timeout: Seconds = Field(60.0, description="Seconds to receive a whole body.")
    write_timeout: Seconds = Field(60.0, description="Seconds that a client may stop reading its answer.")
    keep_alive: Seconds = Field(75.0, description="Seconds an idle connection stays open.")
    call_timeout: Seconds = Field(
        600.0, description="Seconds for one call, from request to the answer's end."
    )
    drain_timeout: Seconds = Field(30.0, description="Seconds for running calls to end after SIGTERM.")

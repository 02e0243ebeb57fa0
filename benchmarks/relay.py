"""The least that any proxy costs: a relay on uvloop that only receives and sends."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import uvloop


class Upstream(asyncio.Protocol):
    """The connection to the upstream; what comes goes to the client."""

    def __init__(self, client: asyncio.Transport) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self.client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        self.client.close()


class Client(asyncio.Protocol):
    """A client's connection; what comes goes to the upstream once that is there."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.held = bytearray()
        self.upstream: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the upstream."""
        self.connecting = asyncio.get_running_loop().create_task(self._connect(transport))

    async def _connect(self, transport: Any) -> None:
        loop = asyncio.get_running_loop()
        made, _ = await loop.create_connection(lambda: Upstream(transport), "127.0.0.1", self.port)
        self.upstream = cast("asyncio.Transport", made)
        self.upstream.write(bytes(self.held))

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self.upstream is None:
            self.held += data
        else:
            self.upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        if self.upstream is not None:
            self.upstream.close()


async def main(port: int) -> None:
    """Relay to a port of this machine until killed."""
    server = await asyncio.get_running_loop().create_server(lambda: Client(port), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))

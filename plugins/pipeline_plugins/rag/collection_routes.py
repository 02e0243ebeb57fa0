"""Collections put in order and taken back to earlier versions over HTTP, each tenant's own alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline import Route
from pipeline.server.exchange import send_json
from pipeline_plugins.rag.routes import PATH, Body, Receive, Scope, Send, body_of, which

if TYPE_CHECKING:
    from pipeline_plugins.rag.documents import Documents
    from pipeline_plugins.rag.stage import Hybrid


class Restore(Body):
    """Which version to go back to."""

    version: int = Field(ge=1, description="One of the collection's versions.")


def routes(stage: Hybrid) -> Iterable[Route]:
    """The addresses below a collection's own. They act on what the key's owner has."""
    upkeep = _Upkeep(stage.documents)
    one, post = f"{PATH}/collections/{{name}}", ("POST",)
    yield Route(f"{one}/versions", upkeep.versions, about="The versions that can be restored.")
    yield Route(f"{one}/restore", upkeep.restore, methods=post, about="Go back to a version.", body=Restore)
    yield Route(f"{one}/compact", upkeep.compact, methods=post, about="Put a collection in order.")
    yield Route(f"{one}/index", upkeep.index, methods=post, about="Build the indexes anew.")


class _Upkeep:
    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def versions(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The versions, the latest first."""
        found = await self._documents.store.versions(*which(scope))
        await send_json(send, {"object": "list", "data": [version.shown() for version in found]})

    async def restore(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go back to a version."""
        wanted = await body_of(Restore, receive)
        await self._documents.store.restore(*which(scope), wanted.version)
        await self._tell(scope, send)

    async def compact(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put files and indexes in order now."""
        keep = timedelta(days=self._documents.config.keep_days)
        await self._documents.store.tidy(*which(scope), keep)
        await self._tell(scope, send)

    async def index(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Build the indexes anew."""
        await self._documents.store.rebuild(*which(scope))
        await self._tell(scope, send)

    async def _tell(self, scope: Scope, send: Send) -> None:
        await send_json(send, (await self._documents.store.describe(*which(scope))).shown())

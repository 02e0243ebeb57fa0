"""`POST /v1/feedback`: what a client says of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline import Tenant
from pipeline.errors import NotFound, Overloaded
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable
from pipeline_plugins.ledger.rows import text
from pipeline_plugins.ledger.store import Store

PATH = "/v1/feedback"

MAX_BODY = 64 * 1024
BODY_SECONDS = 10.0

ANSWER_SECONDS = 5.0
"""How long the database may take."""

T = TypeVar("T")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def _no_flag(value: Any) -> Any:
    """`true` equals 1, but whoever sends it does not mean the worst of five."""
    return str(value).lower() if isinstance(value, bool) else value


class Feedback(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(
        min_length=1, max_length=128, description="The answer's id (`chatcmpl-…`), or its `x-request-id`."
    )
    rating: Annotated[Literal[1, 2, 3, 4, 5, "up", "down"], BeforeValidator(_no_flag)] = Field(
        description="1 to 5, or `up` or `down`."
    )
    comment: str | None = Field(None, max_length=4096, description="Why, in words.")
    label: str | None = Field(None, max_length=64, description="A word to count by.")


class Desk:
    """Takes feedback on calls of the tenant's own; administrators may rate any.

    `connect` opens the tables. `patience` is in seconds: how long the row of a call that has
    just ended may take to be written, by whichever process had the call.
    """

    def __init__(self, connect: Callable[[], Store], patience: float) -> None:
        self.taken = 0
        self._connect = connect
        self._store: Store | None = None
        self._patience = patience
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        raw = parse(await read_body(receive, MAX_BODY, BODY_SECONDS))
        check(Feedback, raw)
        given = Feedback.model_validate(raw)
        tenant: Tenant = scope["tenant"]
        owner = None if tenant.admin else tenant.owner
        call = await self._find(given.id, owner)
        if call is None:
            await asyncio.sleep(self._patience)
            call = await self._find(given.id, owner)
        if call is None:
            raise NotFound(f"No call of yours has the id `{given.id}`.", param="id", code="call_not_found")
        comment, label = text(given.comment), text(given.label)
        await self._do(lambda store: store.rate(call, str(given.rating), comment, label))
        self.taken += 1
        await send_json(send, {"object": "feedback", "request_id": call, "rating": given.rating})

    async def close(self) -> None:
        """Close the connection."""
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

    async def _find(self, id: str, owner: str | None) -> str | None:
        if "\0" in id:  # which no call has, and PostgreSQL takes in no text
            return None
        return await self._do(lambda store: store.find(id, owner))

    async def _do(self, work: Callable[[Store], T]) -> T:
        """Work on the tables, in a thread; one at a time."""

        given_up = False

        def connected() -> T:
            if (store := self._store) is not None:
                try:
                    return work(store)
                except Unavailable:
                    # One that was open may have been closed from the other side since it was last used.
                    if given_up:
                        raise
                    store.close()
            self._store = self._connect()
            return work(self._store)

        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._lock:
                return await asyncio.to_thread(connected)
        except TimeoutError:
            given_up = True
            if self._store is not None and not self._lock.locked():
                self._store.database.abort()
        except (Unavailable, Unusable, Refused, OSError):
            await self.close()
        raise Overloaded(
            "The ledger does not answer.", code="ledger_unavailable", headers=((b"retry-after", b"1"),)
        )

"""The admin API: keys are listed, issued, changed, rotated and revoked at `/v1/admin/keys`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InvalidRequest, NotFound, Overloaded
from pipeline.hookspecs import Route
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.keys.key import Key, KeyChange, KeySpec
from pipeline_plugins.keys.ring import Ring
from pipeline_plugins.keys.store import NoSuchKey, StoreDown, change, create, revoke, rotate

PATH = "/v1/admin/keys"

MAX_BODY = 256 * 1024
BODY_SECONDS = 10.0

T = TypeVar("T")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Page(BaseModel):
    """Which part of the list is wanted."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000, description="Keys to list.")
    after: str = Field("", max_length=64, description="The id after which the page begins.")


class Rotation(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid")

    grace: int = Field(0, ge=0, le=31_536_000, strict=True, description="Seconds the old secret stays good.")


def routes(ring: Ring) -> Iterable[Route]:
    """All addresses, for administrators alone."""
    admin = _Admin(ring)
    yield Route(PATH, admin.all, methods=("GET", "POST"), admin=True)
    yield Route(f"{PATH}/*", admin.one, methods=("GET", "POST", "DELETE"), admin=True)


class _Admin:
    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._store = ring.store

    async def all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The list, or a new key."""
        if scope["method"] == "POST":
            body = await _body(KeySpec, receive)
            _check_end(body.get("expires_at"))
            await send_json(send, self._issued(*await self._done(create(self._store, KeySpec(**body)))))
            return
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        check(Page, query)
        page = Page.model_validate(query)
        keys = await self._done(self._store.all())
        if page.after:
            place = next((index for index, key in enumerate(keys) if key.id == page.after), None)
            if place is None:
                raise _no_such_key(page.after, "after")
            keys = keys[place + 1 :]
        now = time.time()
        data = [key.shown(now) for key in keys[: page.limit]]
        await send_json(send, {"object": "list", "data": data, "has_more": len(keys) > page.limit})

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One key: shown, changed, revoked or, below it, rotated."""
        path: str = scope["path"].removeprefix(f"{PATH}/")
        id, _, verb = path.partition("/")
        if verb not in ("", "rotate") or not id or (verb and scope["method"] != "POST"):
            raise NotFound(f"There is no `{scope['path'][:256]}` for {scope['method']}.")
        if verb:
            body = await _body(Rotation, receive)
            await send_json(send, self._issued(*await self._done(rotate(self._store, id, **body))))
            return
        if scope["method"] == "POST":
            body = await _body(KeyChange, receive)
            key = await self._done(change(self._store, id, KeyChange(**body)))
        elif scope["method"] == "DELETE":
            key = await self._done(revoke(self._store, id))
        else:
            found = await self._done(self._store.find(id))
            if found is None:
                raise _no_such_key(id)
            key = found
        self._ring.forget(id)
        await send_json(send, key.shown(time.time()))

    def _issued(self, key: Key, held: str) -> dict[str, Any]:
        self._ring.forget(key.id)
        return {**key.shown(time.time()), "value": held}

    async def _done(self, work: Awaitable[T]) -> T:
        """The result of work on the store, its failures as a client reads them."""
        try:
            return await work
        except NoSuchKey as error:
            raise _no_such_key(str(error.args[0])) from None
        except StoreDown:
            raise Overloaded(
                "The store of keys does not answer.",
                code="keys_unavailable",
                headers=((b"retry-after", b"1"),),
            ) from None
        except ValueError as error:
            raise InvalidRequest(str(error), code="key_revoked") from None


def _check_end(expires_at: int | None) -> None:
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequest(
            f"`expires_at` is in the past: {expires_at} is before now, {int(time.time())}.",
            param="expires_at",
            code="invalid_value",
        )


def _no_such_key(id: str, param: str = "id") -> NotFound:
    return NotFound(f"There is no key `{id[:64]}`.", param=param, code="key_not_found")


async def _body(model: type[BaseModel], receive: Receive) -> dict[str, Any]:
    """A request's body, checked; an empty one is an empty object."""
    body = parse(await read_body(receive, MAX_BODY, BODY_SECONDS) or b"{}")
    check(model, body)
    return body

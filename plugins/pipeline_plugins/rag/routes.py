"""Documents put in, listed and deleted over HTTP, each tenant's own alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline import Route
from pipeline.errors import InvalidRequest, MethodNotAllowed, NotFound
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.rag.chunk import Document

if TYPE_CHECKING:
    from pipeline_plugins.rag.stage import Hybrid

PATH = "/v1/rag"
MAX_BODY = 16 * 1024 * 1024
BODY_SECONDS = 60.0

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
M = TypeVar("M", bound=BaseModel)

Id = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .:/-]{0,63}$")]
Value = bool | int | float | Annotated[str, StringConstraints(max_length=4096)]


class Body(BaseModel):
    """What all bodies here have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NewDocument(Body):
    """A document as a client sends it; `source` and `page` of its metadata are what citations name."""

    id: Id = Field(description="A later document with the same id replaces it.")
    text: str = Field(max_length=MAX_BODY, description="What is to be searched.")
    metadata: dict[Key, Value] = Field(default_factory=dict, max_length=32, description="For filters.")

    def document(self) -> Document:
        """The document to store."""
        source, page = self.metadata.get("source"), self.metadata.get("page")
        return Document(
            self.id,
            self.text,
            source=source if isinstance(source, str) else "",
            page=page if type(page) is int and 0 <= page < 2**31 else None,
            metadata=self.metadata,
        )


class NewDocuments(Body):
    """Documents to put in."""

    documents: list[NewDocument] = Field(min_length=1, max_length=1024, description="With different ids.")

    @field_validator("documents")
    @classmethod
    def _differ(cls, documents: list[NewDocument]) -> list[NewDocument]:
        if len({document.id for document in documents}) < len(documents):
            raise ValueError("two documents have the same id")
        return documents


class Gone(Body):
    """Documents to delete."""

    ids: list[Id] = Field(min_length=1, max_length=1024, description="Ids of documents.")


def routes(stage: Hybrid) -> Iterable[Route]:
    """The addresses of collections. They act on what the key's owner has."""
    api = _API(stage)
    yield Route(f"{PATH}/collections", api.collections)
    yield Route(f"{PATH}/collections/*", api.collection, methods=("GET", "POST", "DELETE"))


class _API:
    def __init__(self, stage: Hybrid) -> None:
        self._documents = stage.documents

    async def collections(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The tenant's collections."""
        owner, store = scope["tenant"].owner, self._documents.store
        data = [(await store.describe(owner, name)).shown() for name in await store.names(owner)]
        await send_json(send, {"object": "list", "data": data})

    async def collection(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One collection, shown or deleted, or documents below it."""
        owner, method = scope["tenant"].owner, scope["method"]
        name, _, rest = scope["path"].removeprefix(f"{PATH}/collections/").partition("/")
        store = self._documents.store
        if rest == "documents":
            if method == "POST":
                new = await body_of(NewDocuments, receive)
                done = await self._documents.put(owner, name, [one.document() for one in new.documents])
                answer = {"changed": done.changed, "unchanged": done.unchanged, "chunks": done.chunks}
                await send_json(send, {"object": "rag.ingested", "collection": name, **answer})
            elif method == "DELETE":
                gone = await body_of(Gone, receive)
                await send_json(send, {"deleted": await store.delete(owner, name, gone.ids)})
            else:
                raise _not_allowed("POST and DELETE", b"DELETE, POST")
        elif rest:
            raise NotFound(f"There is no `{scope['path'][:256]}`.")
        elif method == "POST":
            raise _not_allowed("GET and DELETE", b"DELETE, GET")
        elif method == "DELETE":
            await store.drop(owner, name)
            await send_json(send, {"name": name, "deleted": True})
        else:
            await send_json(send, (await store.describe(owner, name)).shown())


def _not_allowed(methods: str, allow: bytes) -> MethodNotAllowed:
    return MethodNotAllowed(f"This address takes {methods}.", headers=((b"allow", allow),))


async def body_of(model: type[M], receive: Receive) -> M:
    """A request's body, checked. Raises `InvalidRequest`."""
    raw = await read_body(receive, MAX_BODY, BODY_SECONDS)
    if not raw:
        raise InvalidRequest("The body is empty.", code="missing_field")
    body = parse(raw)
    check(model, body)
    return model.model_validate(body)

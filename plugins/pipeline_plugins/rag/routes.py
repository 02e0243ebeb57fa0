"""Documents put in, listed and deleted over HTTP, each tenant's own alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline import Route
from pipeline.errors import InvalidRequest
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.upload import form_type, uploaded
from pipeline_plugins.store.store import all_of

if TYPE_CHECKING:
    from pipeline_plugins.rag.documents import Documents
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
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Value = bool | Integer | float | Annotated[str, StringConstraints(max_length=4096)]


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
    api = _API(stage.documents)
    one = f"{PATH}/collections/{{name}}"
    yield Route(f"{PATH}/collections", api.list, about="The collections.")
    yield Route(one, api.one, about="What a collection has.")
    yield Route(one, api.drop, methods=("DELETE",), about="Delete a collection.")
    yield Route(
        f"{one}/documents",
        api.put,
        methods=("POST",),
        about="Add documents, or replace those that changed: JSON, or files as `multipart/form-data`.",
        body=NewDocuments,
    )
    yield Route(f"{one}/documents", api.delete, methods=("DELETE",), about="Delete documents.", body=Gone)


class _API:
    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The tenant's collections."""
        owner, store = scope["tenant"].owner, self._documents.store
        data = [found.shown() for found in await all_of(store, owner)]
        await send_json(send, {"object": "list", "data": data})

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One collection."""
        await send_json(send, (await self._documents.store.describe(*which(scope))).shown())

    async def drop(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Delete one."""
        owner, name = which(scope)
        await self._documents.store.drop(owner, name)
        await send_json(send, {"name": name, "deleted": True})

    async def put(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add documents, from JSON or from files."""
        owner, name = which(scope)
        documents, files = self._documents, list[str]()
        if (content_type := form_type(scope["headers"])) is not None:
            found, files = await uploaded(documents, content_type, receive)
        else:
            found = [one.document() for one in (await body_of(NewDocuments, receive)).documents]
        done = await documents.put(owner, name, found, files)
        documents.tending.written(owner, name)
        await send_json(send, {"object": "rag.ingested", "collection": name, **asdict(done)})

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Delete documents."""
        owner, name = which(scope)
        gone = await body_of(Gone, receive)
        await send_json(send, {"deleted": await self._documents.store.delete(owner, name, gone.ids)})
        self._documents.tending.written(owner, name)


def which(scope: Scope) -> tuple[str, str]:
    """Whose collection a request is about, and which."""
    return scope["tenant"].owner, scope["path_params"]["name"]


async def body_of(model: type[M], receive: Receive) -> M:
    """A request's body, checked. Raises `InvalidRequest`."""
    raw = await read_body(receive, MAX_BODY, BODY_SECONDS)
    if not raw:
        raise InvalidRequest("The body is empty.", code="missing_field")
    body = parse(raw)
    check(model, body)
    return model.model_validate(body)

"""Documents put in, listed, deleted and asked over HTTP, each tenant's own alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline import Call, Reply, Route
from pipeline.errors import (
    APIError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
)
from pipeline.graph import Graph
from pipeline.server.exchange import read_body, send_json
from pipeline.wire.check import check
from pipeline.wire.parse import parse
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.store import NAME

if TYPE_CHECKING:
    from pipeline_plugins.rag.stage import Hybrid

PATH = "/v1/rag"
MAX_BODY = 16 * 1024 * 1024
BODY_SECONDS = 60.0
MAX_K = 50

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


class Search(Body):
    """A search for passages."""

    query: str = Field(min_length=1, max_length=32_768, description="What to look for.")
    collection: str = Field(pattern=f"^{NAME}$", description="Where.")
    k: int | None = Field(None, ge=1, le=MAX_K, description="Passages, at most.")
    filter: Filter | None = Field(None, description="Which chunks may be found.")


class Query(Body):
    """A question to be answered."""

    question: str = Field(min_length=1, max_length=32_768, description="What to answer.")
    collection: str = Field(pattern=f"^{NAME}$", description="Where to look.")
    k: int | None = Field(None, ge=1, le=MAX_K, description="Passages, at most.")
    model: str = Field("default", min_length=1, max_length=256, description="Who is to answer.")


def routes(stage: Hybrid, graph: Graph) -> Iterable[Route]:
    """All addresses. They act on what the key's owner has."""
    api = _API(stage, graph)
    yield Route(f"{PATH}/collections", api.collections)
    yield Route(f"{PATH}/collections/*", api.collection, methods=("GET", "POST", "DELETE"))
    yield Route(f"{PATH}/search", api.search, methods=("POST",))
    yield Route(f"{PATH}/query", api.query, methods=("POST",))


class _API:
    def __init__(self, stage: Hybrid, graph: Graph) -> None:
        self._stage = stage
        self._documents = stage.documents
        self._graph = graph

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
                new = await _body(NewDocuments, receive)
                done = await self._documents.put(owner, name, [one.document() for one in new.documents])
                answer = {"changed": done.changed, "unchanged": done.unchanged, "chunks": done.chunks}
                await send_json(send, {"object": "rag.ingested", "collection": name, **answer})
            elif method == "DELETE":
                gone = await _body(Gone, receive)
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

    async def search(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passages only."""
        search = await _body(Search, receive)
        config = self._stage.config
        started = perf_counter()
        found = await self._documents.search(
            scope["tenant"].owner,
            search.collection,
            search.query,
            mode=self._stage.mode,
            k=search.k or config.k,
            filter=search.filter,
            least=config.least,
        )
        seconds = round(perf_counter() - started, 6)
        data = [passage.shown() for passage in found]
        await send_json(send, {"object": "list", "data": data, "retrieval_seconds": seconds})

    async def query(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer through the whole graph, and its sources with their text."""
        query = await _body(Query, receive)
        seconds = self._stage.config.query_timeout
        call = Call(
            id=f"req_{os.urandom(12).hex()}",
            operation="chat",
            body={
                "model": query.model,
                "messages": [{"role": "user", "content": query.question}],
                "rag": {"collection": query.collection, "k": query.k, "texts": True},
            },
            tenant=scope["tenant"],
            deadline=asyncio.get_running_loop().time() + seconds,
            received=perf_counter(),
        )
        reply = await self._asked(call, seconds)
        headers = [(b"x-request-id", call.id.encode())]
        headers += [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in call.record.headers.items()
        ]
        body = reply.json
        if reply.status >= 400:
            await send_json(send, body, status=reply.status, headers=headers)
            return
        choices = body.get("choices") or [{}]
        answer = {
            "id": body.get("id"),
            "object": "rag.answer",
            "model": body.get("model"),
            "answer": (choices[0].get("message") or {}).get("content"),
            "sources": body.get("citations", []),
            "rag_used": body.get("rag_used", False),
            "retrieval_seconds": body.get("retrieval_seconds"),
            "usage": body.get("usage"),
        }
        await send_json(send, answer, headers=headers)

    async def _asked(self, call: Call, seconds: float) -> Reply:
        """The graph's reply; those who observe calls see this one, too."""
        hook = self._graph.plugins.hook
        hook.pipeline_call_started(call=call)
        failure: BaseException
        try:
            async with asyncio.timeout(seconds):
                reply = await self._graph(call)
        except TimeoutError:
            failure = DeadlineExceeded(f"The call took longer than {seconds:g} s.")
        except (APIError, asyncio.CancelledError) as error:
            failure = error
        except Exception as error:
            hook.pipeline_call_ended(call=call, reply=None, error=InternalError("The server failed."))
            raise error
        else:
            hook.pipeline_call_ended(call=call, reply=reply, error=None)
            return reply
        hook.pipeline_call_ended(call=call, reply=None, error=failure)
        raise failure


def _not_allowed(methods: str, allow: bytes) -> MethodNotAllowed:
    return MethodNotAllowed(f"This address takes {methods}.", headers=((b"allow", allow),))


async def _body(model: type[M], receive: Receive) -> M:
    """A request's body, checked."""
    raw = await read_body(receive, MAX_BODY, BODY_SECONDS)
    if not raw:
        raise InvalidRequest("The body is empty.", code="missing_field")
    body = parse(raw)
    check(model, body)
    return model.model_validate(body)

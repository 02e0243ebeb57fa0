"""`/v1/rag/search` and `/v1/rag/query`: passages, or an answer from them, for a tenant's own question."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from pipeline import Call, Reply, Route
from pipeline.call import Tenant
from pipeline.errors import APIError, DeadlineExceeded, InternalError
from pipeline.graph import Graph
from pipeline.server.calls import check_allowed
from pipeline.server.exchange import send_json
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.documents import Mode
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.retrieval import MAX_K, Wanted
from pipeline_plugins.rag.routes import PATH, Body, Receive, Scope, Send, body_of
from pipeline_plugins.store.store import NAME

if TYPE_CHECKING:
    from pipeline_plugins.rag.stage import Hybrid


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("there is nothing but white space in it")
    return text


Question = Annotated[str, StringConstraints(min_length=1, max_length=32_768), AfterValidator(_says_something)]
"""What is looked for, or to be answered."""


class Search(Body):
    """A search for passages."""

    query: Question = Field(description="What to look for.")
    collection: str = Field(pattern=f"^{NAME}$", description="Where.")
    k: int | None = Field(None, ge=1, le=MAX_K, description="Passages, at most.")
    filter: Filter | None = Field(None, description="Which chunks may be found.")
    mode: Mode | None = Field(None, description="How to search.")
    least: float = Field(
        -1.0, ge=-1, le=1, description="Similarity that a passage needs; not for `fulltext`."
    )


class Query(Body):
    """A question to be answered."""

    question: Question = Field(description="What to answer.")
    collection: str = Field(pattern=f"^{NAME}$", description="Where to look.")
    k: int | None = Field(None, ge=1, le=MAX_K, description="Passages, at most.")
    filter: Filter | None = Field(None, description="Which chunks may be found.")
    mode: Mode | None = Field(None, description="How to search.")
    model: str = Field("default", min_length=1, max_length=256, description="Who is to answer.")


def routes(stage: Hybrid, graph: Graph) -> Iterable[Route]:
    """Both addresses. They look in what the key's owner has."""
    desk = _Desk(stage, graph)
    for name, handle, body, about in (
        ("search", desk.search, Search, "Passages that fit a query."),
        ("query", desk.query, Query, "An answer to a question, with the passages that it is from."),
    ):
        yield Route(f"{PATH}/{name}", handle, methods=("POST",), about=about, body=body)


async def found(stage: Hybrid, tenant: Tenant, wanted: Wanted) -> list[Passage]:
    """Passages for a search that is no call of the graph's. Raises `NoSuchCollection`."""
    call = _call(stage, tenant, {"messages": [{"role": "user", "content": wanted.query}]})
    try:
        async with asyncio.timeout_at(call.deadline):
            return await stage.retrieval.passages(call, wanted)
    except TimeoutError:
        raise _too_late(stage) from None


def _call(stage: Hybrid, tenant: Tenant, body: dict[str, Any]) -> Call:
    return Call(
        id=f"req_{os.urandom(12).hex()}",
        operation="chat",
        body=body,
        tenant=tenant,
        deadline=asyncio.get_running_loop().time() + stage.config.query_timeout,
        received=perf_counter(),
    )


def _too_late(stage: Hybrid) -> DeadlineExceeded:
    return DeadlineExceeded(f"The call took longer than {stage.config.query_timeout:g} s.")


class _Desk:
    def __init__(self, stage: Hybrid, graph: Graph) -> None:
        self._stage = stage
        self._graph = graph

    async def search(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passages only."""
        search = await body_of(Search, receive)
        stage = self._stage
        wanted = Wanted(
            search.collection,
            search.query,
            mode=search.mode or stage.mode,
            k=search.k or stage.config.k,
            filter=search.filter,
            least=search.least,
        )
        started = perf_counter()
        data = [passage.shown() for passage in await found(stage, scope["tenant"], wanted)]
        seconds = round(perf_counter() - started, 6)
        await send_json(send, {"object": "list", "data": data, "retrieval_seconds": seconds})

    async def query(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer through the whole graph, and its sources with their text."""
        query = await body_of(Query, receive)
        controls: dict[str, Any] = {"collection": query.collection, "k": query.k, "mode": query.mode}
        if query.filter is not None:
            controls["filter"] = query.filter.model_dump(by_alias=True, exclude_unset=True)
        body = {
            "model": query.model,
            "messages": [{"role": "user", "content": query.question}],
            "rag": {**controls, "texts": True},
        }
        call = _call(self._stage, scope["tenant"], body)
        if call.tenant.models is not None:
            check_allowed(call, self._graph.entry)
        reply = await self._asked(call)
        headers = [(b"x-request-id", call.id.encode())]
        headers += [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in call.record.headers.items()
        ]
        whole = reply.json
        if reply.status >= 400:
            await send_json(send, whole, status=reply.status, headers=headers)
            return
        choices = whole.get("choices") or [{}]
        answer = {
            "id": whole.get("id"),
            "object": "rag.answer",
            "model": whole.get("model"),
            "answer": (choices[0].get("message") or {}).get("content"),
            "sources": whole.get("citations", []),
            "rag_used": whole.get("rag_used", False),
            "retrieval_seconds": whole.get("retrieval_seconds"),
            "usage": whole.get("usage"),
        }
        await send_json(send, answer, headers=headers)

    async def _asked(self, call: Call) -> Reply:
        """The graph's reply; those who observe calls see this one, too."""
        hook = self._graph.plugins.hook
        hook.pipeline_call_started(call=call)
        failure: BaseException
        try:
            async with asyncio.timeout_at(call.deadline):
                reply = await self._graph(call)
        except TimeoutError:
            failure = _too_late(self._stage)
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

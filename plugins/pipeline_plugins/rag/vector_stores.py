"""Collections in the shapes of OpenAI's vector stores: listed, shown and searched.

What OpenAI calls a vector store is a collection, its id the collection's name; a file is a document,
and its attributes are the document's metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline import Route
from pipeline.server.exchange import send_json
from pipeline.wire.check import check
from pipeline_plugins.rag.asking import Question, found
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.filters import Filter, Op
from pipeline_plugins.rag.retrieval import MAX_K, Wanted
from pipeline_plugins.rag.routes import Body, Key, Receive, Scope, Send, body_of
from pipeline_plugins.store.store import all_of

if TYPE_CHECKING:
    from pipeline_plugins.rag.stage import Hybrid
    from pipeline_plugins.store.store import Collection

PATH = "/v1/vector_stores"

OPS: dict[str, Op] = {
    "eq": "=",
    "ne": "!=",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "in": "in",
    "nin": "not in",
}

Value = bool | int | float | Annotated[str, StringConstraints(max_length=1024)]


class Filters(Body):
    """A comparison of a file's attribute, or several filters of which all or one must hold."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"] = Field(
        description="How to compare, or how the filters belong together."
    )
    key: Key | None = Field(None, description="The attribute.")
    value: Value | Annotated[list[Value], Field(min_length=1, max_length=256)] | None = Field(
        None, description="What to compare with."
    )
    filters: list[Filters] | None = Field(None, min_length=1, max_length=32, description="The filters.")

    @model_validator(mode="after")
    def _translates(self) -> Filters:
        self.ours()
        return self

    def ours(self) -> Filter:
        """The same in our own grammar. Raises ValueError for what that can't say."""
        if self.type in ("and", "or"):
            if self.filters is None or self.key is not None or self.value is not None:
                raise ValueError(f"a filter of type `{self.type}` has `filters`")
            parts = [one.ours() for one in self.filters]
            return Filter(every=parts) if self.type == "and" else Filter(some=parts)
        if self.key is None or self.value is None or self.filters is not None:
            raise ValueError(f"a filter of type `{self.type}` has `key` and `value`")
        return Filter(field=f"metadata.{self.key}", op=OPS[self.type], value=self.value)


class Ranking(Body):
    """How results are ranked, and which are good enough."""

    ranker: str = Field("auto", max_length=64, description="`none` leaves the edge `rerank` out.")
    score_threshold: float = Field(0.0, ge=0, le=1, description="Score that a result needs.")


class Search(Body):
    """A search, as in OpenAI's API."""

    query: Question | Annotated[list[Question], Field(min_length=1, max_length=8)] = Field(
        description="What to look for; of several queries the best results of all."
    )
    filters: Filters | None = Field(None, description="Which files may be found.")
    max_num_results: int = Field(10, ge=1, le=MAX_K, description="Results, at most.")
    ranking_options: Ranking = Field(default_factory=Ranking, description="How to rank.")
    rewrite_query: bool = Field(False, description="Accepted; a single query is searched for as it is.")


class _Page(BaseModel):
    """What a listing's address may ask for."""

    model_config = ConfigDict(extra="ignore")

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


def routes(stage: Hybrid) -> Iterable[Route]:
    """The addresses. They show what the key's owner has."""
    stores = _Stores(stage)
    yield Route(PATH, stores.list, about="Collections, as OpenAI's vector stores.")
    yield Route(f"{PATH}/{{vector_store_id}}", stores.one, about="A collection, as a vector store.")
    yield Route(
        f"{PATH}/{{vector_store_id}}/search",
        stores.search,
        methods=("POST",),
        about="Passages of a collection that fit a query, as in OpenAI's API.",
        body=Search,
    )


class _Stores:
    def __init__(self, stage: Hybrid) -> None:
        self._stage = stage
        self._store = stage.documents.store

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page of the tenant's collections."""
        page = _page(scope)
        owner = scope["tenant"].owner
        data = [_shown(found) for found in await all_of(self._store, owner)]
        data.sort(key=lambda one: (one["created_at"], one["id"]), reverse=page.order == "desc")
        ids = [one["id"] for one in data]
        if page.after in ids:
            data = data[ids.index(page.after) + 1 :]
        if page.before in ids:
            data = data[: ids.index(page.before)][-page.limit :]
        more, data = len(data) > page.limit, data[: page.limit]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        await send_json(
            send, {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}
        )

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One collection."""
        name = scope["path_params"]["vector_store_id"]
        await send_json(send, _shown(await self._store.describe(scope["tenant"].owner, name)))

    async def search(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The passages that fit, of several queries the best of all."""
        search = await body_of(Search, receive)
        queries = search.query if isinstance(search.query, list) else [search.query]
        stage = self._stage
        best: dict[str, tuple[float, Passage]] = {}
        plain = search.ranking_options.ranker == "none"
        for query in queries:
            wanted = Wanted(
                scope["path_params"]["vector_store_id"],
                query,
                mode=stage.mode,
                k=search.max_num_results,
                filter=None if search.filters is None else search.filters.ours(),
                rerank=not plain,
            )
            for passage in await found(stage, scope["tenant"], wanted):
                score = stage.retrieval.confidence(passage, reranked=not plain)
                if score >= search.ranking_options.score_threshold:
                    before = best.get(passage.id)
                    if before is None or before[0] < score:
                        best[passage.id] = (score, passage)
        results = list(best.values())
        if len(queries) > 1:
            results.sort(key=lambda one: -one[0])
        data = [_result(score, passage) for score, passage in results[: search.max_num_results]]
        page = {"data": data, "has_more": False, "next_page": None}
        await send_json(send, {"object": "vector_store.search_results.page", "search_query": queries, **page})


def _page(scope: Scope) -> _Page:
    given = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
    limit = given.get("limit", "20")
    asked: dict[str, Any] = {**given, "limit": int(limit) if limit.isdecimal() and len(limit) < 9 else limit}
    check(_Page, asked)
    return _Page.model_validate(asked)


def _shown(collection: Collection) -> dict[str, Any]:
    counts = {"in_progress": 0, "completed": collection.documents, "failed": 0, "cancelled": 0}
    return {
        "id": collection.name,
        "object": "vector_store",
        "created_at": collection.created,
        "name": collection.name,
        "usage_bytes": collection.bytes,
        "file_counts": {**counts, "total": collection.documents},
        "status": "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": None,
        "metadata": {"embedding": collection.embedding},
    }


def _result(score: float, passage: Passage) -> dict[str, Any]:
    return {
        "file_id": passage.document,
        "filename": passage.source,
        "score": round(score, 6),
        "attributes": dict(passage.metadata),
        "content": [{"type": "text", "text": passage.text}],
    }

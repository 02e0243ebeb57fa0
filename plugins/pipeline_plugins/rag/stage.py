"""`rag=hybrid`, `rag=vector`, `rag=fulltext`: passages of the tenant's documents for the model.

A request says which collection to look in, `rag: {collection, k, filter, mode}`; without that
field the configured collection is searched, and where there is none the call passes untouched.
The last message of the user is replaced by a prompt with the passages, and the reply gets
`citations`, `rag_used` and `retrieval_seconds`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable
from time import perf_counter
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Model, Reply, Route, Usage, hookimpl
from pipeline.errors import InvalidRequest
from pipeline.graph import Graph
from pipeline.kinds import Retrieved
from pipeline.wire import responses
from pipeline.wire.check import check
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.citing import cite
from pipeline_plugins.rag.context import counter, fitting, room
from pipeline_plugins.rag.documents import Documents, Mode
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.prompt import CHOSEN, Prompt, asked, replaced, shipped
from pipeline_plugins.rag.retrieval import MAX_K, Retrieval, RetrievalConfig, Wanted
from pipeline_plugins.rag.rewrite import rewritten, standalone, text_of
from pipeline_plugins.store.store import NAME, NoSuchCollection


class RagConfig(RetrievalConfig):
    """Where to look by default, and what becomes of what is found."""

    collection: str | None = Field(
        None,
        pattern=f"^{NAME}$",
        description="Searched where a request names none; none: it passes untouched.",
    )
    context_tokens: int | None = Field(
        None,
        ge=64,
        le=10_000_000,
        description="Tokens of passages, at most; null: what the model's window has left.",
    )
    follow_ups: bool = Field(
        True, description="Search for the user's turn before the last, too, where the last one leans on it."
    )
    rewrite_model: str = Field(
        "default", min_length=1, max_length=256, description="Model to ask for along the edge `rewrite`."
    )
    nothing: Literal["tell", "answer", "pass"] = Field(
        "tell",
        description="When nothing is found: tell the model so, answer without it, or pass on untouched.",
    )
    nothing_text: str = Field(
        "The documents do not answer this.", min_length=1, description="The answer of `nothing=answer`."
    )
    template: str | None = Field(
        CHOSEN,
        min_length=1,
        description="Jinja2 template of the prompt; null: the shipped `prompt=cited`.",
    )
    query_timeout: float = Field(120.0, gt=0, le=3600, description="Seconds for `/v1/rag/query`.")


class Controls(BaseModel):
    """A request's own `rag` field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    collection: str | None = Field(None, pattern=f"^{NAME}$", description="Collection of the tenant's.")
    k: int | None = Field(None, ge=1, le=MAX_K, description="Passages to add, at most.")
    filter: Filter | None = Field(None, description="Which chunks may be found.")
    mode: Mode | None = Field(None, description="How to search.")
    texts: bool = Field(False, description="Give the passages' text in the citations, too.")


class _Request(BaseModel):
    rag: Controls


class Hybrid:
    """Searches by vectors and by words, and fuses both rankings by reciprocal rank."""

    Config: ClassVar[type[RagConfig]] = RagConfig
    mode: ClassVar[Mode] = "hybrid"

    def __init__(
        self,
        config: RagConfig,
        next: Edge,
        rewrite: Edge | None = None,
        rerank: Edge | None = None,
        screen: Edge | None = None,
    ) -> None:
        self.config = config
        self.next = next
        self.documents = self.documents_of(config)
        self.retrieval = Retrieval(config, self.documents, rerank, screen)
        self._rewrite = rewrite
        self._prompt = Prompt(config.template or shipped())

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that answer clients; those along the other edges are asked by this stage alone."""
        return self.next.models

    @staticmethod
    def documents_of(config: RagConfig) -> Documents:
        """The documents that a configuration names, for the command line to fill."""
        return Documents(config)

    async def open(self) -> None:
        """Load the embedder and open the store. Raises `ConfigError`."""
        await self.documents.open()

    async def close(self) -> None:
        """Close the store."""
        await self.documents.close()

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn what the embedder's model costs."""
        embedder = self.documents.embedder
        embedder.price = graph.plugins.hook.pipeline_price(model=embedder.model)

    @hookimpl
    def pipeline_version(self, source: str) -> Awaitable[str] | None:
        """The version of a collection that answers were made of."""
        return self.documents.version(source)

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/v1/rag/…` and `/v1/vector_stores/…`."""
        from pipeline_plugins.rag import asking, collection_routes, routes, vector_stores

        own = [*routes.routes(self), *collection_routes.routes(self)]
        return [*own, *asking.routes(self, graph), *vector_stores.routes(self)]

    async def __call__(self, call: Call) -> Reply:
        """Add passages to a chat and citations to its reply.

        Raises `NoSuchCollection` for one that the request names, `InvalidRequest`, and `Overloaded`
        where the store fails.
        """
        controls = self._controls(call)
        if "rag" in call.body:
            call = call.derive(rag=None)
        at = asked(call.body["messages"]) if controls is not None else None
        if controls is None or at is None:
            return await self.next(call)
        question = text_of(call.body["messages"][at])
        if not question.strip():
            return await self.next(call)
        collection = controls.collection or self.config.collection or ""
        started = perf_counter()
        query = await self._query(call, at, question)
        found = await self._found(call, controls, collection, query)
        passages = self._fitting(call, found)
        seconds = perf_counter() - started
        texts = tuple(passage.text for passage in passages)
        call.record.decide(Retrieved(collection, len(passages), seconds, texts))
        notes: dict[str, Any] = {
            "citations": [
                {"number": number, **passage.shown(text=controls.texts)}
                for number, passage in enumerate(passages, 1)
            ],
            "rag_used": bool(passages),
            "retrieval_seconds": round(seconds, 6),
        }
        if query != question:
            notes["rag_query"] = query
        if not found and self.config.nothing == "answer":
            return cite(_said(call, self.config.nothing_text), notes)
        if passages or (not found and self.config.nothing == "tell"):
            messages = replaced(call.body["messages"], at, self._prompt.write(question, passages))
            call = call.derive(messages=messages)
        return cite(await self.next(call), notes)

    def _controls(self, call: Call) -> Controls | None:
        """What the call asks for, None if it is not to be touched."""
        wanted = call.body.get("rag")
        if wanted is None or wanted is False:
            if wanted is False or call.operation != "chat" or self.config.collection is None:
                return None
            return Controls()
        if call.operation != "chat":
            raise InvalidRequest("`rag` is for chat completions.", param="rag", code="invalid_value")
        check(_Request, {"rag": wanted})
        controls = Controls.model_validate(wanted)
        if controls.collection is None and self.config.collection is None:
            raise InvalidRequest(
                "`rag.collection` is missing, and none is configured as the default.",
                param="rag.collection",
                code="missing_field",
            )
        return controls

    async def _query(self, call: Call, at: int, question: str) -> str:
        """What to search for: the question, made to stand alone where turns come before it."""
        messages = call.body["messages"][: at + 1]
        turns = [text for one in messages if one.get("role") == "user" and (text := text_of(one))]
        if len(turns) < 2 or turns[-1] != question:
            return question
        if self._rewrite is not None:
            alone = await rewritten(call, self._rewrite, messages, self.config.rewrite_model)
            if alone is not None and alone != question:
                return alone
        return standalone(turns) if self.config.follow_ups else question

    async def _found(self, call: Call, controls: Controls, collection: str, query: str) -> list[Passage]:
        wanted = Wanted(
            collection,
            query,
            mode=controls.mode or self.mode,
            k=controls.k or self.config.k,
            filter=controls.filter,
            least=self.config.least,
        )
        try:
            await self.documents.note(call.record, call.tenant.owner, collection)
            found = await self.retrieval.passages(call, wanted)
            return await self.retrieval.around(call, collection, found)
        except NoSuchCollection:
            if controls.collection is not None:
                raise
            return []  # The default one: this tenant has no documents yet.

    def _fitting(self, call: Call, passages: list[Passage]) -> list[Passage]:
        """What the model that the call goes to has room for."""
        models = self.next.models
        if not passages or (self.config.context_tokens is None and not any(m.context_window for m in models)):
            return passages
        count = counter(call, models)
        around = count(self._prompt.write("", passages[:1])) - count(passages[0].text)
        return fitting(passages, count, room(call, models, self.config.context_tokens, around))


class Vector(Hybrid):
    """Searches by the cosine of vectors."""

    mode = "vector"


class FullText(Hybrid):
    """Searches by words, ranked by BM25."""

    mode = "fulltext"


def _said(call: Call, text: str) -> Reply:
    """An answer in words of ours, in the form that the call wants."""
    usage = Usage(0, 0)
    if not call.streaming:
        choice = responses.Choice(text, "stop")
        return Reply.of(responses.chat_completion([choice], usage, model=call.model), usage=usage)
    options = call.body.get("stream_options")
    wants = isinstance(options, dict) and options.get("include_usage") is True
    stream = responses.Stream("chat", model=call.model, include_usage=wants)

    async def chunks() -> AsyncIterator[bytes]:
        yield stream.start() + stream.text(text) + stream.finish("stop") + stream.end(usage)

    return Reply(chunks=chunks(), usage=usage)

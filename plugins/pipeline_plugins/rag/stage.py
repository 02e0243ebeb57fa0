"""`rag=hybrid`, `rag=vector`, `rag=fulltext`: passages of the tenant's documents for the model.

A request says which collection to look in, `rag: {collection, k, filter, mode}`; without that
field the configured collection is searched, and where there is none the call passes untouched.
The last message of the user is replaced by a prompt with the passages, and the reply gets
`citations`, `rag_used` and `retrieval_seconds`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Reply, Route, Usage, hookimpl
from pipeline.errors import InvalidRequest
from pipeline.graph import Graph
from pipeline.kinds import Retrieved
from pipeline.wire import responses
from pipeline.wire.check import check
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.citing import cite
from pipeline_plugins.rag.documents import Documents, DocumentsConfig, Mode
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.prompt import TEMPLATE, Prompt, asked, replaced
from pipeline_plugins.rag.store import NAME, NoSuchCollection

MAX_K = 50


class RagConfig(DocumentsConfig):
    """Where to look by default, and what becomes of what is found."""

    collection: str | None = Field(
        None,
        pattern=f"^{NAME}$",
        description="Searched where a request names none; none: it passes untouched.",
    )
    k: int = Field(5, ge=1, le=MAX_K, description="Passages to add, at most.")
    least: float = Field(
        0.0, ge=-1, le=1, description="Cosine with the question that a passage needs; not for `fulltext`."
    )
    nothing: Literal["tell", "answer", "pass"] = Field(
        "tell",
        description="When nothing is found: tell the model so, answer without it, or pass on untouched.",
    )
    nothing_text: str = Field(
        "The documents do not answer this.", min_length=1, description="The answer of `nothing=answer`."
    )
    template: str = Field(
        TEMPLATE, min_length=1, description="Jinja2 template of the prompt: question, passages, boundary."
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

    def __init__(self, config: RagConfig, next: Edge) -> None:
        self.config = config
        self.next = next
        self.documents = self.documents_of(config)
        self._prompt = Prompt(config.template)

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
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """`/v1/rag/…`."""
        from pipeline_plugins.rag.routes import routes

        return routes(self, graph)

    async def __call__(self, call: Call) -> Reply:
        """Add passages to a chat and citations to its reply.

        Raises `NoSuchCollection` for one that the request names, `InvalidRequest`, and `Overloaded`
        where the store fails.
        """
        controls = self._controls(call)
        if "rag" in call.body:
            call = call.derive(rag=None)
        question = asked(call.body["messages"]) if controls is not None else None
        if controls is None or question is None:
            return await self.next(call)
        at, text = question
        started = perf_counter()
        passages = await self._search(call, controls, text)
        seconds = perf_counter() - started
        collection = controls.collection or self.config.collection or ""
        texts = tuple(passage.text for passage in passages)
        call.record.decide(Retrieved(collection, len(passages), seconds, texts))
        notes = {
            "citations": [
                {"number": number, **passage.shown(text=controls.texts)}
                for number, passage in enumerate(passages, 1)
            ],
            "rag_used": bool(passages),
            "retrieval_seconds": round(seconds, 6),
        }
        if not passages and self.config.nothing == "answer":
            return cite(_said(call, self.config.nothing_text), notes)
        if passages or self.config.nothing == "tell":
            messages = replaced(call.body["messages"], at, self._prompt.write(text, passages))
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

    async def _search(self, call: Call, controls: Controls, text: str) -> list[Passage]:
        name = controls.collection or self.config.collection or ""
        try:
            return await self.documents.search(
                call.tenant.owner,
                name,
                text,
                mode=controls.mode or self.mode,
                k=controls.k or self.config.k,
                filter=controls.filter,
                least=self.config.least,
            )
        except NoSuchCollection:
            if controls.collection is not None:
                raise
            return []  # The default one: this tenant has no documents yet.


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

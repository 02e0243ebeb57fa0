"""`cache=exact`: answers a request that was answered before, and makes equal ones share a call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from pipeline import Call, Edge, Metric, Reply, Route, hookimpl
from pipeline.errors import APIError
from pipeline.graph import Graph
from pipeline.hookspecs import Across
from pipeline.kinds import Cached
from pipeline_plugins.cache import invalidation
from pipeline_plugins.cache.embeddings import (
    EmbeddingCache,
    Text,
    Vector,
    read_vectors,
    reply_with,
    texts_of,
)
from pipeline_plugins.cache.flight import Flight, Flights, Fly
from pipeline_plugins.cache.key import IGNORED, Keys, Scope, relevant, scope_of
from pipeline_plugins.cache.policy import Policy, Terms, When
from pipeline_plugins.cache.replay import reply_of
from pipeline_plugins.cache.savings import credit, spent
from pipeline_plugins.cache.sources import Sources
from pipeline_plugins.cache.store import Entry, Key, StoreDown, labelled
from pipeline_plugins.cache.stores import StoreConfig, make_store

HEADER = "x-pipeline-cache"

REFUSALS = frozenset({400, 404, 422})
"""What negative caching keeps: refusals that the request itself is the cause of."""

Result = Literal["hit", "miss", "bypass"]

DECISIONS: dict[Result, Cached] = {"hit": Cached("hit"), "miss": Cached("miss"), "bypass": Cached("bypass")}


class Exact:
    """Keeps answers by all that changes them; see `pipeline_plugins.cache.key`.

    Equal requests that come while the first is under way share its call. They coalesce within
    one process; what is kept is shared by all that share the store.
    """

    class Config(StoreConfig):
        """What is answered from the cache, for whom, and where it is kept."""

        when: When = Field(
            "deterministic",
            description="Which calls: temperature under 0.1 or a seed, and embeddings; or all; or none.",
        )
        scope: Scope = Field("owner", description="Who shares answers: one key, one owner's keys, everybody.")
        negative_ttl: float = Field(
            0.0, ge=0, le=3600, description="Seconds that refusals (400, 404, 422) are kept; 0 keeps none."
        )
        version: str = Field("", max_length=256, description="Another value makes all that is kept unknown.")
        vary: list[str] = Field(
            default_factory=list, max_length=16, description="Request headers that change the answer."
        )

    def __init__(self, config: Config, next: Edge, name: str) -> None:
        self.config = config
        self.next = next
        self.name = name
        self.store = make_store(config)
        self.policy = Policy(when=config.when, ttl=config.ttl)
        self.keys = Keys(
            scope=config.scope,
            version=config.version,
            vary=[header.lower() for header in config.vary],
            models=lambda: next.models,
        )
        self.flights = Flights(config.max_entry_bytes)
        self.embeddings = EmbeddingCache(self.store)
        self.sources = Sources()
        self.results: dict[Result, int] = {"hit": 0, "miss": 0, "bypass": 0}

    async def open(self) -> None:
        """Open the store."""
        await self.store.open()

    async def close(self) -> None:
        """End the calls under way, then close the store."""
        await self.flights.close()
        await self.store.close()

    async def __call__(self, call: Call) -> Reply:
        """Answer the call from the store or along with an equal one, or pass it on."""
        terms = self.policy.terms(call)
        if terms is None:
            return await self._bypass(call)
        try:
            if call.operation == "embedding":
                return await self._embed(call, terms)
            return await self._answer(call, terms)
        except StoreDown:
            return await self._bypass(call)

    async def _answer(self, call: Call, terms: Terms) -> Reply:
        key = self.keys.of(call)
        while terms.read and self.flights.get(key.digest) is None:
            landed = self.flights.landed
            entry = await self.store.get(key)
            if entry is not None and (terms.max_age is None or entry.age() <= terms.max_age):
                reply = reply_of(entry, call)
                if reply is not None and (not entry.sources or await self.sources.current(entry.sources)):
                    self._note(call, "hit")
                    credit(call, entry.usd)
                    return reply
            if not self.flights.landed_since(key.digest, landed):
                break
        if not terms.write:
            return await self._bypass(call)

        async def fly(flight: Flight) -> None:
            labels = (*key.labels, *(f"tag:{tag}" for tag in terms.tags))
            stamps = await self._stamps(labels)
            await flight.run(self.next, terms.ttl)
            entry = flight.entry if flight.error is None else self._refusal(flight.error)
            if entry is not None and stamps is not None:
                await self._keep(key, labelled(entry, labels, stamps, flight.call.record.sources))

        flight = self.flights.get(key.digest)
        joinable = flight is None or await self.sources.current(flight.call.record.sources.items())
        return await self._share(key, call, terms, fly, shared=terms.read and joinable)

    async def _embed(self, call: Call, terms: Terms) -> Reply:
        """Answer what is known of a batch, and ask for the rest only."""
        texts = texts_of(call.body["input"])
        scope = scope_of(call.tenant, self.config.scope)
        shared = relevant(call.body, IGNORED | {"input", "encoding_format"})
        keys = self.embeddings.keys(self.keys.make(call, scope, shared, self.keys.varying(call)), texts)
        whole = self.keys.of(call)
        known: list[Vector | None] = [None] * len(keys)
        while terms.read:
            landed = self.flights.landed
            known = await self.embeddings.known(keys, terms.max_age)
            if None not in known or not self.flights.landed_since(whole.digest, landed):
                break
        if None not in known:
            vectors = [vector for vector in known if vector is not None]
            self._note(call, "hit")
            credit(call, sum(vector.usd for vector in vectors))
            return reply_with(vectors, call)
        if not terms.write:
            return await self._bypass(call)

        async def ask(same: Call) -> Reply:
            return await self._ask_rest(same, terms, texts, keys, known)

        async def fly(flight: Flight) -> None:
            await flight.run(ask, terms.ttl)

        return await self._share(whole, call, terms, fly, shared=terms.read)

    async def _ask_rest(
        self,
        call: Call,
        terms: Terms,
        texts: Sequence[Text],
        keys: Sequence[Key],
        known: Sequence[Vector | None],
    ) -> Reply:
        strange: list[Reply] = []

        async def ask(positions: list[int]) -> list[Vector]:
            new = [texts[position] for position in positions]
            before = spent(call)
            reply = await self.next(call if len(new) == len(texts) else call.derive(input=new))
            vectors = read_vectors(reply, new, spent(call) - before)
            if vectors is None:
                strange.append(reply)
                raise _NotVectors
            return vectors

        try:
            vectors = await self.embeddings.complete(keys, known, ask, ttl=terms.ttl, tags=terms.tags)
        except _NotVectors:
            # Some server's own idea of embeddings: it is passed on as it comes.
            return strange[0] if all(one is None for one in known) else await self.next(call)
        credit(call, sum(vector.usd for vector in known if vector is not None))
        return reply_with(vectors, call)

    async def _share(self, key: Key, call: Call, terms: Terms, fly: Fly, *, shared: bool) -> Reply:
        result: Result = "miss" if terms.read else "bypass"
        try:
            reply, seat, joined = await self.flights.answer(key.digest, call, fly, shared=shared)
        except BaseException:
            self._note(call, result)
            raise
        if reply is None:
            return await self._bypass(call)
        self._note(call, "hit" if joined else result)
        if joined:
            if seat.flight.entry is not None:
                credit(call, seat.flight.entry.usd)
            else:
                seat.on_end = lambda entry: None if entry is None else credit(call, entry.usd)
        return reply

    async def _stamps(self, labels: Sequence[str]) -> tuple[str, ...] | None:
        try:
            return await self.store.stamps(labels)
        except StoreDown:
            return None

    async def _keep(self, key: Key, entry: Entry) -> None:
        with contextlib.suppress(StoreDown):
            await self.store.put(key, entry)

    def _refusal(self, error: Exception | None) -> Entry | None:
        if not self.config.negative_ttl or not isinstance(error, APIError) or error.status not in REFUSALS:
            return None
        now = time.time()
        return Entry("json", error.body(), now, now + self.config.negative_ttl, status=error.status)

    async def _bypass(self, call: Call) -> Reply:
        self._note(call, "bypass")
        return await self.next(call)

    def _note(self, call: Call, result: Result) -> None:
        self.results[result] += 1
        call.record.decide(DECISIONS[result])
        call.record.headers[HEADER] = result

    async def invalidate(self, label: str) -> None:
        """Make every answer with this label unknown. Raises `StoreDown`."""
        await self.store.invalidate(label)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn who knows the versions of what answers are made of."""
        self.sources.opened(graph)

    @hookimpl
    def pipeline_routes(self, graph: Graph) -> Iterable[Route]:
        """The administrators' route for invalidation."""
        return invalidation.routes(graph)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """What the cache and its store did."""
        stats, at = self.store.stats, (self.name,)
        results: dict[tuple[str, ...], float] = {
            (self.name, result): count for result, count in self.results.items()
        }
        counters = (
            ("coalesced", "Calls that were answered along with an equal one.", self.flights.joined),
            ("stores", "Answers kept.", stats.stores),
            ("evictions", "Answers that went to make room.", stats.evictions),
            ("errors", "Failures of the store, and entries that were not whole.", stats.errors),
        )
        yield Metric(
            "pipeline_cache_calls_total", "Calls by result.", "counter", results, ("stage", "result")
        )
        for name, about, value in counters:
            yield Metric(f"pipeline_cache_{name}_total", about, "counter", {at: float(value)}, ("stage",))
        if self.config.store != "redis":
            # A file is the same for all workers, and each has a memory of its own.
            across: Across = "max" if self.config.store == "disk" else "sum"
            for name, about, value in (
                ("entries", "Answers kept now.", stats.entries),
                ("bytes", "Bytes of answers kept now.", stats.bytes),
            ):
                yield Metric(f"pipeline_cache_{name}", about, "gauge", {at: float(value)}, ("stage",), across)


class _NotVectors(Exception):
    """The reply is no list of vectors."""

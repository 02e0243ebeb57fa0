"""`cache=semantic`: answers a question with the known answer to one that means the same.

A call that is known to the letter is answered like `cache=exact` does. Else its last user turn is
compared with those asked before in the same partition: same tenant scope, model, system prompt,
tools and parameters. The guard drops neighbours whose numbers, negations or names differ, and a
decision says whether the best that is left is good enough: see `semantic_decision`.

The decision learns from fresh answers: whether they say the same as the neighbour's known one, see
`semantic_answers`. Questions, their vectors and what was learned about them are in an index, answers in
a store; both may be shared with other processes: see `semantic_known`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog
from pydantic import Field

from pipeline import Call, Edge, Metric, Reply, Route, hookimpl
from pipeline.errors import Overloaded
from pipeline.graph import Graph
from pipeline.kinds import Cached
from pipeline.reply import End
from pipeline_plugins.cache import invalidation
from pipeline_plugins.cache.key import Keys, Scope, scope_of
from pipeline_plugins.cache.policy import Policy, Terms, When
from pipeline_plugins.cache.replay import entry_of, form_asked, reply_of
from pipeline_plugins.cache.savings import credit, spent
from pipeline_plugins.cache.semantic_answers import same_answer
from pipeline_plugins.cache.semantic_candidates import NEIGHBOURS, Candidate, History, weigh
from pipeline_plugins.cache.semantic_decision import Decision, Threshold, Verdict, Verified
from pipeline_plugins.cache.semantic_guard import difference, facts_of
from pipeline_plugins.cache.semantic_index import require
from pipeline_plugins.cache.semantic_indexes import IndexConfig, make_index
from pipeline_plugins.cache.semantic_known import Index, Known, Lesson, MemoryIndex
from pipeline_plugins.cache.semantic_lancedb import require as require_lancedb
from pipeline_plugins.cache.semantic_question import Question, question_of
from pipeline_plugins.cache.semantic_report import Counts, info_of, metrics
from pipeline_plugins.cache.sources import Sources
from pipeline_plugins.cache.store import Entry, Key, StoreDown
from pipeline_plugins.cache.stores import make_store
from pipeline_plugins.infer.minilm_embedder import Batches, Embedder, cores

if TYPE_CHECKING:
    from pipeline_plugins.cache.semantic_index import Vector

log = structlog.get_logger("pipeline.cache")


@dataclass(slots=True)
class Sought:
    """A question on its way: where it belongs, its vector, and the neighbours to be weighed."""

    partition: bytes
    vector: Vector
    item: Known
    neighbours: list[Known]
    candidates: list[Candidate]
    verdict: Verdict


class Semantic:
    """Answers what was asked before in other words."""

    class Config(IndexConfig):
        """How near is near enough, and for whom."""

        decision: Literal["verified", "threshold"] = Field(
            "verified", description="`verified` keeps to `max_error`; `threshold` takes what is so similar."
        )
        max_error: float = Field(
            0.02, gt=0, lt=0.5, description="Most wrong hits per request, for `verified`."
        )
        threshold: float = Field(0.95, gt=0, le=1, description="Least cosine, for `threshold`.")
        explore: float = Field(
            0.02, ge=0, le=0.5, description="Part of the hits answered afresh, to measure the errors."
        )
        floor: float = Field(0.7, ge=0, le=1, description="Least cosine of a neighbour to be considered.")
        agree: float = Field(0.9, ge=0, le=1, description="Least cosine of two answers that say the same.")
        when: When = Field(
            "deterministic", description="Which calls: those meant to have one answer, `always`, `never`."
        )
        scope: Scope = Field("owner", description="Who shares answers: one `key`, one `owner`, `global`.")
        version: str = Field("", max_length=256, description="Change it to forget all answers.")
        vary: list[str] = Field(
            default_factory=list, max_length=16, description="Request headers that change the answer."
        )
        weights: Literal["int8", "float32"] = Field(
            "int8", description="The embedding model's: `int8` takes 0.4 times as long, `float32` is exact."
        )
        threads: int | None = Field(None, ge=1, le=256, description="Embedding threads; null: one per core.")

    def __init__(self, config: Config, next: Edge, name: str) -> None:
        require()
        if config.index == "lancedb":
            require_lancedb()
        self.config = config
        self.next = next
        self.name = name
        self.counts = Counts()
        self.sources = Sources()
        self.store = make_store(config)
        self.decision: Decision = (
            Verified(config.max_error, explore=config.explore)
            if config.decision == "verified"
            else Threshold(config.threshold, explore=config.explore)
        )
        self._policy = Policy(when=config.when, ttl=config.ttl)
        self._keys = Keys(
            scope=config.scope,
            version=config.version,
            vary=[header.lower() for header in config.vary],
            models=lambda: next.models,
        )
        self._index: Index = MemoryIndex(1, 1)  # Until it is open.
        self._executor: ThreadPoolExecutor | None = None
        self._batches: Batches | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Load the embedding model, open store and index. Raises `ConfigError` if one can't be."""
        threads = self.config.threads or cores()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="semantic")
        loop = asyncio.get_running_loop()
        integers = self.config.weights == "int8"
        self._embedder = await loop.run_in_executor(
            self._executor, lambda: Embedder(self.config.model, integers=integers)
        )
        self._batches = Batches(self._embedder.run, self._executor, threads)
        await self.store.open()
        index = make_index(self.config, self._embedder.dimensions, self._hear)
        await index.open()
        self._index = index

    async def close(self) -> None:
        """Finish what is being kept, and free the model."""
        await self.settle()
        batches, self._batches = self._batches, None
        executor, self._executor = self._executor, None
        if batches is not None:
            batches.close()
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        await self._index.close()
        await self.store.close()

    async def settle(self) -> None:
        """Wait until all answers given so far are kept and learned from."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __call__(self, call: Call) -> Reply:
        """Answer with what is known, or pass on and remember."""
        terms = self._policy.terms(call)
        question = question_of(call) if terms is not None else None
        if terms is None or question is None:
            return await self._pass(call, "bypass")
        key = self._keys.of(call)
        try:
            if terms.read and (reply := await self._exact(call, key, terms)) is not None:
                return reply
            sought = await self._seek(call, key, question)
            if terms.read:
                self._decide(sought)
                if sought.verdict.action == "serve" and (reply := await self._serve(call, sought, terms)):
                    return reply
            labels = (*key.labels, *(f"tag:{tag}" for tag in terms.tags))
            stamps = await self.store.stamps(labels)
        except StoreDown:
            return await self._pass(call, "bypass")
        reply = await self._pass(call, "miss" if terms.read else "bypass")
        if terms.write and reply.status == 200:
            self._keep(call, reply, terms, sought, (labels, stamps))
        return reply

    async def _pass(self, call: Call, result: Literal["miss", "bypass"]) -> Reply:
        if result == "miss":
            self.counts.missed += 1
        else:
            self.counts.bypassed += 1
        call.record.decide(Cached(result))
        call.record.headers["x-pipeline-cache"] = result
        return await self.next(call)

    async def _exact(self, call: Call, key: Key, terms: Terms) -> Reply | None:
        entry = await self.store.get(key)
        reply = await self._reply(entry, call, terms)
        if entry is None or reply is None:
            return None
        self.decision.hit()
        self.counts.exact += 1
        self._saved(call, entry)
        call.record.decide(Cached("hit"))
        call.record.headers["x-pipeline-cache"] = "hit"
        return reply

    async def _reply(self, entry: Entry | None, call: Call, terms: Terms) -> Reply | None:
        if entry is None or (terms.max_age is not None and entry.age() > terms.max_age):
            return None
        return reply_of(entry, call) if await self.sources.current(entry.sources) else None

    async def _seek(self, call: Call, key: Key, question: Question) -> Sought:
        """Embed a question, and find its neighbours that the guard lets through."""
        texts = [question.text, question.context] if question.context else [question.text]
        rows = self._embedder.tokenize(texts, truncate=True)
        unread = self._embedder.unread(texts, rows)  # no vector tells it apart, so it must be equal
        frame = [question.frame, unread] if any(unread) else question.frame
        scope = scope_of(call.tenant, self.config.scope)
        partition = self._keys.make(call, scope, frame, self._keys.varying(call)).digest
        vectors = await self._vectors(rows)
        item = Known(
            key,
            facts_of(question.text),
            facts_of(question.context) if question.context else None,
            vectors[1] if question.context else None,
            History(),
            key.digest,
        )
        near = await self._index.search(partition, vectors[0], NEIGHBOURS)
        return self._weigh(partition, vectors[0], item, near)

    def _weigh(
        self, partition: bytes, vector: Vector, item: Known, near: Sequence[tuple[float, Known]]
    ) -> Sought:
        """The nearest question of each known answer, unless the guard speaks against it."""
        found: list[tuple[float, Known]] = []
        for similarity, known in near:
            # The scope is part of the partition; a shared index is not trusted with who may see what.
            if known.key.digest == item.key.digest or known.key.scope != item.key.scope:
                continue
            if item.context_vector is not None and known.context_vector is not None:
                similarity = min(similarity, float(item.context_vector @ known.context_vector))
            if similarity >= self.config.floor:
                found.append((similarity, known))
        found.sort(key=lambda one: -one[0])
        weighed = [(similarity, known.facts, known.history) for similarity, known in found]
        places, candidates = weigh(item.facts, weighed, lambda at: differ(item, found[at][1]))
        neighbours = [found[at][1] for at in places]
        return Sought(partition, vector, item, neighbours, candidates, Verdict("miss"))

    def _decide(self, sought: Sought) -> None:
        sought.verdict = self.decision.decide(sought.item.key.digest, sought.candidates)

    async def _serve(self, call: Call, sought: Sought, terms: Terms) -> Reply | None:
        """The known answer; None if it is lost, what it was made of has changed, or its form is another."""
        at = sought.verdict.candidate
        known = sought.neighbours[at]
        entry = await self.store.get(known.key)
        reply = await self._reply(entry, call, terms)
        if entry is None or reply is None:
            if entry is None or entry.sources:
                self._spawn(self._index.remove(known))
            self.decision.tally.served -= 1
            return None
        self._index.touch(known)
        self.counts.semantic += 1
        self._saved(call, entry)
        similarity = sought.candidates[at].similarity
        call.record.decide(Cached("semantic", similarity))
        call.record.headers["x-pipeline-cache"] = "semantic"
        return reply

    def _saved(self, call: Call, entry: Entry) -> None:
        if entry.usage is not None:
            self.counts.tokens += entry.usage.prompt_tokens + entry.usage.completion_tokens
        self.counts.usd += entry.usd
        credit(call, entry.usd)

    def _keep(
        self,
        call: Call,
        reply: Reply,
        terms: Terms,
        sought: Sought,
        valid: tuple[tuple[str, ...], tuple[str, ...]],
    ) -> None:
        """When the reply has ended well, store it, with its labels and their stamps, and learn from it."""

        def ended(end: End) -> None:
            content = end.content()
            if end.outcome != "completed" or content is None or len(content) > self.config.max_entry_bytes:
                return
            entry = entry_of(
                form_asked(call) if end.chunks else "json",
                content,
                ttl=terms.ttl,
                model=reply.model,
                usage=end.usage,
                usd=spent(call),
                labels=valid[0],
                stamps=valid[1],
                sources=call.record.sources,
            )
            if entry is not None:
                self._spawn(self._remember(sought, entry))

        reply.on_end(ended, collect=self.config.max_entry_bytes)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remember(self, sought: Sought, entry: Entry) -> None:
        """Store an answer and learn whether the neighbour's would have done. Never raises."""
        try:
            item = sought.item
            await self.store.put(item.key, entry)
            at = sought.verdict.candidate
            if at >= 0:
                known = sought.neighbours[at]
                other = await self.store.get(known.key)
                if other is None:
                    await self._index.remove(known)
                else:
                    right = await same_answer(entry, other, self._embed, self.config.agree)
                    self.decision.learn(sought.verdict, sought.candidates[at], right)
                    await self._index.learned(Lesson(known.answer, right, sought.verdict))
                    if right:
                        item.history, item.answer = known.history, known.answer
            item.expires = entry.expires
            await self._index.add(sought.partition, sought.vector, item)
        except StoreDown:
            pass
        except Exception as error:
            log.warning("an answer was not remembered", error=type(error).__name__)

    def _hear(self, lesson: Lesson) -> None:
        self.decision.hear(lesson.verdict, lesson.right)

    async def _embed(self, texts: Sequence[str]) -> list[Vector]:
        return await self._vectors(self._embedder.tokenize(texts, truncate=True))

    async def _vectors(self, rows: Sequence[Sequence[int]]) -> list[Vector]:
        import numpy as np

        if self._batches is None:
            raise Overloaded("The embedding model is not loaded.")
        found = await self._batches.answer(rows, lambda vector: vector.astype(np.float32).tobytes())
        return [np.frombuffer(vector, dtype=np.float32) for vector in found]

    def info(self) -> dict[str, Any]:
        """Hit rate, measured error rate with its 95 % interval, and savings, since the start."""
        return info_of(self.counts, self.decision.tally, len(self._index))

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
        """Hits, measured errors and savings."""
        return metrics(self.name, self.info())


def differ(one: Known, other: Known) -> str:
    """What the guard has against two questions having the same answer; empty for nothing."""
    found = difference(one.facts, other.facts)
    if found or one.context is None or other.context is None:
        return found
    return difference(one.context, other.context)

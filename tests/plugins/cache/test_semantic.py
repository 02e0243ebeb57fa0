"""`cache=semantic` with its real embedding model: what is answered from memory, and what never is."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from pipeline_plugins.cache import redis as redis_store
from pipeline_plugins.cache import semantic, semantic_redis
from pipeline_plugins.cache.semantic import Semantic
from pipeline_plugins.cache.semantic_decision import PRIOR, Threshold, Verified
from pipeline_plugins.cache.store import StoreDown
from pipeline_plugins.infer.minilm_embedder import Embedder
from pydantic import ValidationError

from pipeline import Call, Edge, Model, Reply, Tenant
from pipeline.kinds import Cached
from pipeline.wire import sse

PLANTS = "How do plants make their food?"
SAME = "How do plants make food?"
ALICE = Tenant("k1", "alice")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(integers=True)


@pytest.fixture(autouse=True)
def shared_embedder(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, loaded once."""
    monkeypatch.setattr(semantic, "Embedder", lambda model, integers: embedder)


PLACES = ["memory memory", "memory disk", "memory redis", "lancedb disk", "lancedb redis", "redis redis"]
"""Every index with every store that it may go with."""


@pytest.fixture(params=PLACES)
def places(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    """A config for an index and a store, both empty."""
    index, store = request.param.split()
    config = {"index": index, "store": store, "index_poll": 0.01, "index_path": str(tmp_path / "semantic")}
    if store == "redis":
        for module in (redis_store, semantic_redis):
            monkeypatch.setattr(module, "PREFIX", f"{{{uuid.uuid4().hex}}}:")
        return {**config, "redis": request.getfixturevalue("redis_url"), "redis_timeout": 5}
    return {**config, "path": str(tmp_path / "cache")}


class Upstream:
    """Answers each call with a text; notes what it was asked."""

    def __init__(self, answer: Callable[[str], str] = lambda asked: "By photosynthesis.") -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.status = 200

    async def __call__(self, call: Call) -> Reply:
        text = call.body["messages"][-1]["content"]
        self.asked.append(text)
        head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
        if call.streaming:
            return Reply(chunks=self.stream(head, self.answer(text)))
        message = {"role": "assistant", "content": self.answer(text)}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return Reply.of({**head, "choices": choices, "usage": usage}, status=self.status)

    async def stream(self, head: dict[str, Any], text: str) -> AsyncIterator[bytes]:
        for word in text.split(" "):
            yield sse.encode({**head, "choices": [{"index": 0, "delta": {"content": word}}]})
        yield sse.encode({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield sse.DONE


class Asker:
    """Sends calls through a stage, each when the one before is kept."""

    def __init__(self, stage: Semantic) -> None:
        self.stage = stage

    async def __call__(
        self,
        text: str,
        *,
        tenant: Tenant = ALICE,
        headers: dict[str, str] | None = None,
        before: list[dict[str, Any]] | None = None,
        **body: Any,
    ) -> tuple[str, bytes]:
        messages = [*(before or []), {"role": "user", "content": text}]
        call = Call(
            id="1",
            operation="chat",
            body={"model": "m", "temperature": 0, "messages": messages, **body},
            deadline=asyncio.get_running_loop().time() + 60,
            received=0,
            tenant=tenant,
            headers=headers,
        )
        reply = await self.stage(call)
        content = b"".join([chunk async for chunk in reply])
        await self.stage.settle()
        decided = call.record.decision(Cached)
        assert decided is not None
        assert call.record.headers["x-pipeline-cache"] == decided.result
        return decided.result, content


Scene = Callable[[Asker, Upstream], Awaitable[None]]


def play(scene: Scene, upstream: Upstream | None = None, **config: Any) -> Semantic:
    upstream = upstream or Upstream()
    edge = Edge("cache", "next", "infer", upstream)
    edge.models = (Model("m", frozenset({"chat"})),)
    config = {"decision": "threshold", "threshold": 0.9, "explore": 0, "threads": 1, **config}
    stage = Semantic(Semantic.Config(**config), edge, "cache")

    async def go() -> None:
        await stage.open()
        try:
            await scene(Asker(stage), upstream)
        finally:
            await stage.close()

    asyncio.run(go())
    return stage


def test_a_question_in_other_words_gets_the_known_answer() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        assert await ask(PLANTS) == ("miss", (await ask(PLANTS))[1])
        assert (await ask(PLANTS))[0] == "hit"
        result, content = await ask(SAME)
        assert result == "semantic"
        assert orjson.loads(content)["choices"][0]["message"]["content"] == "By photosynthesis."
        assert upstream.asked == [PLANTS]

    info = play(scene).info()
    assert info["hits"] == {"exact": 2, "semantic": 1}
    assert info["hit_rate"] == 0.75
    assert info["saved"]["tokens"] == 36


@pytest.mark.parametrize("decision", ["threshold", "verified"])
@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ("What happened in Rome in 1998?", "What happened in Rome in 1999?"),
        ("Is it safe to eat raw eggs?", "Is it not safe to eat raw eggs?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("How do I turn on dark mode?", "How do I turn off dark mode?"),
        ("How do I convert a PDF to Word?", "How do I convert Word to a PDF?"),
    ],
)
def test_what_the_guard_tells_apart_is_no_hit(decision: str, known: str, asked: str) -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(known)
        assert (await ask(asked))[0] == "miss"

    play(scene, decision=decision, threshold=0.3, floor=0.3, max_error=0.49)


LONG = "The house on the hill was built by farmers who kept sheep and made cheese. " * 25


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ("What does ✨ mean?", "What does 🎉 mean?"),
        ("这个颜色怎么样?", "那辆摩托怎么样?"),
        (LONG + "What did they make?", LONG + "Where does the mountain railway begin?"),
    ],
)
def test_what_the_embedding_model_can_not_read_must_be_equal(known: str, asked: str) -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        said = [{"role": "user", "content": known}, {"role": "assistant", "content": "Yes."}]
        for text in (known, asked):
            assert (await ask(text))[0] == "miss"
            assert (await ask(PLANTS, before=[{"role": "user", "content": text}]))[0] == "miss"
        assert (await ask(PLANTS, before=said))[0] == "miss"
        assert (await ask(SAME, before=said))[0] == "semantic"

    play(scene)


BASE: dict[str, Any] = {"before": [{"role": "system", "content": "Be brief."}]}


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": Tenant("k9", "mallory"), **BASE},
        {"tenant": Tenant("k1", "alice", models=frozenset({"m"})), **BASE},
        {"before": [{"role": "system", "content": "Be brief!"}]},
        {"before": []},
        {"temperature": 0.05, **BASE},
        {"max_tokens": 5, **BASE},
        {"tools": [{"type": "function", "function": {"name": "f"}}], **BASE},
        {"model": "default", **BASE},
        {"response_format": {"type": "json_object"}, **BASE},
        {"seed": 1, **BASE},
    ],
)
@pytest.mark.parametrize("decision", ["threshold", "verified"])
@pytest.mark.parametrize("text", [PLANTS, SAME])
def test_what_differs_outside_the_question_is_never_a_hit(
    other: dict[str, Any], text: str, decision: str, places: dict[str, Any]
) -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS, **BASE)
        assert (await ask(text, **other))[0] == "miss"
        assert (await ask(PLANTS, **BASE))[0] == "hit"

    play(scene, decision=decision, threshold=0.1, floor=0.1, max_error=0.49, **places)


def test_a_conversation_is_part_of_the_question() -> None:
    def turns(about: str) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": f"Tell me about {about}."},
            {"role": "assistant", "content": "Gladly."},
        ]

    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask("How long do they live?", before=turns("elephants"))
        assert (await ask("How long do they live?", before=turns("mayflies")))[0] == "miss"
        assert (await ask("How long do these live?", before=turns("the elephants")))[0] == "semantic"

    play(scene, threshold=0.85)


def test_streams_are_kept_and_given_again_as_streams_and_bodies() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS, stream=True)
        result, content = await ask(SAME, stream=True)
        assert result == "semantic"
        assert content.endswith(sse.DONE)
        result, content = await ask(SAME)
        assert result == "semantic"
        assert orjson.loads(content)["choices"][0]["message"]["content"] == "Byphotosynthesis."
        assert len(upstream.asked) == 1

    play(scene)


def test_headers_and_temperature_rule_what_is_answered_and_kept() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        assert (await ask(PLANTS, temperature=1))[0] == "bypass"
        await ask(PLANTS, headers={"cache-control": "no-store"})
        assert (await ask(PLANTS))[0] == "miss"
        assert (await ask(SAME, headers={"cache-control": "no-cache"}))[0] == "bypass"
        assert (await ask("How do plants make their own food?"))[0] == "semantic"

    play(scene)


def test_errors_and_broken_answers_are_not_kept() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        upstream.status = 500
        await ask(PLANTS)
        upstream.status = 200
        assert (await ask(SAME))[0] == "miss"

    play(scene)


def test_an_answer_that_the_store_lost_or_forgot_is_a_miss() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS)
        await ask.stage.invalidate("owner:alice")
        assert (await ask(SAME))[0] == "miss"
        assert (await ask(PLANTS))[0] == "semantic"

    stage = play(scene)
    assert stage.decision.tally.served == 1


def test_what_the_fresh_answer_says_is_what_the_cache_learns() -> None:
    answers = {
        PLANTS: "By photosynthesis.",
        SAME: "by  photosynthesis.",
        "How do plants store food?": "As 7 g.",
    }

    seen: list[tuple[int, int]] = []

    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS)
        await ask(SAME)
        await ask("How do plants store food?")
        stage = ask.stage
        (partition,) = stage._index._near._partitions  # type: ignore[attr-defined]
        found = await stage._index.search(partition, stage._embedder.embed([PLANTS])[0], 9)
        histories = {id(known.history): known.history for _, known in found}
        seen.extend(sorted((history.right, history.wrong) for history in histories.values()))

    play(scene, Upstream(answers.__getitem__), threshold=1.0)
    assert seen == [(0, 0), (1, 1)]


def test_the_error_that_is_reported_is_measured_by_exploring() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        stage = ask.stage
        assert isinstance(stage.decision, Threshold)
        stage.decision._random = Random(3)
        for number in range(40):
            await ask(PLANTS, seed=number)
            await ask(SAME, seed=number)

    info = play(scene, Upstream(lambda asked: "Yes." if asked == PLANTS else "No."), explore=0.4).info()
    assert info["audited"] == info["disproved"] > 5
    assert info["error_rate"] == info["hits"]["semantic"] / info["requests"]
    low, high = info["error_interval"]
    assert low < info["error_rate"] <= high


def test_verified_starts_with_misses_and_serves_once_it_may() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        results = []
        for number in range(30):
            await ask(PLANTS, seed=number)
            results.append((await ask(SAME, seed=number))[0])
        assert results[0] == "miss"
        assert "semantic" in results

    play(scene, decision="verified", max_error=0.05)


def test_metrics_name_the_stage() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS)

    found = {metric.name: metric for metric in play(scene).pipeline_metrics()}
    assert found["pipeline_cache_calls_total"].samples["cache", "miss"] == 1
    assert found["pipeline_cache_error_rate"].labels == ("stage", "bound")


def test_a_store_that_is_down_costs_an_answer_from_the_cache_and_nothing_else() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        assert (await ask(PLANTS))[0] == "miss"

        async def down(key: object) -> None:
            raise StoreDown("gone")

        ask.stage.store.get = down  # type: ignore[method-assign]
        assert (await ask(SAME))[0] == "bypass"
        assert upstream.asked == [PLANTS, SAME]

    play(scene)


def test_a_question_answered_anew_is_known_once_and_teaches_nothing_about_itself() -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        for _ in range(3):
            await ask(PLANTS, headers={"cache-control": "no-cache"})
        await ask.stage.invalidate("all")
        assert (await ask(PLANTS))[0] == "miss"

    stage = play(scene, explore=0.5)
    assert stage.info()["questions"] == 1
    assert stage.info()["audited"] == 0


@pytest.mark.parametrize("places", PLACES[3:], indirect=True)
def test_a_restart_keeps_what_was_asked(places: dict[str, Any]) -> None:
    async def before(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS, seed=3)

    async def after(ask: Asker, upstream: Upstream) -> None:
        assert (await ask("How do plants make their own food?", seed=3))[0] == "semantic"
        assert upstream.asked == []

    play(before, threshold=0.999, **places)
    play(after, **places)


async def never(ask: Asker, upstream: Upstream) -> None:
    """No call at all."""


@pytest.mark.parametrize("places", PLACES[3:], indirect=True)
def test_what_the_decision_learned_is_there_after_a_restart(places: dict[str, Any]) -> None:
    async def scene(ask: Asker, upstream: Upstream) -> None:
        for number in range(10):
            await ask(PLANTS, seed=number)
            await ask(SAME, seed=number)

    def law(stage: Semantic) -> Any:
        assert isinstance(stage.decision, Verified)
        return stage.decision.chance.mean

    first = play(scene, decision="verified", max_error=0.001, **places)
    assert first.decision.tally.requests == 20
    again = play(never, decision="verified", max_error=0.001, **places)
    assert again.decision.tally.requests == 0
    assert law(again) == pytest.approx(law(first), abs=1e-4)
    assert law(again) != pytest.approx(PRIOR, abs=1e-2)


@pytest.mark.parametrize("places", PLACES[3:], indirect=True)
def test_another_gateway_finds_what_was_asked_here_but_no_other_tenant_does(places: dict[str, Any]) -> None:
    async def here(ask: Asker, upstream: Upstream) -> None:
        await ask(PLANTS)

        async def there(ask: Asker, upstream: Upstream) -> None:
            assert (await ask(SAME, tenant=Tenant("k9", "mallory")))[0] == "miss"
            assert (await ask(SAME))[0] == "semantic"
            await ask.stage.invalidate("owner:alice")

        await asyncio.to_thread(play, there, **places)
        assert (await ask("How do plants make their food every day?"))[0] == "miss"

    play(here, **places)


@pytest.mark.parametrize(
    ("index", "store", "needed"),
    [
        ("redis", "memory", "store=redis"),
        ("redis", "disk", "store=redis"),
        ("lancedb", "memory", "store=disk or"),
    ],
)
def test_an_index_that_is_shared_needs_a_store_that_is(index: str, store: str, needed: str) -> None:
    with pytest.raises(ValidationError, match=needed):
        Semantic.Config(index=index, store=store)


def test_without_lancedb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match="extra `lancedb`"):
        play(never, index="lancedb", store="disk")

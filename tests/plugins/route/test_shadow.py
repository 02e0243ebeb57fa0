"""`route=shadow`: the copy of a call never shows in its answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pipeline_plugins.route.shadow import Shadow

from pipeline import Call, Edge, Model, Reply, Usage, hookimpl
from pipeline.errors import RateLimited, UpstreamFailed
from pipeline.graph import Graph
from pipeline.kinds import Answered
from pipeline.plan import plan_graph
from pipeline.wire.responses import Stream
from tests.plugins.route.calls import CHAT, a_call, an_edge, read, run
from tests.stages import Empty, registry

ANY = Model(None, CHAT)


async def nothing(call: Call) -> Reply:
    return Reply.of({"from": "next"})


class Mirror:
    """A shadow stage between two targets, and what it had compared."""

    def __init__(
        self,
        shadow: Callable[[Call], Awaitable[Reply]],
        answer: Callable[[Call], Awaitable[Reply]] = nothing,
        *,
        model: Model = ANY,
        **config: Any,
    ) -> None:
        self.compared: list[tuple[Call, Answered, Answered]] = []
        self.copies: list[Call] = []

        async def noted(call: Call) -> Reply:
            self.copies.append(call)
            return await shadow(call)

        main, other = an_edge("main", Model("m", CHAT), answer=answer), an_edge("other", model, answer=noted)
        self.stage = Shadow(Shadow.Config(**{"share": 1, "drain": 1, **config}), main, other)

        def hook(call: Call, answer: Answered, mirrored: Answered) -> None:
            self.compared.append((call, answer, mirrored))

        hook.get_hookimpls = lambda: [1]  # type: ignore[attr-defined]
        plugins = SimpleNamespace(hook=SimpleNamespace(pipeline_mirrored=hook))
        self.stage.pipeline_opened(SimpleNamespace(plugins=plugins))  # type: ignore[arg-type]

    def outcomes(self) -> dict[str, float]:
        (metric,) = self.stage.pipeline_metrics()
        return {outcome: n for (_, outcome), n in metric.samples.items()}

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def later() -> float:
    return asyncio.get_running_loop().time() + 30


async def hangs(call: Call) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


async def breaks(call: Call) -> Reply:
    raise ValueError("a bug")


async def refuses(call: Call) -> Reply:
    raise RateLimited("no")


async def breaks_off(call: Call) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        raise UpstreamFailed("gone")

    return Reply(chunks=chunks())


async def changes(call: Call) -> Reply:
    call.record.headers["x-pipeline-route"] = "other"
    call.record.decide(Usage())
    return Reply.of({"from": "shadow"})


@pytest.mark.parametrize("shadow", [hangs, breaks, refuses, breaks_off, changes])
def test_whatever_the_shadow_does_the_answer_is_the_same(shadow: Any) -> None:
    async def go() -> None:
        mirror = Mirror(shadow, drain=0.01)
        call = a_call(deadline=later())
        async with asyncio.timeout(5):
            reply = await mirror.stage(call)
        assert reply.json == {"from": "next"}
        await mirror.settle()
        assert len(mirror.copies) == 1
        assert call.record.headers == {}
        assert call.record.decisions == {}
        assert [step.stage for step in call.record.steps] == ["main"]
        await mirror.stage.close()
        assert mirror.stage.under_way == 0

    run(go())


def streamed(text: str, usage: Usage) -> Callable[[Call], Awaitable[Reply]]:
    async def answer(call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            stream = Stream("chat", model="m")
            yield stream.start(0)
            yield stream.text(text, 0)
            yield stream.finish("stop", 0)
            yield stream.end(usage)

        return Reply(chunks=chunks(), usage=usage)

    return answer


def test_both_answers_are_compared_when_both_have_ended() -> None:
    async def go() -> None:
        mirror = Mirror(streamed("two", Usage(1, 2)), streamed("one", Usage(1, 1)))
        call = a_call(stream=True, deadline=later())
        reply = await mirror.stage(call)
        await mirror.settle()
        assert mirror.compared == []
        assert b"one" in await read(reply)
        await mirror.settle()
        ((compared, answer, mirrored),) = mirror.compared
        assert compared is call
        assert (answer.target, mirrored.target) == ("main", "other")
        assert (answer.outcome, mirrored.outcome) == ("completed", "completed")
        assert (answer.usage, mirrored.usage) == (Usage(1, 1), Usage(1, 2))
        assert answer.body is not None
        assert mirrored.body is not None
        texts = [body["choices"][0]["message"]["content"] for body in (answer.body, mirrored.body)]
        assert texts == ["one", "two"]
        assert mirrored.first is not None
        assert mirrored.seconds >= mirrored.first

    run(go())


def test_the_copy_goes_on_when_the_client_leaves() -> None:
    async def go() -> None:
        release = asyncio.Event()

        async def slow(call: Call) -> Reply:
            await release.wait()
            return Reply.of({"choices": []})

        mirror = Mirror(slow, hangs)
        task = asyncio.create_task(mirror.stage(a_call(deadline=later())))
        await mirror.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        await mirror.settle()
        ((_, answer, mirrored),) = mirror.compared
        assert (answer.outcome, mirrored.outcome) == ("cancelled", "completed")

    run(go())


def test_errors_of_the_call_itself_reach_the_client_and_the_comparison() -> None:
    async def go() -> None:
        mirror = Mirror(nothing, refuses)
        with pytest.raises(RateLimited):
            await mirror.stage(a_call(deadline=later()))
        await mirror.settle()
        ((_, answer, mirrored),) = mirror.compared
        assert (answer.outcome, answer.status) == ("failed", 429)
        assert mirrored.outcome == "completed"

    run(go())


def test_no_more_copies_are_made_than_may_be_under_way() -> None:
    async def go() -> None:
        mirror = Mirror(hangs, concurrency=2, drain=0)
        for _ in range(5):
            await mirror.stage(a_call(deadline=later()))
        await mirror.settle()
        assert (len(mirror.copies), mirror.stage.under_way) == (2, 2)
        assert mirror.outcomes() == {"dropped": 3}
        await mirror.stage.close()

    run(go())


def test_closing_waits_for_copies_and_ends_those_that_take_too_long() -> None:
    async def go() -> None:
        async def soon(call: Call) -> Reply:
            await asyncio.sleep(0.02)
            return Reply.of({})

        mirror = Mirror(soon, drain=5)
        await mirror.stage(a_call(deadline=later()))
        await mirror.stage.close()
        assert mirror.outcomes() == {"completed": 1}
        await mirror.stage(a_call(deadline=later()))
        await mirror.settle()
        assert len(mirror.copies) == 1, "none are made once it is closed"

    run(go())


def test_a_copy_has_a_time_of_its_own() -> None:
    async def go() -> None:
        mirror = Mirror(hangs, timeout=0.02)
        await mirror.stage(a_call(deadline=later()))
        await asyncio.wait(mirror.stage._tasks)
        assert mirror.outcomes() == {"cancelled": 1}

    run(go())


def test_the_share_of_calls_is_mirrored() -> None:
    async def go() -> None:
        mirror = Mirror(nothing, share=0.25)
        for _ in range(2000):
            await mirror.stage(a_call(deadline=later()))
            await asyncio.sleep(0)
        await mirror.settle()
        assert 380 < len(mirror.copies) < 620

    run(go())


def test_a_shadow_of_another_model_is_asked_by_its_own_name_and_one_that_can_not_is_not_asked() -> None:
    async def go(model: Model) -> list[str]:
        mirror = Mirror(nothing, model=model)
        await mirror.stage(a_call(model="m", deadline=later()))
        await mirror.settle()
        return [copy.model for copy in mirror.copies]

    assert run(go(Model("n", CHAT))) == ["default"]
    assert run(go(Model("m", CHAT))) == ["m"]
    assert run(go(Model("m", frozenset({"embedding"})))) == []


def test_a_comparison_that_fails_does_no_harm() -> None:
    async def go() -> None:
        mirror = Mirror(nothing)

        def hook(**_: Any) -> None:
            raise RuntimeError("a plugin's bug")

        mirror.stage._compare = hook
        reply = await mirror.stage(a_call(deadline=later()))
        await mirror.settle()
        assert reply.json == {"from": "next"}
        assert not mirror.stage._tasks

    run(go())


def test_clients_see_only_the_models_that_answer_them() -> None:
    stage: Any = Mirror(nothing, model=Model("secret", CHAT)).stage
    assert [model.id for model in stage.models] == ["m"]
    assert isinstance(stage.next, Edge)


class Compares:
    """An extension that keeps what it is given to compare."""

    Config = Empty
    seen: ClassVar[list[tuple[Answered, Answered]]] = []

    def __init__(self, config: Empty) -> None:
        self.seen.clear()

    @hookimpl
    def pipeline_mirrored(self, call: Call, answer: Answered, mirrored: Answered) -> None:
        self.seen.append((answer, mirrored))


def test_a_plugin_compares_by_its_hook_and_metrics_are_scraped() -> None:
    known = registry(
        route_shadow="pipeline_plugins.route.shadow:Shadow", monitor_compares=f"{__name__}:Compares"
    )
    config: dict[str, Any] = {
        "graph": {
            "entry": "mirror",
            "stages": {"mirror": {"next": "a", "shadow": "b"}, "a": {}, "b": {}},
        },
        "mirror": {"plugin": "route.shadow", "share": 1},
        "a": {"plugin": "infer.answer", "text": "one"},
        "b": {"plugin": "infer.answer", "text": "two"},
        "compares": {"plugin": "monitor.compares"},
        "extensions": {"compares": "compares"},
    }

    async def go() -> None:
        graph = Graph.build(plan_graph(config, known))
        await graph.open()
        assert [model.id for model in graph.models] == ["a"]
        assert (await graph(a_call(deadline=later()))).json["text"] == "one"
        await asyncio.sleep(0.01)
        metrics = [metric for found in graph.plugins.hook.pipeline_metrics() for metric in found]
        assert [dict(metric.samples) for metric in metrics] == [{("mirror", "completed"): 1}]
        await graph.close()

    run(go())
    ((answer, mirrored),) = Compares.seen
    assert answer.body is not None
    assert mirrored.body is not None
    assert (answer.body["text"], mirrored.body["text"]) == ("one", "two")

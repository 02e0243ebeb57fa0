"""`resilience=standard` in a graph: its configuration, readiness and metrics."""

import asyncio
from typing import Any

import pytest
from pipeline_plugins.resilience.standard import Standard

from pipeline import Call
from pipeline.config import compose
from pipeline.errors import UpstreamFailed
from pipeline.graph import Graph
from pipeline.problems import ConfigError

TWO = [
    "infer=openai",
    "infer@embed=echo",
    "infer.base_url=http://127.0.0.1:9/v1",
    "infer.operations=[chat]",
    "monitor=none",
    "resilience=standard",
    "resilience.retry.attempts=1",
    "resilience.breaker.consecutive=1",
]


def graph(*overrides: str) -> Graph:
    return Graph.build(compose([*TWO, *overrides]).plan()[0])


def extension(made: Graph) -> Standard:
    found = made.plugins.get_plugin("resilience")
    assert isinstance(found, Standard)
    return found


async def ask(made: Graph) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    await made(Call(id="1", operation="chat", body=body, deadline=deadline, received=0))


def test_a_target_has_the_defaults_but_for_what_it_overrides() -> None:
    targets = extension(
        graph("resilience.timeouts.total=30", "+resilience.targets.embed.timeouts.first_token=1")
    ).targets
    assert targets["infer"].policy.timeouts.model_dump() == {
        "first_token": 120,
        "between_tokens": 60,
        "total": 30,
    }
    assert targets["embed"].policy.timeouts.model_dump() == {
        "first_token": 1,
        "between_tokens": 60,
        "total": 30,
    }
    assert targets["embed"].policy.retry.attempts == 1


def test_a_mistake_in_an_override_is_told_by_its_path() -> None:
    with pytest.raises(ConfigError) as error:
        compose([*TWO, "+resilience.targets.embed.retry.attempts=0"]).plan()
    assert [p.path for p in error.value.problems] == ["resilience.targets.embed.retry.attempts"]


def test_a_limit_that_no_number_can_keep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`min` \(9\) is larger than `max` \(8\)"):
        compose([*TWO, "resilience.concurrency={min: 9, max: 8}"]).plan()


def test_the_bounds_of_a_target_are_compared_with_those_that_it_has_from_all() -> None:
    made = graph("resilience.concurrency.max=5000", "+resilience.targets.embed.concurrency.min=2000")
    assert extension(made).targets["embed"].limit.limit == 2000
    wide = ["resilience.concurrency.initial=50", "+resilience.targets.embed.concurrency.max=8"]
    assert extension(graph(*wide)).targets["embed"].limit.limit == 8
    with pytest.raises(
        ConfigError, match=r"`targets\.embed\.concurrency`: `min` \(5\) is larger than `max` \(3\)"
    ):
        compose([*TWO, "resilience.concurrency.min=5", "+resilience.targets.embed.concurrency.max=3"]).plan()


def test_an_override_for_a_target_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        asyncio.run(graph("+resilience.targets.infre.retry.attempts=2").open())
    (problem,) = error.value.problems
    assert problem.path == "resilience.targets.infre"
    assert "infer" in problem.hint


def test_without_it_every_edge_is_always_ready() -> None:
    made = graph("resilience=none")
    assert made.entry.always_ready
    assert made.entry.ready()


def test_a_graph_is_ready_while_some_way_through_it_is() -> None:
    made = graph()

    async def go() -> None:
        await made.open()
        edges = made.stages["route"].targets.edges
        assert (edges["infer"].ready(), edges["embed"].ready(), made.entry.ready()) == (True, True, True)
        with pytest.raises(UpstreamFailed):
            await ask(made)
        assert (edges["infer"].ready(), edges["embed"].ready(), made.entry.ready()) == (False, True, True)
        await made.close()

    asyncio.run(go())


def test_metrics_tell_each_targets_state_and_are_labelled_by_targets_alone() -> None:
    made = graph()

    async def go() -> dict[str, dict[tuple[str, ...], float]]:
        await made.open()
        with pytest.raises(UpstreamFailed):
            await ask(made)
        await made.close()
        return {metric.name: dict(metric.samples) for metric in extension(made).pipeline_metrics()}

    metrics = asyncio.run(go())
    assert metrics["pipeline_target_breaker_state"] == {("infer",): 2, ("embed",): 0}
    assert metrics["pipeline_target_failures_total"] == {("infer",): 1, ("embed",): 0}
    assert metrics["pipeline_target_ready"] == {("infer",): 0, ("embed",): 1}
    assert all(set(samples) == {("infer",), ("embed",)} for samples in metrics.values())

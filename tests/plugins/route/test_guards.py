"""Guards of `route=ab`: what stops an experiment, and what does not."""

from typing import Any

import pytest
from pipeline_plugins.route.ab import AB

from pipeline import Call, Reply
from pipeline.errors import APIError, UpstreamFailed
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError
from tests.plugins.route.calls import a_call, an_edge, edges_of, run, some_edges

GUARDS: list[Any] = [{"metric": "failed", "worse_by": 0.05}]


async def fail(call: Call) -> Reply:
    raise UpstreamFailed("broken")


def a_router(**config: Any) -> AB:
    return AB(AB.Config(guards=GUARDS, **config), some_edges(an_edge("old"), an_edge("new", answer=fail)))


async def ask(router: AB, number: int) -> Call:
    """A call, with what the server tells of its end."""
    call = a_call(user=f"u{number}")
    try:
        reply = await router(call)
    except APIError as error:
        router.pipeline_call_ended(call, None, error)
    else:
        router.pipeline_call_ended(call, reply, None)
    return call


async def asked(router: AB, calls: int) -> list[Call]:
    return [await ask(router, number) for number in range(calls)]


def gauges(router: AB) -> dict[str, Any]:
    return {metric.name: dict(metric.samples) for metric in router.pipeline_metrics()}


def test_a_broken_guard_sends_all_to_the_control_and_counts_nobody() -> None:
    router = a_router(stop=True)
    run(asked(router, 400))
    assert router.stopped
    for call in run(asked(router, 50)):
        assert call.record.decision(Exposed) is None
        assert call.record.decision(Routed) == Routed("old", "ab was stopped")
    assert gauges(router) == {
        "pipeline_experiment_guard_broken": {("ab", "new", "failed"): 1.0},
        "pipeline_experiment_stopped": {("ab",): 1.0},
    }


def test_a_broken_guard_is_told_alone_without_stop() -> None:
    router = a_router()
    calls = run(asked(router, 400))
    assert not router.stopped
    assert all(call.record.decision(Exposed) is not None for call in calls)
    assert gauges(router)["pipeline_experiment_guard_broken"] == {("ab", "new", "failed"): 1.0}


def test_a_control_that_is_worse_breaks_no_guard() -> None:
    router = a_router(stop=True, control="new")
    run(asked(router, 400))
    assert not router.stopped


def test_one_user_who_fails_often_stops_nothing() -> None:
    router = a_router(stop=True)

    async def go() -> None:
        for _ in range(300):
            for number in range(20):
                await ask(router, number)

    run(go())
    assert not router.stopped


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"control": "neu"}, "there is no target `neu`"),
        ({"stop": True}, "no guard can stop"),
        ({"guards": GUARDS * 2}, "guarded twice"),
    ],
)
def test_what_could_not_work_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AB(AB.Config(**config), edges_of("old", "new"))

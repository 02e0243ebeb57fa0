"""`route=bandit`: calls go to what does best, each by a probability that is noted."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from pipeline_plugins.experiment.metric import Seen
from pipeline_plugins.experiment.thompson import Thompson
from pipeline_plugins.route.bandit import Bandit

from pipeline import Call, Reply
from pipeline.errors import APIError, InvalidRequest, RateLimited, UpstreamFailed
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError
from tests.plugins.route.calls import a_call, an_edge, edges_of, run, some_edges


async def fail(call: Call) -> Reply:
    raise UpstreamFailed("broken")


def a_router(**config: Any) -> Bandit:
    return Bandit(Bandit.Config(**config), some_edges(an_edge("old"), an_edge("new", answer=fail)))


async def asked(router: Bandit, calls: int, **body: Any) -> list[Call]:
    """Calls one after the other, each with what the server tells of its end."""
    found = []
    for _ in range(calls):
        call = a_call(**body)
        try:
            reply = await router(call)
        except APIError as error:
            router.pipeline_call_ended(call, None, error)
        else:
            router.pipeline_call_ended(call, reply, None)
        found.append(call)
    return found


def exposures(calls: list[Call]) -> list[Exposed]:
    found = [call.record.decision(Exposed) for call in calls]
    assert None not in found
    return [one for one in found if one is not None]


def test_most_calls_soon_go_to_the_variant_that_does_not_fail() -> None:
    router = a_router()
    run(asked(router, 300))
    shares = Counter(one.variants["bandit"] for one in exposures(run(asked(router, 300))))
    assert shares["old"] > 240
    (gauge,) = router.pipeline_metrics()
    assert gauge.samples[("bandit", "old")] > 0.9


def test_each_call_has_the_probability_of_its_variant_noted_and_none_is_below_the_explored_share() -> None:
    router = a_router(explore=0.2)
    for one in exposures(run(asked(router, 400)))[100:]:
        probability = one.probabilities["bandit"]
        assert 0.1 <= probability <= 0.9
        assert (probability > 0.5) == (one.variants["bandit"] == "old")


def test_the_client_is_told_its_variant() -> None:
    call = run(asked(a_router(experiment="size"), 1))[0]
    assert call.record.headers["x-pipeline-experiment"] in ("size=old", "size=new")


def test_a_call_that_only_some_variants_can_serve_takes_no_part() -> None:
    for call in run(asked(a_router(), 10, model="old")):
        assert call.record.decision(Exposed) is None
        assert call.record.decision(Routed) == Routed(
            "old", "not in bandit: not every variant can serve it now"
        )


def test_calls_of_which_nothing_is_known_teach_nothing() -> None:
    router = Bandit(Bandit.Config(metric="invalid"), edges_of("old", "new"))
    found = exposures(run(asked(router, 200)))
    assert len({(one.variants["bandit"], one.probabilities["bandit"]) for one in found}) == 2
    assert all(0.4 < one.probabilities["bandit"] < 0.6 for one in found)


@pytest.mark.parametrize(
    ("config", "seen", "worth"),
    [
        ({}, Seen("completed", 5.0), 1.0),
        ({}, Seen("failed", 5.0), 0.0),
        ({"metric": "latency_s", "worst": 10}, Seen("completed", 2500.0), 0.75),
        ({"metric": "latency_s", "worst": 10}, Seen("completed", 99_000.0), 0.0),
        ({"metric": "latency_s", "worst": 10}, Seen("failed", 1.0), 0.0),
        ({"metric": "latency_s", "worst": 10}, Seen("refused", 1.0), None),
        ({"metric": "cost_usd", "worst": 0.01}, Seen("completed", 1.0, usd=0.001), 0.9),
        ({"metric": "cost_usd", "worst": 0.01}, Seen("completed", 1.0), None),
        ({"metric": "invalid"}, Seen("completed", 1.0, valid=False), 0.0),
    ],
)
def test_a_call_is_worth_what_the_metric_leaves_of_it(
    config: dict[str, Any], seen: Seen, worth: float | None
) -> None:
    found = a_router(**config).worth(seen)
    assert found == (pytest.approx(worth) if worth is not None else None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"control": "neu"}, "there is no target `neu`"),
        ({"metric": "latency_s"}, "`latency_s` needs one"),
        ({"worst": 3}, "a share has no worst value"),
    ],
)
def test_what_could_not_work_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        a_router(**config)


def test_a_variant_that_became_the_better_one_is_found_as_what_is_long_ago_fades() -> None:
    thompson = Thompson(0.1, memory=200, seed=1)
    for better in (0, 1):
        for _ in range(1000):
            for at, name in enumerate("ab"):
                thompson.learn(name, 0.9 if at == better else 0.3)
        assert thompson.chances(("a", "b"))[better] > 0.9


def test_chances_add_up_and_are_even_before_anything_is_known() -> None:
    chances = Thompson(0.1, 1000, seed=2).chances(("a", "b", "c"))
    assert sum(chances) == pytest.approx(1)
    assert all(0.25 < chance < 0.42 for chance in chances)


def test_streams_teach_when_they_end() -> None:
    async def stream(call: Call) -> Reply:
        async def broken() -> Any:
            yield b"data: {}\n\n"
            raise UpstreamFailed("gone")

        return Reply(chunks=broken())

    async def go() -> Bandit:
        router = Bandit(Bandit.Config(), some_edges(an_edge("old"), an_edge("new", answer=stream)))
        for _ in range(200):
            call = a_call()
            reply = await router(call)
            router.pipeline_call_ended(call, reply, None)
            if reply.streaming:
                with pytest.raises(UpstreamFailed):
                    async for _chunk in reply:
                        pass
                await reply.aclose()
        return router

    (gauge,) = asyncio.run(go()).pipeline_metrics()
    assert gauge.samples[("bandit", "old")] > 0.85


def test_a_variant_that_refuses_what_is_too_much_for_it_is_not_taken_for_a_good_one() -> None:
    async def limited(call: Call) -> Reply:
        raise RateLimited("too many")

    router = Bandit(Bandit.Config(), some_edges(an_edge("old"), an_edge("new", answer=limited)))
    run(asked(router, 300))
    shares = Counter(one.variants["bandit"] for one in exposures(run(asked(router, 300))))
    assert shares["old"] > 240


def test_refusals_that_are_the_requests_own_fault_teach_nothing() -> None:
    async def refuse(call: Call) -> Reply:
        raise InvalidRequest("odd")

    router = Bandit(Bandit.Config(), some_edges(an_edge("old"), an_edge("new", answer=refuse)))
    shares = Counter(one.variants["bandit"] for one in exposures(run(asked(router, 600)))[300:])
    assert shares["new"] < 150


def test_a_call_that_is_retried_stays_with_its_variant() -> None:
    router = Bandit(Bandit.Config(explore=1.0), edges_of("old", "new"))

    async def twice() -> tuple[str, float]:
        call = a_call()
        await router(call)
        before = call.record.decision(Exposed)
        assert before is not None
        first = before.variants["bandit"], before.probabilities["bandit"]
        await router(call)
        assert (before.variants["bandit"], before.probabilities["bandit"]) == first
        assert call.record.steps[-1].stage == call.record.steps[-2].stage
        return first

    async def go() -> None:
        for _ in range(50):
            await twice()

    run(go())

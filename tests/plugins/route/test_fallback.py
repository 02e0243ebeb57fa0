"""`route=fallback`: the order, what moves a call on, and what does not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pipeline_plugins.route.fallback import Fallback

from pipeline import Call, Edge, Edges, Model, Reply
from pipeline.errors import APIError, InvalidRequest, ModelNotFound, Overloaded, RateLimited, UpstreamFailed
from pipeline.kinds import Routed

Act = Callable[[Call], Awaitable[Reply]]


def says(text: str, status: int = 200) -> Act:
    async def act(call: Call) -> Reply:
        return Reply(body=text.encode(), status=status)

    return act


def raises(error: Exception) -> Act:
    async def act(call: Call) -> Reply:
        raise error

    return act


def streams(*items: bytes | Exception) -> Act:
    async def chunks() -> AsyncIterator[bytes]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def act(call: Call) -> Reply:
        return Reply(chunks=chunks())

    return act


def route(*, model: str = "default", ready: str = "abc", **acts: Act) -> tuple[str, Call, Exception | None]:
    """What the client reads, the call, and what breaks the answer."""
    edges = {}
    for name, act in acts.items():
        edges[name] = Edge("route", name, name, act, lambda name=name: name in ready)
        edges[name].models = (Model(f"model-{name}", frozenset({"chat"})),)
    body: dict[str, Any] = {"model": model}

    async def go() -> tuple[str, Call, Exception | None]:
        call = Call(id="1", operation="chat", body=body, deadline=1e9, received=0)
        parts: list[bytes] = []
        try:
            async for chunk in await Fallback(Fallback.Config(), Edges(edges))(call):
                parts.append(chunk)  # noqa: PERF401 — what came before an error is wanted
        except APIError as error:
            return b"".join(parts).decode(), call, error
        return b"".join(parts).decode(), call, None

    return asyncio.run(go())


def steps(call: Call) -> list[str]:
    return [step.stage for step in call.record.steps]


def test_the_first_target_answers_while_it_is_ready() -> None:
    text, call, _ = route(a=says("a"), b=says("b"))
    assert text == "a"
    assert steps(call) == ["a"]
    assert call.record.decision(Routed) == Routed("a", "first")
    assert call.record.headers["x-pipeline-route"] == "a"


def test_a_target_that_is_not_ready_is_passed_over_without_being_asked() -> None:
    text, call, _ = route(a=says("a"), b=says("b"), ready="b")
    assert (text, steps(call)) == ("b", ["b"])
    assert call.record.decision(Routed) == Routed("b", "a is not ready")


def test_where_none_is_ready_they_are_tried_in_order_all_the_same() -> None:
    assert steps(route(a=raises(Overloaded("no")), b=says("b"), ready="")[1]) == ["a", "b"]


@pytest.mark.parametrize(
    "failure",
    [
        raises(UpstreamFailed("no")),
        raises(RateLimited("no")),
        raises(ZeroDivisionError()),
        says("no", 500),
        says("no", 429),
        streams(UpstreamFailed("early")),
    ],
)
def test_a_failure_before_the_first_byte_moves_on_and_the_target_that_answered_is_told(failure: Act) -> None:
    text, call, error = route(a=failure, b=streams(b"b1", b"b2"))
    assert (text, error) == ("b1b2", None)
    assert steps(call) == ["a", "b"]
    routed = call.record.decision(Routed)
    assert routed is not None
    assert routed.target == call.record.headers["x-pipeline-route"] == "b"
    assert routed.reason.startswith("a: ")


@pytest.mark.parametrize("mistake", [raises(InvalidRequest("yours")), says("yours", 404)])
def test_the_clients_own_mistake_does_not(mistake: Act) -> None:
    assert steps(route(a=mistake, b=says("b"))[1]) == ["a"]


def test_text_already_sent_is_never_sent_again_by_another_target() -> None:
    text, call, error = route(a=streams(b"half", UpstreamFailed("late")), b=streams(b"b"))
    assert text == "half"
    assert isinstance(error, UpstreamFailed)
    assert steps(call) == ["a"]


def test_the_last_targets_failure_is_the_clients() -> None:
    _, call, error = route(a=raises(UpstreamFailed("a")), b=raises(Overloaded("b")))
    assert isinstance(error, Overloaded)
    assert steps(call) == ["a", "b"]


def test_only_targets_that_serve_the_model_count() -> None:
    _, call, error = route(model="model-a", a=raises(UpstreamFailed("no")), b=says("b"))
    assert isinstance(error, UpstreamFailed)
    assert steps(call) == ["a"]
    assert isinstance(route(model="nobody's", a=says("a"))[2], ModelNotFound)

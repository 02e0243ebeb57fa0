"""Calls: what is parsed and copied, and what is passed on as it came."""

import asyncio
from typing import Any

import pytest

from pipeline import ANONYMOUS, Call, Edge, Edges, Model, Record, Reply
from pipeline.kinds import Cached, Routed

RAW = b'{ "model" : "m",\n "stream": false, "x": 1.0 }'


def call(**changes: Any) -> Call:
    given = {"id": "1", "operation": "chat", "raw": RAW, "deadline": 100.0, "received": 1.0, **changes}
    return Call(**given)


def test_a_body_is_kept_byte_for_byte() -> None:
    one = call()
    assert one.raw is RAW
    assert one.body == {"model": "m", "stream": False, "x": 1.0}
    assert one.raw is RAW


def test_a_parsed_body_becomes_bytes_when_they_are_asked_for() -> None:
    assert call(raw=None, body={"model": "m"}).raw == b'{"model":"m"}'


def test_a_call_needs_a_body() -> None:
    with pytest.raises(ValueError, match="needs a body"):
        call(raw=None)


@pytest.mark.parametrize(
    ("body", "model", "streaming"),
    [({}, "default", False), ({"model": ""}, "default", False), ({"model": "a", "stream": True}, "a", True)],
)
def test_model_and_streaming_are_read_from_the_body(body: Any, model: str, streaming: bool) -> None:
    one = call(raw=None, body=body)
    assert (one.model, one.streaming) == (model, streaming)


def test_deriving_replaces_adds_and_removes_fields() -> None:
    one = call()
    derived = one.derive(model="n", stream=True, x=None, y=2)
    assert derived.body == {"model": "n", "stream": True, "y": 2}
    assert (derived.model, derived.streaming) == ("n", True)
    assert derived.raw == b'{"model":"n","stream":true,"y":2}'


def test_deriving_leaves_the_original_and_keeps_identity_and_record() -> None:
    one = call()
    derived = one.derive(model="n")
    assert one.raw is RAW
    assert one.model == "m"
    assert (derived.id, derived.deadline, derived.received) == (one.id, one.deadline, one.received)
    assert derived.record is one.record
    assert derived.tenant is ANONYMOUS


def test_null_in_the_clients_own_body_stays() -> None:
    assert call(raw=b'{"stop":null}').derive(n=1).body == {"stop": None, "n": 1}


def test_a_deadline_can_only_come_nearer() -> None:
    one = call()
    assert one.until(200.0) is one
    assert one.until(100.0) is one
    sooner = one.until(50.0)
    assert (sooner.deadline, one.deadline) == (50.0, 100.0)
    assert sooner.raw is RAW
    assert sooner.record is one.record


def test_what_is_to_be_sent_along_stays_with_what_is_made_of_a_call() -> None:
    one = call()
    traced = one.with_outbound({"traceparent": "a"})
    assert one.outbound is None
    assert traced.raw is RAW
    for made in (traced, traced.derive(n=1), traced.until(50.0)):
        assert made.outbound == {"traceparent": "a"}
    assert traced.with_outbound({"x": "b"}).outbound == {"traceparent": "a", "x": "b"}


def test_remaining_counts_down_to_the_deadline() -> None:
    async def go() -> tuple[float, float]:
        now = asyncio.get_running_loop().time()
        return call(deadline=now + 5).remaining, call(deadline=now - 5).remaining

    ahead, past = asyncio.run(go())
    assert 4 < ahead <= 5
    assert -6 < past <= -5


def test_a_record_keeps_the_last_decision_of_each_type() -> None:
    record = Record()
    record.decide(Routed("a"))
    record.decide(Routed("b"))
    assert record.decision(Routed) == Routed("b")
    assert record.decision(Cached) is None


def test_an_edge_times_each_passage_and_notes_failures() -> None:
    async def answer(one: Call) -> Reply:
        return Reply.of({})

    async def fail(one: Call) -> Reply:
        raise RuntimeError

    async def go() -> Record:
        one = call()
        await Edge("a", "next", "b", answer)(one)
        with pytest.raises(RuntimeError):
            await Edge("a", "retry", "c", fail)(one.derive(n=1))
        return one.record

    steps = asyncio.run(go()).steps
    assert [(s.source, s.edge, s.stage, s.outcome) for s in steps] == [
        ("a", "next", "b", "ok"),
        ("a", "retry", "c", "RuntimeError"),
    ]
    assert all(step.ended >= step.started for step in steps)


def test_an_edge_notes_a_cancelled_passage() -> None:
    async def wait(one: Call) -> Reply:
        await asyncio.sleep(60)
        raise AssertionError

    async def go() -> str:
        one = call()
        task = asyncio.ensure_future(Edge("a", "next", "b", wait)(one))
        await asyncio.sleep(0)
        assert one.record.steps[0].outcome == "running"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return one.record.steps[0].outcome

    assert asyncio.run(go()) == "CancelledError"


def test_edges_are_a_mapping_in_order() -> None:
    async def answer(one: Call) -> Reply:
        return Reply.of({})

    given = {name: Edge("r", name, name, answer) for name in ("z", "a")}
    edges = Edges(given)
    assert (list(edges), len(edges), edges["a"]) == (["z", "a"], 2, given["a"])
    assert repr(edges["a"]) == "<Edge r.a -> a>"


@pytest.mark.parametrize(
    ("operation", "name", "serves"),
    [
        ("chat", "big", True),
        ("chat", "large", True),
        ("chat", "default", True),
        ("chat", "auto", True),
        ("chat", "Big", False),
        ("embedding", "big", False),
    ],
)
def test_a_model_serves_its_names_for_its_operations(operation: str, name: str, serves: bool) -> None:
    assert Model("big", frozenset({"chat"}), aliases=("large",)).serves(operation, name) is serves


def test_a_model_without_id_serves_any_name() -> None:
    assert Model(None, frozenset({"chat"})).serves("chat", "whatever")

"""One target's layer: what it retries, refuses, counts and cleans up."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.resilience.outliers import Member
from pipeline_plugins.resilience.policy import OutlierSettings, Policy
from pipeline_plugins.resilience.target import Refused, Target

from pipeline import Call, Reply, Usage
from pipeline.errors import (
    APIError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RateLimited,
    UpstreamFailed,
)

Act = Callable[[Call], Awaitable[Reply]]


class Script:
    """A stage that does one thing after another, the last for ever, and notes what became of each."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.calls: list[Call] = []
        self.cancelled = self.closed = 0

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        try:
            return await act(call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def streams(self, *items: bytes | float | BaseException) -> Act:
        """Stream bytes, wait for seconds, raise errors."""

        async def chunks() -> AsyncIterator[bytes]:
            try:
                for item in items:
                    if isinstance(item, bytes):
                        yield item
                    elif isinstance(item, BaseException):
                        raise item
                    else:
                        await asyncio.sleep(item)
            finally:
                self.closed += 1

        async def act(call: Call) -> Reply:
            return Reply(chunks=chunks())

        return act


def answers(status: int = 200, *headers: tuple[bytes, bytes], after: float = 0) -> Act:
    async def act(call: Call) -> Reply:
        await asyncio.sleep(after)
        return Reply(body=b"{}", status=status, headers=headers, usage=Usage(1, 1))

    return act


def raises(error: BaseException) -> Act:
    async def act(call: Call) -> Reply:
        raise error

    return act


FAILS = raises(UpstreamFailed("no"))


def target(script: Script, standing: Member | None = None, **policy: Any) -> Target:
    quick = {"retry": {"backoff": 0.001, **policy.pop("retry", {})}}
    return Target("t", Policy.model_validate({**quick, **policy}), standing, script)


def call(seconds: float = 20, *, stream: bool = False) -> Call:
    deadline = asyncio.get_running_loop().time() + seconds
    return Call(
        id="1", operation="chat", body={"model": "m", "stream": stream}, deadline=deadline, received=0
    )


def run(go: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await go

    return asyncio.run(bounded())


async def read(reply: Reply) -> list[bytes]:
    return [chunk async for chunk in reply]


@pytest.mark.parametrize(
    "failure",
    [FAILS, raises(RateLimited("busy")), raises(DeadlineExceeded("slow")), answers(500), answers(429)],
)
def test_a_failure_is_tried_again_and_the_client_sees_the_answer(failure: Act) -> None:
    script = Script(failure, failure, answers())
    made = target(script)

    async def go() -> None:
        assert (await made(call())).status == 200

    run(go())
    assert (len(script.calls), made.retries, made.failures, made.answers) == (3, 2, 2, 1)
    assert made.limit.in_flight == 0


@pytest.mark.parametrize("mistake", [raises(InvalidRequest("yours")), answers(404)])
def test_the_clients_own_mistake_is_passed_on_and_is_no_failure(mistake: Act) -> None:
    script = Script(mistake)
    made = target(script)

    async def go() -> int:
        try:
            return (await made(call())).status
        except APIError as error:
            return error.status

    assert run(go()) in (400, 404)
    assert (len(script.calls), made.failures, made.answers) == (1, 0, 1)


def test_a_bug_in_a_stage_counts_as_a_failure_and_is_not_tried_again() -> None:
    script = Script(raises(ZeroDivisionError()))
    made = target(script)

    async def go() -> None:
        with pytest.raises(ZeroDivisionError):
            await made(call())

    run(go())
    assert (len(script.calls), made.failures) == (1, 1)


def test_attempts_are_bounded_and_the_last_failure_is_the_clients() -> None:
    script = Script(raises(UpstreamFailed("first")), raises(UpstreamFailed("second")))
    made = target(script, retry={"attempts": 2})

    async def go() -> None:
        with pytest.raises(UpstreamFailed, match="second"):
            await made(call())

    run(go())
    assert len(script.calls) == 2


def test_retries_stay_within_their_share_of_the_calls() -> None:
    script = Script(FAILS)
    budget = {"attempts": 5, "budget": 0.1, "reserve": 3, "per_second": 0}
    made = target(script, retry=budget, breaker={"enabled": False})

    async def go() -> None:
        for _ in range(100):
            with pytest.raises(UpstreamFailed):
                await made(call())

    run(go())
    assert 100 <= len(script.calls) <= 100 + 3 + 100 * 0.1
    assert made.retries_denied > 0


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("raised", [True, False])
def test_a_retry_after_beyond_the_deadline_is_given_up_at_once(form: str, raised: bool) -> None:
    header = (b"retry-after", b"30" if form == "seconds" else formatdate(time() + 30, usegmt=True).encode())
    refusal = raises(Overloaded("later", headers=(header,))) if raised else answers(503, header)
    script = Script(refusal, answers())
    made = target(script)

    async def go() -> None:
        started = monotonic()
        if raised:
            with pytest.raises(Overloaded) as error:
                await made(call(seconds=10))
            assert error.value.headers == (header,)
        else:
            assert (await made(call(seconds=10))).status == 503
        assert monotonic() - started < 9

    run(go())
    assert len(script.calls) == 1
    assert not made.ready()


def test_a_long_retry_after_is_passed_on_instead_of_waited_for_though_the_deadline_is_far() -> None:
    script = Script(answers(429, (b"retry-after", b"6")), answers())
    made = target(script)

    async def go() -> None:
        reply = await made(call(seconds=600))
        assert (reply.status, (b"retry-after", b"6") in reply.headers) == (429, True)

    run(go())
    assert len(script.calls) == 1
    assert not made.ready()


def test_a_retry_after_is_waited_for_and_keeps_routers_away_meanwhile() -> None:
    script = Script(answers(429, (b"retry-after", b"1")), answers())
    made = target(script)

    async def go() -> float:
        started = monotonic()
        asked = asyncio.create_task(made(call()))
        await asyncio.sleep(0.1)
        assert not made.ready()
        assert (await asked).status == 200
        assert made.ready()
        return monotonic() - started

    assert run(go()) >= 1


def test_a_stream_that_fails_before_its_first_chunk_is_tried_again() -> None:
    script = Script()
    script.acts = [script.streams(UpstreamFailed("early")), script.streams(b"one", b"two")]
    made = target(script)

    async def go() -> list[bytes]:
        return await read(await made(call(stream=True)))

    assert run(go()) == [b"one", b"two"]
    assert (len(script.calls), made.failures, made.answers, made.limit.in_flight) == (2, 1, 1, 0)


def test_a_stream_that_breaks_later_is_never_tried_again_and_counts_as_a_failure() -> None:
    script = Script()
    script.acts = [script.streams(b"one", UpstreamFailed("late"))]
    made = target(script)

    async def go() -> None:
        chunks = aiter(await made(call(stream=True)))
        assert await anext(chunks) == b"one"
        with pytest.raises(UpstreamFailed, match="late"):
            await anext(chunks)

    run(go())
    assert (len(script.calls), made.failures, made.answers, made.limit.in_flight) == (1, 1, 0, 0)


def test_a_stage_without_own_timeouts_is_bounded_before_the_first_token_and_between_tokens() -> None:
    script = Script()
    script.acts = [script.streams(30.0, b"late"), script.streams(b"one", 30.0, b"late")]
    made = target(script, timeouts={"first_token": 0.05, "between_tokens": 0.05}, retry={"attempts": 2})

    async def go() -> None:
        reply = await made(call(stream=True))
        assert await anext(aiter(reply)) == b"one"
        with pytest.raises(DeadlineExceeded, match="silent for"):
            await anext(aiter(reply))
        assert asyncio.current_task().cancelling() == 0

    run(go())
    assert (script.closed, made.failures, made.limit.in_flight) == (2, 2, 0)


def test_a_whole_answer_is_bounded_by_its_total() -> None:
    script = Script(answers(after=30), answers())
    made = target(script, timeouts={"total": 0.05})

    async def go() -> float:
        await made(call(seconds=20))
        return script.calls[0].deadline - script.calls[0].received

    run(go())
    assert (len(script.calls), script.cancelled, made.failures) == (2, 1, 1)


def test_a_slow_reader_is_not_a_silent_target() -> None:
    script = Script()
    script.acts = [script.streams(b"one", b"two", b"three")]
    made = target(script, timeouts={"between_tokens": 0.02})

    async def go() -> list[bytes]:
        got = []
        async for chunk in await made(call(stream=True)):
            got.append(chunk)
            await asyncio.sleep(0.06)
        return got

    assert run(go()) == [b"one", b"two", b"three"]
    assert made.failures == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_neither_a_success_nor_a_failure(stream: bool) -> None:
    script = Script()
    script.acts = [script.streams(b"one", 30.0) if stream else answers(after=30)]
    made = target(script)

    async def client() -> None:
        await read(await made(call(stream=stream)))

    async def go() -> None:
        asked = asyncio.create_task(client())
        await asyncio.sleep(0.02)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(go())
    assert (made.failures, made.answers, made.limit.in_flight) == (0, 0, 0)
    assert script.cancelled + script.closed == 1


def test_a_deadline_that_passes_without_an_answer_is_the_targets_failure() -> None:
    script = Script(answers(after=30))
    made = target(script)

    async def go() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await made(call(seconds=0.03))

    run(go())
    assert (made.failures, made.limit.in_flight) == (1, 0)


def test_a_deadline_that_passes_within_a_stream_is_the_targets_failure() -> None:
    script = Script()
    script.acts = [script.streams(b"one", 30.0, b"late")]
    made = target(script)

    async def go() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await read(await made(call(seconds=0.03, stream=True)))

    run(go())
    assert (made.failures, made.answers, made.limit.in_flight) == (1, 0, 0)


@pytest.mark.parametrize("how", ["close", "close unread", "drop"])
def test_a_stream_that_nobody_reads_to_its_end_gives_its_place_back(how: str) -> None:
    script = Script()
    script.acts = [script.streams(b"one", b"two")]
    made = target(script)

    async def go() -> None:
        reply = await made(call(stream=True))
        assert made.limit.in_flight == 1
        if how == "close":
            await anext(aiter(reply))
        if how == "drop":
            del reply
            gc.collect()
        else:
            await reply.aclose()
        assert made.limit.in_flight == 0

    run(go())
    assert (made.failures, made.answers) == (0, 0)


def test_an_open_breaker_refuses_without_asking_and_probes_when_its_time_is_over() -> None:
    script = Script(FAILS, FAILS, answers())
    breaker = {"consecutive": 2, "open_for": 0.05}
    made = target(script, breaker=breaker, retry={"attempts": 1})

    async def go() -> None:
        for _ in range(2):
            with pytest.raises(UpstreamFailed):
                await made(call())
        assert not made.ready()
        with pytest.raises(Refused) as refused:
            await made(call())
        assert refused.value.status == 503
        assert refused.value.headers == ((b"retry-after", b"1"),)
        assert len(script.calls) == 2
        await asyncio.sleep(0.06)
        assert made.ready()
        assert (await made(call())).status == 200
        assert made.breaker.state == "closed"

    run(go())


@pytest.mark.parametrize("kind", ["answer", "mistake", "stream"])
def test_a_probe_that_is_answered_closes_the_breaker_also_by_a_refusal_of_the_clients_mistake(
    kind: str,
) -> None:
    script = Script()
    acts = {
        "answer": answers(),
        "mistake": raises(InvalidRequest("yours")),
        "stream": script.streams(b"one", 30.0),
    }
    script.acts = [FAILS, acts[kind]]
    made = target(script, breaker={"consecutive": 1, "open_for": 0.01}, retry={"attempts": 1})

    async def go() -> None:
        with pytest.raises(UpstreamFailed):
            await made(call())
        await asyncio.sleep(0.02)
        try:
            reply = await made(call(stream=kind == "stream"))
        except InvalidRequest:
            reply = None
        assert made.breaker.state == "closed"
        if reply is not None:
            await reply.aclose()

    run(go())
    assert made.limit.in_flight == 0


def test_half_open_lets_one_call_through_and_a_cancelled_probe_frees_its_place() -> None:
    script = Script(FAILS, answers(after=30), answers())
    made = target(script, breaker={"consecutive": 1, "open_for": 0.01}, retry={"attempts": 1})

    async def go() -> None:
        with pytest.raises(UpstreamFailed):
            await made(call())
        await asyncio.sleep(0.02)
        probe = asyncio.create_task(made(call()))
        await asyncio.sleep(0)
        with pytest.raises(Refused):
            await made(call())
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await made(call())).status == 200

    run(go())
    assert made.breaker.state == "closed"


def test_calls_beyond_the_limit_are_shed_at_once() -> None:
    script = Script(answers(after=0.05))
    made = target(script, concurrency={"initial": 2, "max": 2})

    async def go() -> None:
        results = await asyncio.gather(*(made(call()) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(result, Refused) for result in results) == 3

    run(go())
    assert (len(script.calls), made.limit.shed, made.limit.in_flight) == (2, 3, 0)
    assert made.failures == 0


def warmed(script: Script, **hedge: Any) -> Target:
    """A target that has learnt that its answers take no time."""
    made = target(script, hedge={"enabled": True, "min_calls": 5, **hedge}, retry={"attempts": 1})

    async def go() -> None:
        acts, script.acts = script.acts, [answers()]
        for _ in range(5):
            await made(call())
        script.acts, script.calls = acts, []

    run(go())
    return made


def test_a_slow_attempt_gets_a_second_one_beside_it_and_is_cancelled_when_that_wins() -> None:
    script = Script(answers(after=30), answers())
    made = warmed(script)

    async def go() -> None:
        assert (await made(call())).status == 200
        assert len(asyncio.all_tasks()) == 1  # the test itself

    run(go())
    assert (len(script.calls), script.cancelled) == (2, 1)
    assert (made.hedges, made.hedges_won, made.failures, made.limit.in_flight) == (1, 1, 0, 0)


def test_the_losers_stream_is_closed() -> None:
    script = Script()
    script.acts = [answers()]
    made = warmed(script)
    made._tails["chat", True] = made._tails["chat", False]
    script.acts = [script.streams(0.05, b"slow", b"rest"), script.streams(0.05, b"quick", b"rest")]

    async def go() -> None:
        assert len(await read(await made(call(stream=True)))) == 2

    run(go())
    assert (script.closed, made.limit.in_flight) == (2, 0)


def test_hedges_stay_within_their_budget() -> None:
    script = Script(answers(after=0.01))
    made = warmed(script, budget=0.0, reserve=2)

    async def go() -> None:
        for _ in range(6):
            await made(call())

    run(go())
    assert (made.hedges, len(script.calls)) == (2, 8)


def test_a_hedge_rescues_a_slow_attempt_that_fails() -> None:
    async def fails_late(call: Call) -> Reply:
        await asyncio.sleep(0.02)
        raise UpstreamFailed("late")

    script = Script(fails_late, answers(after=0.05))
    made = warmed(script)

    async def go() -> None:
        assert (await made(call())).status == 200

    run(go())
    assert (made.hedges_won, made.failures) == (1, 1)


def test_a_client_that_leaves_a_hedged_call_ends_both_attempts() -> None:
    script = Script(answers(after=30))
    made = warmed(script)

    async def go() -> None:
        asked = asyncio.create_task(made(call()))
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(go())
    assert (script.cancelled, made.limit.in_flight, made.failures) == (2, 0, 0)


def test_a_client_that_leaves_while_the_loser_is_ended_takes_no_place_with_it() -> None:
    async def ends_slowly(call: Call) -> Reply:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.1)
        return Reply(body=b"{}")

    script = Script(answers())
    made = warmed(script)
    made._tails["chat", True] = made._tails["chat", False]
    script.acts = [ends_slowly, script.streams(b"one", b"two")]

    async def go() -> None:
        asked = asyncio.create_task(made(call(stream=True)))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert made.limit.in_flight == 0

    gc.disable()  # it would find the stream some time
    try:
        run(go())
    finally:
        gc.enable()
    assert script.closed == 1


def test_an_ejected_target_is_not_ready_but_serves_who_has_nowhere_else_to_go() -> None:
    settings = OutlierSettings(consecutive=1, eject_for=60)
    standing, peer = Member("t", settings), Member("u", settings)
    standing.peers = (peer,)
    script = Script(FAILS, answers())
    made = target(script, standing, retry={"attempts": 1})

    async def go() -> None:
        with pytest.raises(UpstreamFailed):
            await made(call())
        assert not made.ready()
        assert (await made(call())).status == 200

    run(go())


@given(
    st.lists(
        st.sampled_from(["ok", "fail", "400", "stream", "broken", "early", "slow", "leave"]),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_whatever_happens_no_place_is_lost(happenings: list[str], hedging: bool) -> None:
    script = Script()
    acts = {
        "ok": answers(),
        "fail": FAILS,
        "400": answers(400),
        "stream": script.streams(b"one", b"two"),
        "broken": script.streams(b"one", UpstreamFailed("late")),
        "early": script.streams(UpstreamFailed("early")),
        "slow": answers(after=0.002),
        "leave": answers(after=0.01),
    }
    script.acts = [acts[happening] for happening in happenings]
    made = target(
        script,
        breaker={"consecutive": 2, "open_for": 0.001, "probes": 2},
        hedge={"enabled": hedging, "min_calls": 5},
        retry={"attempts": 2, "backoff": 0.0001},
    )

    async def one(leaves: bool) -> None:
        try:
            async with asyncio.timeout(0.003 if leaves else 5):
                await read(await made(call()))
        except (APIError, TimeoutError):
            pass

    async def go() -> None:
        await asyncio.gather(*(one(happening == "leave") for happening in happenings))

    run(go())
    assert made.limit.in_flight == 0

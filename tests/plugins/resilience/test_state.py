"""Budget, tally, breaker, ejection and limit, each by itself and at times that the test sets."""

import heapq
import random
from collections import deque
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.resilience.breaker import Breaker
from pipeline_plugins.resilience.budget import Budget
from pipeline_plugins.resilience.concurrency import Limit
from pipeline_plugins.resilience.outliers import Member, introduce
from pipeline_plugins.resilience.policy import BreakerSettings, Concurrency, OutlierSettings
from pipeline_plugins.resilience.tail import Tail
from pipeline_plugins.resilience.tally import Tally
from structlog.testing import capture_logs


@given(
    st.floats(0, 1),
    st.integers(0, 20),
    st.lists(st.booleans(), max_size=200),
)
def test_a_budget_never_gives_more_than_its_share_and_reserve(
    share: float, reserve: int, events: list[bool]
) -> None:
    budget = Budget(share, reserve)
    given_out = 0
    for index, is_call in enumerate(events):
        if is_call:
            budget.deposit()
        else:
            given_out += budget.withdraw(float(index + 1))
    assert given_out <= reserve + share * sum(events) + 1e-6


def test_a_budget_fills_by_itself_at_its_rate() -> None:
    budget = Budget(0.0, 2, per_second=0.5)
    assert [budget.withdraw(1.0) for _ in range(3)] == [True, True, False]
    assert not budget.withdraw(2.0)
    assert budget.withdraw(4.0)
    assert not budget.withdraw(4.5)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=1, max_size=60))
def test_a_tally_has_all_of_the_last_half_window_and_nothing_older_than_a_window(
    steps: list[tuple[float, bool]],
) -> None:
    tally, now, seen = Tally(4.0), 100.0, []
    for pause, well in steps:
        now += pause
        (tally.success if well else tally.failure)(now)
        seen.append((now, well))
    recent = [well for at, well in seen if at > now - 2.0]
    lately = [well for at, well in seen if at > now - 4.0]
    rate = tally.rate(now, 1)
    assert rate is not None
    assert recent.count(False) / len(lately) - 1e-9 <= rate
    assert tally.rate(now, len(lately) + 1) is None


def breaker(**settings: float) -> Breaker:
    return Breaker("t", BreakerSettings.model_validate(settings))


def outcome(breaker: Breaker, now: float, well: bool | None) -> None:
    breaker.leave(now, breaker.enter(), well)


def test_a_breaker_opens_on_a_failure_rate_of_enough_calls() -> None:
    made = breaker(consecutive=100, failure_rate=0.5, min_calls=10)
    for index in range(9):
        outcome(made, 1.0, index % 2 == 0)
    assert made.state == "closed"
    outcome(made, 1.0, False)
    assert made.state == "open"


def test_old_failures_do_not_open_a_breaker() -> None:
    made = breaker(consecutive=100, failure_rate=0.5, min_calls=4, window=10)
    for _ in range(3):
        outcome(made, 1.0, False)
    outcome(made, 20.0, False)
    assert made.state == "closed"


def test_all_probes_must_do_well_and_one_that_fails_opens_the_breaker_for_the_whole_time_again() -> None:
    made = breaker(consecutive=1, open_for=5, probes=2)
    outcome(made, 0.0, False)
    assert not made.admits(4.9)
    assert made.admits(5.0)
    outcome(made, 5.0, True)
    assert made.state == "half_open"
    outcome(made, 6.0, False)
    assert made.state == "open"
    assert not made.admits(10.9)
    for _ in range(2):
        assert made.admits(11.0)
        outcome(made, 11.0, True)
    assert made.state == "closed"


def test_a_call_from_before_says_nothing_about_a_half_open_target() -> None:
    made = breaker(consecutive=1, open_for=5)
    early = made.enter()
    outcome(made, 0.0, False)
    probe = made.enter()
    made.leave(6.0, early, False)
    made.leave(6.0, early, True)
    assert made.state == "half_open"
    made.answered(probe)
    assert made.state == "closed"


def test_every_change_of_a_breaker_is_one_log_line() -> None:
    made = breaker(consecutive=2, open_for=5)
    with capture_logs() as lines:
        for _ in range(2):
            outcome(made, 0.0, False)
        for _ in range(3):
            outcome(made, 6.0, True)
    assert [(line["target"], line["state"]) for line in lines] == [
        ("t", "open"),
        ("t", "half_open"),
        ("t", "closed"),
    ]


def members(count: int, **settings: float) -> list[Member]:
    made = [Member(f"t{i}", OutlierSettings.model_validate(settings)) for i in range(count)]
    introduce((member, frozenset({"chat"})) for member in made)
    return made


def test_failures_in_a_row_eject_for_longer_each_time_until_forgiven() -> None:
    bad, _ = members(2, consecutive=3, eject_for=10)
    seconds = []
    now = 0.0
    for pause in (0, 11, 21, 10_000):
        now += pause
        assert not bad.ejected(now)
        for _ in range(3):
            bad.count(now, False)
        assert bad.ejected_until is not None
        seconds.append(bad.ejected_until - now)
    assert seconds == [10, 20, 40, 10]


def test_a_failure_rate_far_above_the_peers_ejects_and_one_that_all_share_does_not() -> None:
    settings = {"consecutive": 1000, "margin": 0.3, "min_calls": 20}
    for peers_fail, ejected in ((False, True), (True, False)):
        bad, *others = members(3, **settings)
        for index in range(40):
            for member in others:
                member.count(1.0, not (peers_fail and index % 2))
            bad.count(1.0, index % 2 == 0)
        assert bad.ejected(1.0) is ejected


@pytest.mark.parametrize(("count", "share", "most"), [(1, 0.5, 0), (2, 0.5, 1), (4, 0.5, 2), (4, 0.0, 0)])
def test_no_more_than_a_share_is_ejected_at_a_time(count: int, share: float, most: int) -> None:
    group = members(count, consecutive=1, max_share=share)
    for member in group * 2:
        member.count(1.0, False)
    assert sum(member.ejected(1.0) for member in group) == most


def test_targets_of_different_operations_are_no_peers() -> None:
    chat, embed = (Member(name, OutlierSettings()) for name in ("chat", "embed"))
    introduce([(chat, frozenset({"chat"})), (embed, frozenset({"embedding"}))])
    assert (chat.peers, embed.peers) == ((), ())


def simulate(
    limit: Limit, capacity: int, seconds: float, offered: int, service: float, start: float
) -> float:
    """A target that serves `capacity` calls at a time, and `offered` clients that ask without end.

    Latency follows Little's law: `in flight / capacity` services. Returns the time after.
    """
    noise = random.Random(7)
    now = start
    while now < start + seconds:
        in_flight = min(offered, int(limit.limit))
        limit.in_flight = 0
        for _ in range(in_flight):
            limit.enter()
        latency = service * max(1.0, in_flight / capacity)
        for _ in range(in_flight):
            limit.sample("whole", latency * noise.uniform(0.8, 1.2), now)
        now += latency
    return now


@pytest.mark.parametrize("capacity", [4, 16, 100])
def test_under_a_lasting_overload_the_limit_stays_near_what_the_target_can_do(capacity: int) -> None:
    limit = Limit("t", Concurrency(initial=4, window=0.5))
    now = simulate(limit, capacity, 30, offered=1, service=0.1, start=0.0)
    now = simulate(limit, capacity, 600, offered=2000, service=0.1, start=now)
    assert capacity <= limit.limit <= 4 * capacity


def test_the_limit_rises_when_the_target_grows_and_falls_when_it_shrinks() -> None:
    limit = Limit("t", Concurrency(initial=4))
    now = simulate(limit, 8, 30, offered=1, service=0.1, start=0.0)
    now = simulate(limit, 8, 60, offered=500, service=0.1, start=now)
    small = limit.limit
    now = simulate(limit, 80, 120, offered=500, service=0.1, start=now)
    assert limit.limit > 2 * small
    simulate(limit, 8, 120, offered=500, service=0.1, start=now)
    assert limit.limit < 1.5 * small


def test_at_first_the_limit_doubles_until_latency_tells_otherwise() -> None:
    limit = Limit("t", Concurrency(initial=4))
    simulate(limit, 1000, 5, offered=500, service=0.1, start=0.0)
    assert limit.limit >= 500


def test_an_idle_target_keeps_its_limit() -> None:
    limit = Limit("t", Concurrency(initial=20))
    simulate(limit, 100, 60, offered=5, service=0.1, start=0.0)
    assert limit.limit == 20


def test_refusals_of_the_target_lower_the_limit() -> None:
    limit = Limit("t", Concurrency(initial=20, min=3))
    now = 0.0
    for _ in range(100):
        now += 1
        limit.dropped()
        for _ in range(8):
            limit.sample("whole", 0.1, now)
    assert limit.limit == 3


def test_streams_and_whole_answers_do_not_disturb_each_others_baseline() -> None:
    limit = Limit("t", Concurrency(initial=20))
    for second in range(60):
        limit.in_flight = 15
        limit.enter()
        for _ in range(second % 7 + 4):
            limit.sample("stream", 0.01, float(second))
        for _ in range(10 - second % 7):
            limit.sample("whole", 5.0, float(second))
    assert limit.limit > 20


def test_the_slow_tail_is_unknown_at_first_and_then_a_percentile() -> None:
    tail = Tail(0.95, least=20)
    for index in range(19):
        tail.add(float(index))
    assert tail.seconds is None
    for index in range(1000):
        tail.add(float(index % 100))
    assert tail.seconds is not None
    assert 90 <= tail.seconds <= 99


def queue(limit: Limit, slots: int, load: float, spread: float, seconds: float = 300) -> float:
    """Share of calls refused by a target of `slots` that work in turn, half a second each on average.

    Calls come at random, `load` times what it can do. How long they take is lognormal;
    `spread` is its sigma. What is refused in the first half is not counted.
    """
    rng = random.Random(3)
    arrival, count, refused, free = 0.0, 0, 0, slots
    waiting: deque[tuple[float, float]] = deque()
    ends: list[tuple[float, float]] = []  # when a call ends, and when it came
    while arrival < seconds:
        arrival += rng.expovariate(load * slots / 0.5)
        while ends and ends[0][0] <= arrival:
            now, came = heapq.heappop(ends)
            limit.in_flight -= 1
            limit.sample("whole", now - came, now)
            free += 1
            if waiting:
                came, takes = waiting.popleft()
                free -= 1
                heapq.heappush(ends, (now + takes, came))
        counted = arrival > seconds / 2
        count += counted
        if not limit.has_room:
            refused += counted
            continue
        limit.enter()
        takes = rng.lognormvariate(log(0.5) - spread**2 / 2, spread)
        if free:
            free -= 1
            heapq.heappush(ends, (arrival + takes, arrival))
        else:
            waiting.append((arrival, takes))
    return refused / count


@pytest.mark.parametrize("spread", [0.2, 1.0, 1.5])
@pytest.mark.parametrize("slots", [4, 32])
def test_answers_of_very_different_length_are_not_taken_for_a_queue(slots: int, spread: float) -> None:
    assert queue(Limit("t", Concurrency()), slots, 0.6, spread) < 0.05


@pytest.mark.parametrize("spread", [0.2, 1.0])
@pytest.mark.parametrize(("load", "needed"), [(2, 0.5), (5, 0.8)])
def test_a_queue_is_seen_all_the_same_and_no_more_is_refused_than_needed(
    load: float, needed: float, spread: float
) -> None:
    limit = Limit("t", Concurrency())
    assert needed - 0.05 < queue(limit, 32, load, spread) < needed + 0.05
    assert limit.limit < 3 * 32

"""The parts of the semantic cache: guard, index, decisions, questions."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.cache import semantic_index
from pipeline_plugins.cache.semantic_candidates import Candidate, History
from pipeline_plugins.cache.semantic_decision import Budget, Chance, Threshold, Verified
from pipeline_plugins.cache.semantic_guard import difference, facts_of
from pipeline_plugins.cache.semantic_index import Neighbours
from pipeline_plugins.cache.semantic_question import question_of

from pipeline import Call

SOME = facts_of("how do plants make food")


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("Places to see in Rome in 2016?", "Places to see in Rome in 2017?", "numbers"),
        ("Name three rivers", "Name 3 rivers", ""),
        ("It costs 1,000 euros", "It costs 1000 euros", ""),
        ("Is it safe to run daily?", "Is it not safe to run daily?", "negation"),
        ("Why can't cats swim?", "Why can cats swim?", "negation"),
        ("When is x ≠ y?", "When is x = y?", "negation"),
        ("Rehab near Early County?", "Rehab near Banks County?", "names"),
        ("what is the capital of France?", "what is the capital of Spain?", "names"),
        ("Who rules in France?", "who rules there?", ""),
        ("How do I learn Python?", "how can i learn python", ""),
        ("How does photosynthesis work?", "In which way does photosynthesis work?", ""),
        ("Is IBM hiring?", "Is SAP hiring?", "names"),
        ("٣ apples", "3 apples", ""),
        ("How do I turn on dark mode?", "How do I turn off dark mode?", "opposites"),
        ("How do I turn the screen reader on?", "How do I turn the screen reader off?", "opposites"),
        ("how to turn off sounds on my phone", "how to turn on sounds on my phone", "opposites"),
        ("Turn off comments on a video", "Disable comments on a video", ""),
        ("How do I log in?", "How do I log out?", "opposites"),
        ("Enabling SSH on Debian", "How to disable SSH on Debian", "opposites"),
        ("How can I increase my blood pressure?", "How can I lower my blood pressure?", "opposites"),
        ("How can I increase my blood pressure?", "How do I raise my blood pressure?", ""),
        ("Should I eat before a workout?", "Should I eat after a workout?", "opposites"),
        ("Is it time to buy gold?", "Is it time to sell gold?", "opposites"),
        ("What is opening time on Monday?", "What is opening time on Friday?", "opposites"),
        ("who buys and who sells shares?", "who sells shares?", ""),
        ("Is it legal to record calls?", "Is it illegal to record calls?", "opposites"),
        ("Are spiders harmful?", "Are spiders harmless?", "opposites"),
        ("What is the most useful app?", "Which is the most used app?", ""),
        ("Convert a PDF to Word", "Convert Word to a PDF", "direction"),
        ("Is Java faster than Python?", "Is Python faster than Java?", "direction"),
        ("move from gmail to outlook", "move to outlook from gmail", ""),
        ("move from gmail to outlook", "move from outlook to gmail", "direction"),
        ("from celsius to kelvin and from kelvin to celsius", "from kelvin to celsius", ""),
    ],
)
def test_guard_finds_what_an_embedding_does_not_see(one: str, other: str, found: str) -> None:
    assert difference(facts_of(one), facts_of(other)) == found


@given(st.text(max_size=80), st.text(max_size=80))
def test_guard_is_symmetric_and_finds_nothing_between_equals(one: str, other: str) -> None:
    assert difference(facts_of(one), facts_of(one)) == ""
    assert bool(difference(facts_of(one), facts_of(other))) == bool(
        difference(facts_of(other), facts_of(one))
    )


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from(["in {}?", "{} of them", "x {}"]))
def test_guard_tells_any_two_numbers_apart(one: int, other: int, frame: str) -> None:
    found = difference(facts_of(frame.format(one)), facts_of(frame.format(other)))
    assert (found == "numbers") == (one != other)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, as embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 20), 32))
    found = centres[random.integers(len(centres), size=count)] + 0.4 * random.standard_normal((count, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=120), st.integers(0, 2**32 - 1)
)
def test_index_never_gives_another_partitions_item_and_misses_none(
    steps: list[tuple[int, bool]], seed: int
) -> None:
    known: Neighbours[bytes] = Neighbours(32, capacity=10_000)
    kept: dict[int, tuple[bytes, np.ndarray]] = {}
    for (which, remove), vector in zip(steps, vectors(len(steps), seed), strict=True):
        partition = b"%d" % which
        if remove and kept:
            label = next(iter(kept))
            known.remove(label)
            del kept[label]
        else:
            kept[known.add(partition, vector, partition)] = (partition, vector)
        found = known.search(partition, vector, 200)
        assert all(item == partition for _, _, item in found)
        assert {label for label, _, _ in found} == {la for la, (p, _) in kept.items() if p == partition}
        assert [s for _, s, _ in found] == sorted((s for _, s, _ in found), reverse=True)


def test_index_finds_the_nearest_when_most_vectors_are_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_index, "EXACT_UP_TO", 64)
    known: Neighbours[int] = Neighbours(32, capacity=1500)
    rows = vectors(2000)
    for at, row in enumerate(rows):
        known.add(b"p", row, at)
    assert len(known) == 1500  # the oldest went
    queries = vectors(200, seed=1)
    truth = 500 + np.argmax(queries @ rows[500:].T, axis=1)
    right = sum(
        known.search(b"p", query, 4)[0][2] == best for query, best in zip(queries, truth, strict=True)
    )
    assert right >= 190
    assert all(item >= 500 for query in queries for _, _, item in known.search(b"p", query, 4))


def candidate(similarity: float, history: History | None = None) -> Candidate:
    return Candidate(similarity, SOME, SOME, history or History())


def test_threshold_serves_from_its_similarity_on() -> None:
    decision = Threshold(0.9)
    assert decision.decide(b"", [candidate(0.9)]).action == "serve"
    assert decision.decide(b"", [candidate(0.89)]).action == "miss"
    assert decision.decide(b"", []).action == "miss"
    assert (decision.tally.requests, decision.tally.served) == (3, 1)


def stream(decision: Verified, count: int, seed: int, slope: float, middle: float) -> tuple[int, int]:
    """Hits and wrong hits on questions whose neighbours are right by a logistic law of similarity."""
    random = Random(seed)
    hits = wrong = 0
    for number in range(count):
        near = candidate(random.uniform(0.7, 1.0))
        right = random.random() < 1 / (1 + math.exp(-slope * (near.similarity - middle)))
        verdict = decision.decide(b"%d" % number, [near])
        if verdict.action == "serve":
            hits += 1
            wrong += not right
        else:
            decision.learn(verdict, near, right)
    return hits, wrong


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(10, 60),
    st.floats(0.72, 1.05),
    st.sampled_from([0.01, 0.02, 0.05]),
)
def test_verified_keeps_to_its_bound_whatever_the_law(
    seed: int, slope: float, middle: float, max_error: float
) -> None:
    decision = Verified(max_error, random=Random(seed))
    _, wrong = stream(decision, 3000, seed, slope, middle)
    # What is served is random; the bound is aimed at from four standard deviations below.
    assert wrong <= 3000 * max_error


def test_verified_serves_more_where_it_may_err_more() -> None:
    hits = [stream(Verified(e, random=Random(1)), 4000, 1, 25, 0.92)[0] for e in (0.005, 0.02, 0.08)]
    assert hits[0] < hits[1] < hits[2]
    assert hits[0] > 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), max_size=300))
def test_budget_never_lets_expected_wrong_hits_exceed_it(steps: list[tuple[float, bool, bool]]) -> None:
    budget = Budget(0.05, margin=2.0)
    for risk, audit, right in steps:
        budget.tick()
        budget.pass_by(risk)
        if not budget.allows(risk):
            continue
        if audit:
            budget.audit(risk, right)
        else:
            budget.serve(risk)
            assert budget.expected * 0.8 <= 0.05 * budget.requests + 1


@pytest.mark.parametrize(("max_error", "riskiest"), [(0.01, 0.38), (0.02, 0.46), (0.2, 0.5)])
def test_what_is_too_risky_is_not_served_however_much_may_be_spent(max_error: float, riskiest: float) -> None:
    budget = Budget(max_error, margin=2.0)
    for _ in range(50_000):
        budget.tick()
        budget.pass_by(0.01)
    assert budget.allows(riskiest - 0.01)
    assert not budget.allows(riskiest + 0.01)


def test_an_entrys_own_history_moves_its_threshold() -> None:
    decision = Verified(0.05)
    rows = [decision.decide(b"", [candidate(0.9, h)]) for h in (History(5, 0), History(), History(0, 5))]
    assert rows[0].confidence > rows[1].confidence > rows[2].confidence


def test_a_text_served_by_similarity_is_answered_afresh_when_it_comes_again() -> None:
    decision = Verified(0.4, explore=0, random=Random(0))
    for number in range(2000):
        decision.decide(b"%d" % number, [candidate(0.75)])
    assert decision.decide(b"popular", [candidate(0.99)]).action == "serve"
    assert decision.decide(b"popular", [candidate(0.99)]).action == "miss"


def test_chance_learns_the_law_that_it_sees() -> None:
    chance, random = Chance(variance=1.0), np.random.default_rng(0)
    for _ in range(4000):
        x = np.array([1.0, random.uniform(-2, 1), *[0.0] * 8])
        chance.learn(x, bool(random.random() < 1 / (1 + math.exp(-(0.5 + 3 * x[1])))))
    assert abs(chance.mean[0] - 0.5) < 0.3
    assert abs(chance.mean[1] - 3) < 0.6


def test_measured_error_has_an_interval_that_holds_the_truth() -> None:
    decision = Threshold(0.9, explore=0.3, random=Random(0))
    random, wrong = Random(1), 0
    for number in range(5000):
        near, right = candidate(0.95), random.random() < 0.8
        verdict = decision.decide(b"%d" % number, [near])
        if verdict.action == "serve":
            wrong += not right
        else:
            decision.learn(verdict, near, right)
    measured, low, high = decision.tally.error()
    assert low < wrong / 5000 < high
    assert low < measured < high


def call(body: dict[str, object], operation: str = "chat") -> Call:
    return Call(id="1", operation=operation, body=body, deadline=1e9, received=0)


def said(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_question_is_the_last_turn_within_its_conversation() -> None:
    messages = said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
    question = question_of(call({"messages": messages, "temperature": 0}))
    assert question is not None
    assert (question.text, question.context) == ("Why?", "Hi\nHello")
    assert question.frame["messages"] == [messages[0], ["user", None], ["assistant", None]]
    assert question.frame["temperature"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"messages": said(("user", "Hi"), ("assistant", "Hello"))},
        {"messages": said(("user", [{"type": "image_url", "image_url": {"url": "x"}}]))},
        {"messages": said(("user", "Hi")), "n": 2},
        {"messages": said(("user", "  "))},
        {"messages": said(("user", "long " * 2000))},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": "4"}]},
    ],
)
def test_what_is_no_question_in_text_is_not_compared(body: dict[str, object]) -> None:
    assert question_of(call(body)) is None

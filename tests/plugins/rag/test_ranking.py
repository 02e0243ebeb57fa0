"""Rankings and passages put together, and chunks in windows: what holds for all of them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.ranking import Candidate, distinct, fuse, joined
from pipeline_plugins.rag.windows import TOKEN, TOKENS, mean, packed, similarities, windows

TEXT = "".join(chr(ord("a") + n % 26) for n in range(100))
IDS = st.lists(st.integers(0, 30), unique=True)


def a_candidate(row: int, similarity: float | None = None) -> Candidate:
    return Candidate(row, 0.0, similarity)


def a_passage(id: int, text: str) -> Passage:
    return Passage(str(id), "d", text, "", None, "", 0, 1, {}, 0.0, ordinal=id)


def a_part(start: int, end: int, document: str = "d") -> Passage:
    return Passage(f"{document}{start}-{end}", document, TEXT[start:end], "", None, "", start, end, {}, 0.0)


PARTS = st.lists(
    st.tuples(st.integers(0, 99), st.integers(1, 30), st.sampled_from("de")).map(
        lambda one: a_part(one[0], min(100, one[0] + one[1]), one[2])
    ),
    max_size=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(IDS, IDS, st.floats(0.1, 0.9))
def test_what_is_first_in_both_rankings_is_first_of_all(
    near: list[int], matching: list[int], w: float
) -> None:
    best = 31
    found = [a_candidate(n, 0.5 - n / 100) for n in sorted(near)]
    first = a_candidate(best, 0.9)
    fused = fuse([first, *found], [first, *(a_candidate(n) for n in matching)], w)
    assert fused[0].row == best
    assert {one.row for one in fused} == {best, *near, *matching}


@given(IDS)
def test_without_words_the_nearest_are_first_whichever_search_found_them(ids: list[int]) -> None:
    found = [a_candidate(n, n / 31) for n in ids]
    fused = fuse(found[::2], found, 0.0)
    assert [one.row for one in fused] == sorted(ids, reverse=True)


@given(st.lists(st.sampled_from("abc")))
def test_of_equal_texts_the_first_stays(texts: list[str]) -> None:
    left = distinct(a_passage(n, text) for n, text in enumerate(texts))
    assert [one.ordinal for one in left] == sorted({texts.index(text) for text in texts})


@given(PARTS)
def test_passages_that_overlap_become_one_and_no_character_is_lost(parts: list[Passage]) -> None:
    whole = joined(parts)
    for one in whole:
        assert one.text == TEXT[one.start : one.end]
    for at, one in enumerate(whole):
        for other in whole[at + 1 :]:
            assert one.document != other.document or one.end <= other.start or other.end <= one.start

    def covered(those: list[Passage]) -> set[tuple[str, int]]:
        return {(one.document, at) for one in those for at in range(one.start, one.end)}

    assert covered(whole) == covered(parts)
    if parts:
        assert whole[0].id == parts[0].id


@given(PARTS, PARTS)
def test_what_stands_beside_gets_no_place_of_its_own(parts: list[Passage], beside: list[Passage]) -> None:
    whole = joined(parts, beside)
    assert {one.id for one in whole} <= {one.id for one in parts}
    assert all(any(one.start <= p.start and p.end <= one.end for one in whole) for p in parts)


def test_a_passage_grows_by_the_chunks_around_it() -> None:
    (grown,) = joined([a_part(20, 40)], [a_part(41, 60), a_part(0, 22), a_part(80, 90)])
    assert (grown.start, grown.end, grown.text) == (0, 60, f"{TEXT[:40]}\n{TEXT[41:60]}")


@given(st.text(st.sampled_from("ab. \n!。漢"), max_size=3000))
def test_windows_are_the_text_in_parts_of_bounded_length(text: str) -> None:
    parts = windows(text)
    assert "".join(parts).rstrip() == text.rstrip()
    assert all(len(TOKEN.findall(part)) <= TOKENS for part in parts)


def test_windows_end_with_sentences() -> None:
    parts = windows("Llamas hum, and alpacas hum as well. " * 30)
    assert len(parts) > 3
    assert all(part.endswith(". ") for part in parts)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_chunk_is_as_near_as_its_vectors_say(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    made = random.normal(size=(rows + 1, 384)).astype(np.float32)
    query, *own = made / np.linalg.norm(made, axis=1, keepdims=True)
    whole = mean(np.array(own))
    exact = 2 / 3 * max(float(one @ query) for one in own) + 1 / 3 * float(whole @ query)
    other = packed(np.array(own[:1]))
    told = similarities(query, [other, packed(np.array(own)), other])
    assert told == pytest.approx([float(own[0] @ query), exact, float(own[0] @ query)], abs=2e-3)
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)

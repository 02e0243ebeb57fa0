"""When requests are due: traces as they were, rates as they are asked for."""

import gzip
from itertools import pairwise
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.bench.arrivals import Arrival, Load

from pipeline.cli.app import run

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_trace_keeps_its_spacing_at_its_speed(tmp_path: Path, name: str) -> None:
    text = HEAD + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,396,109\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert list(Load(trace=path, speed=2, shrink=0.5)) == [Arrival(0, 187, 22), Arrival(2, 198, 54)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("when,ContextTokens,GeneratedTokens\n1,2,3\n", "no column TIMESTAMP"),
        (HEAD + "0,2,3\nsoon,2,3\n", r"trace.csv:3: .*soon"),
        (HEAD + "0,2\n", r"trace.csv:2"),
        (HEAD + "nan,2,3\n", r"trace.csv:2"),
        (HEAD + "0,2,99999999999\n", r"trace.csv:2: .*of up to 10,000,000 tokens"),
    ],
)
def test_a_trace_that_is_none_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(click.UsageError, match=said):
        list(Load(trace=path))


@pytest.mark.parametrize("damage", ["cut", "broken", "plain", "not text"])
def test_a_trace_that_cannot_be_read_is_told_with_its_name(tmp_path: Path, damage: str) -> None:
    text = HEAD.encode() + b"".join(b"%d,%d,3\n" % (at, at * 7919 % 997) for at in range(100))
    packed = gzip.compress(text)
    content = {
        "cut": packed[: len(packed) // 2],
        "broken": packed[:20] + bytes(byte ^ 255 for byte in packed[20:]),
        "plain": text,
        "not text": gzip.compress(text + b"\xff,1,2\n"),
    }
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(content[damage])
    with pytest.raises(click.UsageError, match=r"The trace .*trace\.csv\.gz can't be read: "):
        list(Load(trace=path))


@pytest.mark.parametrize("option", ["--rate", "--speed", "--shrink", "--seconds", "--timeout"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_to_count_with_is_refused(
    capfd: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert run(["bench", "--in-process", option, value]) == 2
    assert f"Invalid value for '{option}'" in capfd.readouterr().err


@given(st.floats(0.1, 1000), st.integers(1, 200))
def test_constant_arrivals_are_evenly_spaced(rate: float, count: int) -> None:
    at = [arrival.at for arrival in Load(rate=rate, arrivals="constant", requests=count)]
    assert len(at) == count
    assert all(abs(after - before - 1 / rate) < 1e-6 for before, after in pairwise(at))


def test_random_arrivals_have_the_rate_and_its_spread() -> None:
    at = [arrival.at for arrival in Load(rate=50, requests=20_001, seed=1)]
    gaps = [after - before for before, after in pairwise(at)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert spread == pytest.approx(mean, rel=0.05)  # of an exponential distribution


def test_a_seed_makes_the_same_arrivals() -> None:
    assert list(Load(requests=50, seed=3)) == list(Load(requests=50, seed=3))
    assert list(Load(requests=50, seed=3)) != list(Load(requests=50, seed=4))


def test_a_load_ends_at_its_seconds() -> None:
    assert [arrival.at for arrival in Load(rate=2, arrivals="constant", seconds=2)] == [0, 0.5, 1, 1.5]

"""Trace context: what of a client's headers is believed, and which traces are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.trace.context import begin

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True)])
def test_the_client_decides_whether_its_trace_is_kept(flags: str, sampled: bool, ratio: float) -> None:
    trace = begin({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}, ratio)
    assert (f"{trace.trace:032x}", f"{trace.parent:016x}") == (TRACE, PARENT)
    assert trace.sampled is sampled


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"{GOOD}\n",
        f"00-{TRACE}-{PARENT}",
    ],
)
def test_a_header_that_is_not_right_begins_a_new_trace(header: str) -> None:
    trace = begin({"traceparent": header}, 1.0)
    assert trace.parent == 0
    assert f"{trace.trace:032x}" != TRACE


def test_a_later_version_may_say_more() -> None:
    assert begin({"traceparent": f"01-{TRACE}-{PARENT}-01-more"}, 0.0).sampled


@given(st.text(), st.text())
def test_no_header_breaks_a_call(parent: str, state: str) -> None:
    trace = begin({"traceparent": parent, "tracestate": state}, 0.5)
    assert trace.trace


def test_what_is_passed_on_is_read_as_it_was_meant() -> None:
    trace = begin({"traceparent": GOOD, "tracestate": "vendor=1"}, 0.0)
    headers = trace.outbound(7)
    assert headers["tracestate"] == "vendor=1"
    below = begin(headers, 0.0)
    assert (below.trace, below.parent, below.sampled) == (trace.trace, 7, True)


@pytest.mark.parametrize("state", ["a=1\r\nx-admin: 1", "\u00e9=1", "x" * 600])
def test_a_state_that_could_not_be_sent_is_not_passed_on(state: str) -> None:
    trace = begin({"traceparent": GOOD, "tracestate": state}, 0.0)
    assert set(trace.outbound(7)) == {"traceparent"}


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.25, 380, 620), (1.0, 2000, 2000)])
def test_of_new_traces_the_ratio_is_kept(ratio: float, low: int, high: int) -> None:
    # 2,000 draws at 0.25 have a standard deviation of 19: the bounds are six of them away.
    assert low <= sum(begin({}, ratio).sampled for _ in range(2000)) <= high

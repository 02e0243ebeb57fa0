"""Batches: calls never wait, memory is bounded, and trouble is said once."""

import sys
import threading
from collections.abc import Sequence

import pytest
import structlog
from pipeline_plugins.trace import exporter
from pipeline_plugins.trace.exporter import BATCH, Batches

from pipeline.cli.app import run
from tests.plugins.trace.collector import until


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    batches: Batches[int] = Batches(lambda batch: True, seconds=60, bound=3)
    for n in range(5):
        batches.put(n)
    assert (batches.waiting, batches.dropped) == (3, 2)


def test_items_are_sent_in_order_in_batches_and_the_last_at_the_end() -> None:
    sent: list[Sequence[int]] = []

    def send(batch: Sequence[int]) -> bool:
        sent.append(batch)
        return True

    batches: Batches[int] = Batches(send, seconds=60, bound=10_000)
    for n in range(BATCH + 10):
        batches.put(n)
    batches.open()
    batches.close(30)
    assert [n for batch in sent for n in batch] == list(range(BATCH + 10))
    assert max(map(len, sent)) == BATCH
    assert batches.sent == BATCH + 10


def test_a_full_batch_does_not_wait_for_the_clock() -> None:
    arrived = threading.Event()

    def send(batch: Sequence[int]) -> bool:
        arrived.set()
        return True

    batches: Batches[int] = Batches(send, seconds=60, bound=10_000)
    batches.open()
    for n in range(BATCH):
        batches.put(n)
    assert arrived.wait(30)
    batches.close(30)


def test_a_collector_that_is_away_and_back_is_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "log", structlog.get_logger())
    answers = iter([False, False, None, True, True])

    def send(batch: Sequence[int]) -> bool:
        answer = next(answers)
        if answer is None:
            raise ValueError("a secret")
        return answer

    batches: Batches[int] = Batches(send, seconds=0.001, bound=10)
    with structlog.testing.capture_logs() as lines:
        batches.open()
        for n in range(1, 6):
            batches.put(n)
            until(lambda n=n: batches.sent + batches.failed == n)  # type: ignore[misc]
        batches.close(30)
    assert (batches.sent, batches.failed) == (2, 3)
    assert [line["event"] for line in lines] == [
        "traces are not taken",
        "spans could not be made",
        "traces are taken again",
    ]
    assert "secret" not in str(lines)


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setattr("sys.stdin", None)
    assert run(["ask", "hi", "infer=echo", "infer@embed=none", "price=none", "trace=otlp"]) == 2
    assert "pip install 'llm-pipeline[trace]'" in capsys.readouterr().err

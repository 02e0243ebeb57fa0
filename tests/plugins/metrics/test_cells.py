"""Numbers of several processes: none is lost, none counts twice, whoever dies when."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.metrics import shared
from pipeline_plugins.metrics.cells import SCRAP, Cells, read_files
from pipeline_plugins.metrics.collect import Collected
from pipeline_plugins.metrics.family import Family
from pipeline_plugins.metrics.shared import Folder

from pipeline import Metric

COUNT = Family("count", "Count.", "counter", ("stage",))
BUSY = Family("busy", "Busy.", "gauge")
WORST = Family("worst", "Worst.", "gauge", across="max")
TOOK = Family("took", "Took.", "histogram", (), (1.0, 2.0))


def add(cells: Cells, family: Family, value: float = 1, labels: tuple[str, ...] = ()) -> None:
    cells.values[cells.series(family, labels)] += value


def total(folder: Folder, family: Family, labels: tuple[str, ...] = ()) -> list[float]:
    return folder.read()[family.name].samples[labels]


def test_counters_and_histograms_of_all_processes_are_added(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "metrics")
    one, two = folder.join(), folder.join()
    add(one, COUNT, 2, ("a",))
    add(two, COUNT, 3, ("a",))
    add(two, COUNT, 1, ("b",))
    at = two.series(TOOK)
    two.values[at], two.values[at + 2] = 1.5, 1
    assert folder.read()["count"].samples == {("a",): [5], ("b",): [1]}
    assert total(folder, TOOK) == [1.5, 0, 1, 0]


def test_gauges_are_of_those_that_live_and_say_how_they_are_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "metrics")
    processes = [folder.join() for _ in range(3)]
    for value, cells in zip((1, 5, 2), processes, strict=True):
        add(cells, BUSY, value)
        add(cells, WORST, value)
    assert (total(folder, BUSY), total(folder, WORST)) == ([8], [5])
    processes[1].close()
    assert (total(folder, BUSY), total(folder, WORST)) == ([3], [2])


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["count", "restart", "restart twice"])), max_size=20
    )
)
def test_whatever_processes_come_and_go_every_count_is_there_once(steps: list[tuple[int, str]]) -> None:
    with TemporaryDirectory() as name:
        folder = Folder(Path(name, "metrics"))
        living = [folder.join() for _ in range(4)]
        counted = 0
        for who, what in steps:
            if what == "count":
                add(living[who], COUNT, 1, ("a",))
                counted += 1
            else:
                living[who].close()
                living[who] = folder.join()
                if what == "restart twice":
                    living[who].close()
                    living[who] = folder.join()
            found = folder.read().get("count")
            assert (found.samples["a",][0] if found else 0) == counted
        for cells in living:
            cells.close()


def test_files_of_ended_processes_do_not_pile_up(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "metrics")
    for _ in range(20):
        cells = folder.join()
        add(cells, COUNT, 1, ("a",))
        cells.close()
    assert len(list(folder.folder.iterdir())) <= 6
    assert total(folder, COUNT, ("a",)) == [20]


@pytest.mark.parametrize("survives", [0, 1])
def test_a_process_killed_while_it_puts_others_away_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    folder = Folder(tmp_path / "metrics")
    for _ in range(2):
        cells = folder.join()
        add(cells, COUNT, 1, ("a",))
    cells.close()
    removed: list[Path] = []
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if len(removed) >= survives:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(shared.Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.join()
    monkeypatch.undo()
    assert total(folder, COUNT, ("a",)) == [2]
    folder.join()
    assert total(folder, COUNT, ("a",)) == [2]


def test_a_line_that_was_not_finished_is_not_read(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "one")
    add(cells, COUNT, 1, ("a",))
    with tmp_path.joinpath("one.names").open("ab") as file:
        file.write(b"[0,52")
    (sampled,) = read_files(tmp_path / "one")
    assert sampled.samples == {("a",): [1]}


def test_series_beyond_the_block_are_dropped_and_counted() -> None:
    cells = Cells(size=(SCRAP + 2) * 8)
    for name in "abcd":
        add(cells, COUNT, 1, (name,))
    assert cells.lost == 2
    (sampled,) = cells.read()
    assert sampled.samples == {("a",): [1], ("b",): [1]}


def test_a_counter_that_begins_anew_is_added_to_what_it_was() -> None:
    cells = Cells()
    collected = Collected(cells)
    for value in (5, 7, 2, 3):
        collected.put([Metric("count", "Count.", "counter", {("a",): value}, ("stage",))])
    (sampled,) = cells.read()
    assert sampled.samples == {("a",): [10]}


def test_of_two_plugins_that_use_one_name_differently_the_first_is_shown() -> None:
    cells = Cells()
    of_stage = Metric("count", "Count.", "counter", {("a",): 1}, ("stage",))
    Collected(cells).put([of_stage, Metric("count", "Count.", "counter", {("a", "b"): 1}, ("x", "y"))])
    (sampled,) = cells.read()
    assert sampled.samples == {("a",): [1]}


def test_a_gauge_that_is_gone_has_no_number() -> None:
    cells = Cells()
    collected = Collected(cells)
    collected.put([Metric("busy", "Busy.", "gauge", {("a",): 1, ("b",): 2}, ("stage",))])
    collected.put([Metric("busy", "Busy.", "gauge", {("b",): 3}, ("stage",))])
    (sampled,) = cells.read()
    assert sampled.samples == {("b",): [3]}


def test_what_several_instances_of_a_plugin_count_is_put_together() -> None:
    cells = Cells()
    collected = Collected(cells)

    def of(count: float, worst: float) -> list[Metric]:
        return [
            Metric("count", "Count.", "counter", {(): count}),
            Metric("busy", "Busy.", "gauge", {(): count}),
            Metric("worst", "Worst.", "gauge", {(): worst}, across="max"),
        ]

    for _ in range(3):
        collected.put([*of(5, 1), *of(3, 0)])
    assert {one.family.name: one.samples[()] for one in cells.read()} == {
        "count": [8],
        "busy": [8],
        "worst": [1],
    }

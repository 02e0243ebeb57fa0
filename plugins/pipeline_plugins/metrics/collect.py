"""What stages and extensions count themselves, put beside what is counted of calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from importlib.metadata import version

from pipeline.hookspecs import Metric
from pipeline_plugins.metrics.cells import Cells
from pipeline_plugins.metrics.family import Family, together

STATM = "/proc/self/statm"

VERSION = version("llm-pipeline")

STARTED = time.time()
"""About when this process began: it imports this at its start."""


class Collected:
    """The metrics of plugins in cells, where other processes can read them.

    A counter that begins anew, since a reload made its stage anew, is added to what it was:
    the sum over processes must not fall when one of them does.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self._families: dict[str, Family] = {}
        self._last: dict[int, float] = {}
        self._gauges: set[int] = set()

    def put(self, metrics: Iterable[Metric]) -> None:
        """Write down all that there is now; gauges that are gone have no number any more.

        What several instances of a plugin count by the same name and labels is put together.
        """
        found = list(metrics)
        values, gone = self.cells.values, self._gauges
        self._gauges = set()
        counted: dict[int, float] = {}
        for metric in found:
            family = self._families.get(metric.name)
            if family is None:
                family = Family(metric.name, metric.about, metric.type, metric.labels, (), metric.across)
                self._families[metric.name] = family
            elif family.labels != metric.labels:
                continue  # two plugins mean different things by one name: the first is shown
            for labels, value in metric.samples.items():
                at = self.cells.series(family, labels)
                if metric.type != "gauge":
                    counted[at] = counted.get(at, 0.0) + value
                    continue
                values[at] = together(family.across, values[at], value) if at in self._gauges else value
                self._gauges.add(at)
        for at, value in counted.items():
            last = self._last.get(at, 0.0)
            values[at] += value - last if value >= last else value
            self._last[at] = value
        for at in gone - self._gauges:
            values[at] = float("nan")


def process() -> Iterable[Metric]:
    """The process itself, by the names that every Prometheus client has for it."""
    times = os.times()
    cpu = times.user + times.system
    yield Metric("process_cpu_seconds_total", "CPU seconds of all workers.", "counter", {(): cpu})
    about = "When the first of the workers began, in seconds since 1970."
    yield Metric("process_start_time_seconds", about, "gauge", {(): STARTED}, across="min")
    yield Metric("pipeline_workers", "Worker processes.", "gauge", {(): 1})
    info: dict[tuple[str, ...], float] = {(VERSION,): 1}
    yield Metric("pipeline_build_info", "The release that runs.", "gauge", info, ("version",), "max")
    if os.path.exists(STATM):
        with open(STATM) as file:
            pages = int(file.read().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE")
        yield Metric("process_resident_memory_bytes", "Memory of all workers.", "gauge", {(): memory})

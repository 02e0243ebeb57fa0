"""Runs the benchmarks and prints one table: what, figure, budget, and what it compares with.

Below it are the benchmarks that were left out, and why.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table


def main(arguments: list[str]) -> int:
    """Run pytest on this folder and print what the benchmarks noted. Returns pytest's status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmarks.json"
        here = str(Path(__file__).parent)
        options = ["--benchmark-json", str(report), "--benchmark-quiet", "-p", "no:xdist", "-q", "-s"]
        options += ["-W", "ignore:Not saving anything"]  # where all that was chosen is left out
        skipped = Skipped()
        status = pytest.main([here, *options, *arguments], plugins=[skipped])
        if report.is_file() and report.stat().st_size:
            print_table(json.loads(report.read_text())["benchmarks"])
        for name, why in skipped.reasons.items():
            print(f"not run: {name} ({why})")
    return int(status)


class Skipped:
    """Benchmarks that were left out, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a reason."""
        if report.skipped and isinstance(report.longrepr, tuple):
            name = report.nodeid.rpartition("::")[2].removeprefix("test_")
            self.reasons[name] = report.longrepr[2].removeprefix("Skipped: ")


def print_table(benchmarks: list[dict[str, Any]]) -> None:
    """One line for each figure; over budget is red."""
    table = Table(title=f"{platform.python_version()}, {os.cpu_count()} CPUs", title_justify="left")
    for heading in ("figure", "measured", "budget", "beside it, in the same run"):
        table.add_column(heading, justify="right" if heading in ("measured", "budget") else "left")
    for benchmark in benchmarks:
        for note in benchmark["extra_info"].get("figures", []):
            value, budget, unit = note["value"], note["budget"], note["unit"]
            over = budget is not None and (value < budget if note["more_is_better"] else value > budget)
            sign = "≥" if note["more_is_better"] else "≤"
            table.add_row(
                note["what"],
                f"[red]{value:.4g} {unit}[/red]" if over else f"{value:.4g} {unit}",
                "" if budget is None else f"{sign} {budget:g} {unit}",
                note["beside"],
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

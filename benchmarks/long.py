"""Benchmarks that take minutes run where `BENCH_LONG=1` asks for them; the table names those left out."""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("BENCH_LONG"))


def long(minutes: int) -> pytest.MarkDecorator:
    """Mark what takes so many minutes on a quiet machine."""
    return pytest.mark.skipif(not LONG, reason=f"takes about {minutes} minutes: BENCH_LONG=1")

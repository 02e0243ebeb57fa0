"""Logs while examples run: what is worth a look, not a line for each call."""

from __future__ import annotations

import logging

import structlog

from pipeline import logging as pipeline_logging


def quiet() -> None:
    """Log warnings and worse, and progress where no bar can be drawn."""
    pipeline_logging.configure(beside_an_answer=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

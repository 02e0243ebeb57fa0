"""Importing what a check is built on, where the configuration asks for that check."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.problems import ConfigError, Problem


def load(module: str, package: str, extra: str = "validate") -> Any:
    """Import a module. Raises `ConfigError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        problem = Problem("plugin", f"this check needs {package}.", f"pip install 'llm-pipeline[{extra}]'")
        raise ConfigError([problem]) from None

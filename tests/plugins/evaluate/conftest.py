"""Logs stay as the tests' own set-up has them."""

import pytest


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_plugins.evaluate.quiet.quiet", lambda: None)

"""What plugins have the dashboard show, by a hook."""

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import structlog
from pipeline_plugins.dashboard import routes
from pipeline_plugins.dashboard.routes import Pages

from pipeline import Panel


def shown(*panels: list[Awaitable[Panel]]) -> Any:
    hook = SimpleNamespace(pipeline_panels=lambda: list(panels))
    graph: Any = SimpleNamespace(plugins=SimpleNamespace(hook=hook))
    nothing: Any = None
    pages = Pages(graph, nothing, nothing, None, streams=1, interval=1)
    return asyncio.run(pages._panels({}))


async def made(title: str) -> Panel:
    return Panel(title, ("a", "b"), (("1", "2"),))


async def failing() -> Panel:
    raise ZeroDivisionError


def test_panels_of_all_plugins_are_shown_and_one_that_fails_keeps_no_other_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(routes, "log", structlog.get_logger())
    with structlog.testing.capture_logs() as lines:
        found = shown([made("one"), made("two")], [failing()], [made("three")], [])
    assert [panel.title for panel in found] == ["one", "two", "three"]
    assert [line["log_level"] for line in lines] == ["error"]

"""Answers that were made of something which has a version."""

import asyncio
from typing import Any

from pipeline_plugins.cache.sources import Sources

from pipeline.errors import Overloaded


class Hook:
    """What a graph's plugins say of versions."""

    def __init__(self, versions: dict[str, Any]) -> None:
        self.versions = versions
        self.hook = self
        self.plugins = self
        self.pipeline_version = self

    def get_hookimpls(self) -> list[Any]:
        return [self]

    def __call__(self, source: str) -> Any:
        if source not in self.versions:
            return None

        async def version() -> str:
            found = self.versions[source]
            if isinstance(found, Exception):
                raise found
            return str(found)

        return version()


def current(versions: dict[str, Any], *sources: tuple[str, str]) -> bool:
    asked = Sources()
    asked.opened(Hook(versions))  # type: ignore[arg-type]
    return asyncio.run(asked.current(sources))


def test_an_answer_made_of_nothing_is_current() -> None:
    assert current({})


def test_an_answer_is_current_while_all_it_was_made_of_is() -> None:
    assert current({"a": "1", "b": "2"}, ("a", "1"), ("b", "2"))
    assert not current({"a": "1", "b": "3"}, ("a", "1"), ("b", "2"))


def test_an_answer_is_not_current_where_nobody_can_tell() -> None:
    assert not current({}, ("a", "1"))
    assert not current({"a": Overloaded("away")}, ("a", "1"))
    assert not asyncio.run(Sources().current([("a", "1")]))

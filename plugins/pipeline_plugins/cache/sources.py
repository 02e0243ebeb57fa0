"""Whether what a kept answer was made of is still the same.

A stage that makes answers of documents, say, puts their collection's version into the call's
record. It is kept with the answer, and compared with the version of now before the answer is
given again. So no event has to arrive for an answer to be forgotten: it does not matter
which process changed the collection, nor where the cache keeps its entries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from pipeline.errors import APIError
from pipeline.graph import Graph


class Sources:
    """Asks the graph's plugins for versions."""

    def __init__(self) -> None:
        self._ask: Callable[..., Awaitable[str] | None] | None = None

    def opened(self, graph: Graph) -> None:
        """Learn whom to ask."""
        hook = graph.plugins.hook.pipeline_version
        self._ask = hook if hook.get_hookimpls() else None

    async def current(self, sources: Iterable[tuple[str, str]]) -> bool:
        """Whether all of them have these versions now; not where nobody can tell."""
        for source, version in sources:
            asked = None if self._ask is None else self._ask(source=source)
            try:
                if asked is None or await asked != version:
                    return False
            except APIError:
                return False
        return True

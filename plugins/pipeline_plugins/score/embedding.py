"""What scorers that compare meanings have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.infer.minilm_embedder import Embedder


class Embedding:
    """The beginning of a scorer that embeds texts (all-MiniLM-L6-v2)."""

    _embedder: Embedder | None = None

    async def open(self, graph: Graph) -> None:
        """Load the embedding model. Raises `ConfigError` where it is missing."""
        from pipeline_plugins.infer.minilm_embedder import Embedder

        self._embedder = await asyncio.to_thread(Embedder)

    @property
    def embedder(self) -> Embedder:
        """The model, once the scorer is open."""
        if self._embedder is None:
            raise RuntimeError("the scorer is not open")
        return self._embedder

"""An experiment on a dashboard, where the graph keeps a ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

from pipeline.hookspecs import Panel

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.experiment.standing import Standing
    from pipeline_plugins.ledger.extension import LedgerConfig
    from pipeline_plugins.route.ab import AB
    from pipeline_plugins.route.bandit import Bandit

LEDGERS = "ledger."
"""Extensions of this kind have the calls by which variants are compared."""


class Shown:
    """The panel of an experiment with these targets; none without a ledger, or without numpy."""

    def __init__(self, name: str, config: AB.Config | Bandit.Config, targets: Iterable[str]) -> None:
        self._name = name
        self._config = config
        self._targets = tuple(targets)
        self._kept: LedgerConfig | None = None
        self._standing: Standing | None = None

    def find(self, graph: Graph) -> None:
        """Find the ledger."""
        if not any(part.plugin.startswith(LEDGERS) for part in graph.plan.extensions):
            return
        from pipeline_plugins.ledger.extension import LedgerConfig

        kept = (part.config for part in graph.plan.extensions if isinstance(part.config, LedgerConfig))
        self._kept = next(kept, None)

    def panels(self) -> Iterable[Awaitable[Panel]]:
        """How it stands, by the calls of all processes that the ledger has."""
        if self._kept is None:
            return ()
        if self._standing is None:
            try:
                from pipeline_plugins.experiment.design import design_of
                from pipeline_plugins.experiment.standing import Standing
            except ImportError:
                return ()
            self._standing = Standing(self._kept, self._name, design_of(self._config, self._targets))
        return (self._standing.panel(),)

    async def close(self) -> None:
        """Let the ledger go, if it is being read."""
        if self._standing is not None:
            await self._standing.close()

"""Compiling a plan into a graph of bound stages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pluggy
from pluggy import PluginValidationError

from pipeline import hookspecs
from pipeline.call import Call
from pipeline.plan import Part, Plan
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.reply import Reply
from pipeline.stage import Edge, Edges, Model, Ready, StageCall, readiness


class Graph:
    """Stages bound to each other by edges, of which one is the entry.

    `shared` is a folder that the worker processes of one server have in common, from its
    start to its end; None where there is one process.
    """

    def __init__(
        self,
        entry: Edge,
        stages: dict[str, Any],
        edges: list[Edge],
        plugins: pluggy.PluginManager,
        plan: Plan,
        shared: Path | None = None,
    ) -> None:
        self.entry = entry
        self.plan = plan
        self.shared = shared
        self.stages = stages
        self.plugins = plugins
        self._edges = edges
        self._parts: dict[str, Any] = {**dict(plugins.list_name_plugin()), **stages}
        self._paths = {part.name: part.path for part in (*plan.extensions, *plan.parts.values())}
        self._opened: list[str] = []
        self._kept: frozenset[str] = frozenset()
        with _hooks_checked(plan):
            for name, stage in stages.items():
                plugins.register(stage, name=name)
            plugins.check_pending()
        self.opened_in = 0.0

    @classmethod
    def build(cls, plan: Plan, former: Graph | None = None, *, shared: Path | None = None) -> Graph:
        """Create every stage with its edges. Raises `ConfigError` if one refuses its config.

        A stage at the end of the graph, such as a model, is taken over from a `former` graph
        that is open, if its configuration is the same: see `take_over`.
        """
        stages: dict[str, Any] = {}
        layered: dict[str, StageCall] = {}
        ready: dict[str, Ready | None] = {}
        edges: list[Edge] = []
        problems: list[Problem] = []
        plugins = pluggy.PluginManager("pipeline")
        plugins.add_hookspecs(hookspecs)
        kept = former.kept_by(plan) if former is not None else {}
        for part in plan.extensions:
            extension = kept.get(part.name) or _create(part, {}, problems)
            if former is not None and extension is not None:
                former.join(part.name, extension)
            with _hooks_checked(plan):
                plugins.register(extension, name=part.name)
        if problems:
            raise ConfigError(problems)

        def bind(source: str, name: str, target: str) -> Edge:
            edge = Edge(source, name, target, layered[target], ready[target])
            edges.append(edge)
            return edge

        for part in plan.parts.values():
            node = plan.topology.nodes[part.name]
            given: dict[str, Edge | Edges] = {}
            for name, to in node.edges.items():
                if isinstance(to, str):
                    given[name] = bind(node.name, name, to)
                else:
                    given[name] = Edges({key: bind(node.name, f"{name}.{key}", t) for key, t in to.items()})
            stages[part.name] = stage = kept.get(part.name) or _create(part, given, problems)
            if problems:
                raise ConfigError(problems)
            ways: list[StageCall] = [stage.__call__]
            entry = part.name == plan.topology.entry
            for layer in plugins.hook.pipeline_layer(stage=part.name, plugin=part.plugin, entry=entry):
                ways.append(layer(ways[-1]))
            layered[part.name] = ways[-1]
            ready[part.name] = readiness([stage, *ways[1:]], [e for e in edges if e.source == part.name])
        shared = former.shared if former is not None else shared
        graph = cls(bind("", "entry", plan.topology.entry), stages, edges, plugins, plan, shared)
        graph._kept = frozenset(kept)
        return graph

    def kept_by(self, plan: Plan) -> dict[str, Any]:
        """The open parts that a new plan configures just as they are, and that no edge binds.

        Extensions are made anew unless they say `survives_reload`.
        """
        former = {part.name: part for part in (*self.plan.extensions, *self.plan.parts.values())}
        kept = {}
        for part in (*plan.extensions, *plan.parts.values()):
            known, own = former.get(part.name), self._parts.get(part.name)
            same = known is not None and (known.plugin, known.config) == (part.plugin, part.config)
            free = getattr(own, "survives_reload", part.name in plan.parts and not part.loaded.edges)
            if same and free and part.name in self._opened:
                kept[part.name] = own
        return kept

    def join(self, name: str, extension: Any) -> None:
        """Let a new extension go on with what this open graph's one of the same name and class has."""
        own, joining = self._parts.get(name), getattr(extension, "join", None)
        if joining is not None and type(own) is type(extension) and own is not extension:
            joining(own)

    def take_over(self, former: Graph) -> None:
        """Answer for the parts that were kept from a former graph, which then leaves them open."""
        self._opened = [name for name in former._opened if name in self._kept] + self._opened
        former._opened = [name for name in former._opened if name not in self._kept]
        self._kept = frozenset()

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that calls can reach, known once the graph is open."""
        return self.entry.models

    def way_to(self, stage: str) -> Edge | None:
        """An edge to a stage, with the layers around it, for what asks it from beside the graph."""
        return next((edge for edge in self._edges if edge.target == stage), None)

    async def open(self) -> None:
        """Open extensions, then stages, targets first; learn which models each edge reaches.

        If one fails, those already open are closed before its error is raised.
        """
        started = perf_counter()
        reached: dict[str, tuple[Model, ...]] = {}
        try:
            for name, part in self._parts.items():
                outgoing = [edge for edge in self._edges if edge.source == name]
                for edge in outgoing:
                    edge.models = reached[edge.target]
                opening: Callable[[], Awaitable[None]] | None = getattr(part, "open", None)
                if name not in self._kept:
                    self._opened.append(name)
                    if opening is not None:
                        await self._open_one(name, opening)
                own = getattr(part, "models", None)
                if own is None:
                    own = dict.fromkeys(model for edge in outgoing for model in edge.models)
                reached[name] = tuple(self._priced(model) for model in own)
            self.entry.models = reached[self.entry.target]
            self.plugins.hook.pipeline_opened(graph=self)
        except BaseException as error:
            try:
                await self.close()
            except ExceptionGroup as others:
                error.add_note(f"and then {others}: {others.exceptions}")
            raise
        self.opened_in = perf_counter() - started

    def _priced(self, model: Model) -> Model:
        if model.id is None or model.price is not None:
            return model
        return replace(model, price=self.plugins.hook.pipeline_price(model=model.id))

    async def _open_one(self, name: str, opening: Callable[[], Awaitable[None]]) -> None:
        """Open one; what of its config turns out wrong is told by its full key path."""
        try:
            await opening()
        except ConfigError as error:
            raise ConfigError(_below(self._paths[name], error.problems)) from error
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError([Problem(self._paths[name], f"can't be opened: {error}")]) from error
        except Exception as error:
            error.add_note(f"while `{name}` was opened")
            raise

    async def close(self) -> None:
        """Close what was opened, in reverse. One failure does not keep the others open."""
        errors: list[Exception] = []
        while self._opened:
            closing = getattr(self._parts[self._opened.pop()], "close", None)
            if closing is None:
                continue
            try:
                await closing()
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("stages failed to close", errors)

    async def __call__(self, call: Call) -> Reply:
        """Send a call in at the entry."""
        return await self.entry(call)


def _create(part: Part, edges: Mapping[str, Edge | Edges], problems: list[Problem]) -> Any:
    name = {"name": part.name} if part.loaded.wants_name else {}
    try:
        return part.loaded.cls(config=part.config, **edges, **name)
    except ConfigError as error:
        problems.extend(_below(part.path, error.problems))
        return None
    except (ValueError, OSError, ImportError) as error:
        problems.append(Problem(part.path, f"`{part.plugin}` refuses its config: {error}"))
        return None
    except Exception as error:
        error.add_note(f"while `{part.name}` was made, of the plugin `{part.plugin}`")
        raise


@contextmanager
def _hooks_checked(plan: Plan) -> Iterator[None]:
    """Have a hook that there is not, or one with other arguments, be told as a plugin's mistake."""
    try:
        yield
    except PluginValidationError as error:
        # It is not registered yet, so it has no name there.
        parts = (*plan.extensions, *plan.parts.values())
        part = next(part for part in parts if part.loaded.cls is type(error.plugin))
        found = re.search(r"hook '(\w+)'", str(error))
        hook = found[1] if found else ""
        spec = getattr(hookspecs, hook, None)
        if spec is None:
            known = [word for word in vars(hookspecs) if word.startswith("pipeline_")]
            what, hint = "there is no such hook", did_you_mean(hook, known)
        else:
            what = "its signature does not fit"
            hint = f"It may take: {', '.join(inspect.signature(spec).parameters) or 'nothing'}."
        raise ConfigError([Problem(part.path, f"`{part.plugin}`: hook `{hook}`: {what}.", hint)]) from None


def _below(path: str, problems: Iterable[Problem]) -> list[Problem]:
    """What a stage found wrong with its own config, at its place in the whole."""
    return [replace(p, path=f"{path}.{p.path}" if p.path else path) for p in problems]

"""What every router does: which targets may serve a call, why none can, and passing it on."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from pipeline import DEFAULT_NAMES, Call, Edge, Edges, Model, Reply
from pipeline.errors import InvalidRequest, ModelNotFound
from pipeline.kinds import Routed
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.wire.needs import PARAMS
from pipeline_plugins.route.windows import Way, within

AUTO = "auto"
"""What an alias stands for that leaves the choice to the router."""

HEADER = "x-pipeline-route"

OFFERS_KEPT = 1024
"""Names whose targets are remembered; clients can send any number of them."""


class Routing(BaseModel):
    """What can be set for every router."""

    model_config = ConfigDict(extra="forbid")

    aliases: dict[str, str] = Field(
        default_factory=dict,
        max_length=1024,
        description="Further model names: each stands for a target, or `auto`, the router's choice.",
    )


class Target:
    """An edge that calls can be sent along; `routed` is the decision where no more is to be said."""

    __slots__ = ("edge", "name", "routed")

    def __init__(self, name: str, edge: Edge, reason: str) -> None:
        self.name = name
        self.edge = edge
        self.routed = Routed(name, reason)


@dataclass(slots=True, frozen=True)
class Offer:
    """Who answers an operation under a name.

    common     what all can do that declare anything; None where none does
    window     the smallest context window that is declared, 0 where none is
    """

    ways: tuple[Way[Target], ...]
    targets: tuple[Target, ...]
    common: frozenset[str] | None
    window: int


class Targets:
    """The targets of one router, in the graph's order, or those made for the operation first.

    `reason` is what `Routed` says where a policy says no more. A model's own name comes
    before a wildcard that takes any name. Embeddings of different models can't be compared,
    so they are never spread over several.
    """

    def __init__(
        self, edges: Edges, config: Routing, reason: str = "", *, specialised_first: bool = False
    ) -> None:
        self.edges = edges
        self._specialised_first = specialised_first
        self._aliases = config.aliases
        self._targets = tuple(Target(name, edge, reason) for name, edge in edges.items())
        self._offers: dict[tuple[str, str, frozenset[str] | None], Offer] = {}
        check_names("aliases", config.aliases, (*edges, AUTO), values=True)

    @property
    def names(self) -> list[str]:
        """The targets' names, in the graph's order."""
        return list(self.edges)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that are reached, with this router's aliases for them."""
        found: dict[Model, None] = {}
        for name, edge in self.edges.items():
            more = [alias for alias, to in self._aliases.items() if to in (name, AUTO)]
            more = [alias for alias in more if alias not in DEFAULT_NAMES]
            for model in edge.models:
                if model.id is None:
                    found[model] = None
                    found.update((replace(model, id=alias), None) for alias in more)
                else:
                    found[replace(model, aliases=tuple(dict.fromkeys((*model.aliases, *more))))] = None
        return tuple(found)

    def able(self, call: Call) -> Sequence[Target]:
        """The targets that may serve a call, ready or not; at least one.

        Raises `ModelNotFound` for a name or an operation that nobody serves, `InvalidRequest`
        for a need that nobody has, `ContextTooLong` for a prompt that fits nobody's window.
        """
        offer = self._offer(call)
        if not offer.targets:
            raise unknown_model(call, self.edges, self._aliases)
        ways: Sequence[Way[Target]] = offer.ways
        if offer.common is not None and not call.needs <= offer.common:
            ways = [way for way in ways if any(model.able(call) for model in way.models)]
            if not ways:
                raise unmet_needs(call, offer.ways, self.edges)
        # A token has a byte at least: what is shorter than the smallest window need not be counted.
        if offer.window and len(ways) > 1 and len(call.raw) > offer.window:
            return within(call, ways)
        if len(ways) < len(offer.ways):
            return [way.target for way in ways]
        return offer.targets

    def choices(self, call: Call) -> Sequence[Target]:
        """Those among the able that are ready, all of them where none is. Raises as `able` does."""
        able = self.able(call)
        if len(able) > 1:
            for target in able:
                if not target.edge.ready():
                    return [target for target in able if target.edge.ready()] or able
        return able

    def send(self, call: Call, target: Target, routed: Routed | None = None) -> Awaitable[Reply]:
        """Pass the call to a target, and note that it was taken, and why."""
        record = call.record
        record.decide(routed if routed is not None else target.routed)
        record.headers[HEADER] = target.name
        return target.edge(self.renamed(call, target) if call.model in self._aliases else call)

    def renamed(self, call: Call, target: Target) -> Call:
        """A call by an alias, under a name that its target knows."""
        served = any(model.serves(call.operation, call.model) for model in target.edge.models)
        if call.model in DEFAULT_NAMES or (served and self._aliases[call.model] != AUTO):
            return call
        renamed = call.derive(model="default")
        if call.tenant.models is not None:
            # Whoever may use an alias may use what it leads to.
            renamed.tenant = replace(call.tenant, models=None)
        return renamed

    def _offer(self, call: Call) -> Offer:
        key = (call.operation, call.model, call.tenant.models)
        offer = self._offers.get(key)
        if offer is None:
            offer = self._find(call)
            if len(self._offers) >= OFFERS_KEPT:
                self._offers.clear()
            self._offers[key] = offer
        return offer

    def _find(self, call: Call) -> Offer:
        to = self._aliases.get(call.model)
        ways = []
        for target in self._targets:
            if to is None:
                served = [model for model in target.edge.models if model.serves(call.operation, call.model)]
            elif to in (target.name, AUTO):
                served = [model for model in target.edge.models if call.operation in model.operations]
            else:
                continue
            if allowed := tuple(model for model in served if model.allowed(call.tenant, call.model)):
                ways.append(Way(target, allowed))
        named = to is None and call.model not in DEFAULT_NAMES
        if named:
            known = [Way(way.target, own) for way in ways if (own := _with_name(way.models))]
            ways = known or ways
        if call.operation == "embedding":
            ways = _of_one_model(ways, any_name=named)
        if self._specialised_first:
            ways.sort(key=lambda way: _fewest(way.models))
        windows = [model.context_window for way in ways for model in way.models if model.context_window]
        return Offer(
            tuple(ways),
            tuple(way.target for way in ways),
            _common(model.capabilities for way in ways for model in way.models),
            min(windows, default=0),
        )


def _common(capabilities: Iterable[frozenset[str]]) -> frozenset[str] | None:
    declared = [some for some in capabilities if some]
    return frozenset.intersection(*declared) if declared else None


def _with_name(models: Iterable[Model]) -> tuple[Model, ...]:
    return tuple(model for model in models if model.id is not None)


def _fewest(models: Iterable[Model]) -> int:
    return min(len(model.operations) for model in models)


def _of_one_model(ways: list[Way[Target]], *, any_name: bool) -> list[Way[Target]]:
    """The ways to one model, that of the target most made for embeddings.

    A model without a name is what the client calls it (`any_name`), or else its target's own.
    """
    if len(ways) < 2:
        return ways
    best = min(ways, key=lambda way: _fewest(way.models))
    own = min(best.models, key=lambda model: len(model.operations))
    if own.id is None and not any_name:
        return [best]
    return [way for way in ways if min(way.models, key=lambda model: len(model.operations)).id == own.id]


def check_names(
    field: str, given: Mapping[str, object], known: Iterable[str], *, values: bool = False
) -> None:
    """Refuse a config field in which a target is named that there is not. Raises `ConfigError`."""
    names = list(known)
    problems = []
    for key, value in given.items():
        name = str(value) if values else key
        if name not in names:
            hint = did_you_mean(name, names)
            problems.append(Problem(f"{field}.{key}", f"there is no target `{name}`.", hint))
    if problems:
        raise ConfigError(problems)


def unknown_model(call: Call, targets: Edges, aliases: Iterable[str] = ()) -> ModelNotFound:
    """The error for a call that no target serves, naming the models that would do."""
    models = dict.fromkeys(model for edge in targets.values() for model in edge.models)
    doing = [model for model in models if model.id and call.operation in model.operations]
    fitting = [model.id for model in doing if model.id and model.allowed(call.tenant, model.id)]
    fitting += [name for name in aliases if call.tenant.models is None or name in call.tenant.models]
    names = ", ".join(fitting) or "none"
    elsewhere = [model for model in models if model.id == call.model or call.model in model.aliases]
    if not doing:
        message = f"No model of this deployment does `{call.operation}`."
    elif elsewhere:
        message = f"The model `{call.model}` does not do `{call.operation}`; these do: {names}."
    else:
        message = f"The model `{call.model}` does not exist. Available: {names}."
    return ModelNotFound(message, param="model")


def unmet_needs(call: Call, ways: Iterable[Way[Target]], edges: Edges) -> InvalidRequest:
    """The error for a call that asks what none of the models of its name can do, and who can."""
    models = {model: None for way in ways for model in way.models}
    missing = [need for need in sorted(call.needs) if not any(need in model.capabilities for model in models)]
    message = f"No model that is served as `{call.model}` can do "
    if missing:
        words = ", ".join(f"`{need}`" for need in missing)
        able = {
            model.id: None
            for edge in edges.values()
            for model in edge.models
            if model.id and call.operation in model.operations and call.needs <= model.capabilities
            if model.allowed(call.tenant, model.id)
        }
        message += f"{words}. These can: {', '.join(map(str, able))}." if able else f"{words}."
    else:
        words = ", ".join(f"`{need}`" for need in sorted(call.needs))
        each = [
            f"{model.id} ({', '.join(sorted(model.capabilities & call.needs))})"
            for model in models
            if model.id
        ]
        message += f"{words} together; there is: {'; '.join(each)}."
    param = PARAMS.get((missing or sorted(call.needs))[0])
    return InvalidRequest(message, param=param, code="unsupported_capability")

"""Checking a configuration: from composed values to a plan that can be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.plugins import Loaded, PluginError, Registry
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline.secrets import is_secret
from pipeline.topology import STAGES, Node, Topology, read_topology


@dataclass(slots=True)
class Part:
    """A stage or extension as the config describes it, checked and ready to be built."""

    name: str
    path: str
    plugin: str
    loaded: Loaded
    config: BaseModel


@dataclass(slots=True)
class Plan:
    """A checked configuration: what `Graph.build` needs, and what drawings show.

    `parts` has the stages in the order in which they are opened, targets first.
    """

    topology: Topology
    parts: dict[str, Part]
    elided: list[str]
    extensions: list[Part] = field(default_factory=list)


def plan_graph(config: Mapping[str, Any], registry: Registry) -> Plan:
    """Check a composed configuration. Raises `ConfigError` with all of its problems."""
    problems: list[Problem] = []
    topology = read_topology(config.get("graph"), problems)
    if topology is None:
        raise ConfigError(problems)
    parts: dict[str, Part] = {}
    elided: dict[str, str] = {}
    dropped: set[str] = set()
    absent: list[Node] = []
    for name in [*topology.order(), *(n for n in topology.nodes if n not in topology.order())]:
        node = topology.nodes[name]
        use_path = f"{STAGES}.{name}.use" if node.use != name else f"{STAGES}.{name}"
        found = _lookup(config, node.use, use_path, problems)
        if found is None:
            continue
        if found["plugin"] is None:
            absent.append(node)
            continue
        part = _check_part(name, node.use, found, registry, problems)
        if part is None:
            continue
        if not part.loaded.is_stage:
            problems.append(
                Problem(use_path, f"plugin `{part.plugin}` is no stage: it has no `async __call__`.")
            )
        _check_edges(node, part, problems)
        parts[name] = part
    for node in absent:
        _elide(node, topology, parts, elided, dropped, problems)
    extensions = _plan_extensions(config, registry, problems)
    if problems:
        raise ConfigError(problems)
    bound = _bypass(topology, elided, dropped)
    reachable = bound.order()
    return Plan(bound, {name: parts[name] for name in reachable}, [*elided, *sorted(dropped)], extensions)


def _plan_extensions(config: Mapping[str, Any], registry: Registry, problems: list[Problem]) -> list[Part]:
    extensions = config.get("extensions") or {}
    if not isinstance(extensions, Mapping):
        problems.append(Problem("extensions", "expected a mapping of names to config paths."))
        return []
    parts = []
    for name, use in extensions.items():
        if use is None:
            continue
        found = _lookup(config, str(use), f"extensions.{name}", problems)
        if found is not None and found["plugin"] is not None:
            part = _check_part(str(name), str(use), found, registry, problems)
            if part is not None:
                parts.append(part)
    return parts


def _lookup(
    config: Mapping[str, Any], use: str, path: str, problems: list[Problem]
) -> Mapping[str, Any] | None:
    """The config node that a stage uses."""
    found: Any = config
    for key in use.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        nodes = [k for k, v in config.items() if isinstance(v, Mapping) and "plugin" in v]
        problems.append(Problem(path, f"the config has no node `{use}`.", did_you_mean(use, nodes)))
        return None
    if "plugin" not in found:
        problems.append(
            Problem(use, "no plugin is named.", f"Expected `plugin: KIND.NAME`, or an override `{use}=NAME`.")
        )
        return None
    return found


def _elide(
    node: Node,
    topology: Topology,
    parts: Mapping[str, Part],
    elided: dict[str, str],
    dropped: set[str],
    problems: list[Problem],
) -> None:
    """Leave out a stage without plugin: its callers go to its `next`.

    One at the end of the graph is dropped, where no caller needs it.
    """
    to = node.edges.get("next")
    if isinstance(to, str):
        elided[node.name] = to
    elif not node.edges and _nobody_needs(node.name, topology, parts):
        dropped.add(node.name)
    else:
        problems.append(
            Problem(
                f"{STAGES}.{node.name}",
                f"stage `{node.name}` has no plugin (`{node.use}=none`) and no single `next` to pass on to.",
                f"Choose one, say `{node.use}=NAME`.",
            )
        )


def _nobody_needs(name: str, topology: Topology, parts: Mapping[str, Part]) -> bool:
    """Whether every edge to a stage is one of several that a router has, or one that its stage may lack."""

    def may_lack(caller: str, edge: str, to: str | Mapping[str, str]) -> bool:
        if not isinstance(to, str):
            return len(to) > 1
        if caller not in parts:  # left out itself, with all edges but this one
            return edge != "next"
        spec = parts[caller].loaded.edges.get(edge)
        return spec is not None and not spec.required

    callers = [
        may_lack(caller, edge, to)
        for caller, node in topology.nodes.items()
        for edge, to in node.edges.items()
        if to == name or (not isinstance(to, str) and name in to.values())
    ]
    return bool(callers) and all(callers)


def _check_part(
    name: str, path: str, node: Mapping[str, Any], registry: Registry, problems: list[Problem]
) -> Part | None:
    plugin = node["plugin"]
    if not isinstance(plugin, str):
        problems.append(Problem(f"{path}.plugin", f"expected `KIND.NAME`, got {plugin!r}."))
        return None
    try:
        loaded = registry.find(plugin).load()
    except PluginError as error:
        problems.append(Problem(f"{path}.plugin", f"{error}.", error.hint))
        return None
    values = {key: value for key, value in node.items() if key != "plugin"}
    config = check_model(loaded.config, values, path, problems)
    return None if config is None else Part(name, path, plugin, loaded, config)


def check_model(
    model: type[BaseModel], values: Mapping[str, Any], path: str, problems: list[Problem]
) -> BaseModel | None:
    """Validate a config node; pydantic's findings become problems at their key paths."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.extend(_problem_of(found, model, path) for found in error.errors(include_url=False))
        return None


def _problem_of(found: Any, model: type[BaseModel], path: str) -> Problem:
    keys = [str(key) for key in found["loc"]]
    at = ".".join([path, *keys]) if keys else path
    if found["type"] == "extra_forbidden":
        known = list(model.model_fields) if len(keys) == 1 else []
        return Problem(at, f"unknown key `{keys[-1]}`.", did_you_mean(keys[-1], known))
    if found["type"] == "missing":
        return Problem(at, "a value is required.")
    message = found["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if is_secret(keys, model) or not isinstance(found["input"], (str, int, float, bool, type(None))):
        return Problem(at, f"{message}.")
    return Problem(at, f"{message}, got {found['input']!r}.")


def _check_edges(node: Node, part: Part, problems: list[Problem]) -> None:
    specs = part.loaded.edges
    path = f"{STAGES}.{node.name}"
    for name, to in node.edges.items():
        spec = specs.get(name)
        if spec is None:
            hint = did_you_mean(name, specs) if specs else "It is an end of the graph."
            problems.append(Problem(f"{path}.{name}", f"`{part.plugin}` has no edge `{name}`.", hint))
        elif spec.many and isinstance(to, str):
            node.edges[name] = {to: to}
        elif not spec.many and not isinstance(to, str):
            problems.append(
                Problem(f"{path}.{name}", f"edge `{name}` of `{part.plugin}` leads to one stage.")
            )
    for spec in specs.values():
        if spec.required and not node.edges.get(spec.name):
            what = "targets" if spec.many else "a stage"
            problems.append(
                Problem(
                    path,
                    f"`{part.plugin}` needs the edge `{spec.name}`.",
                    f"Expected `{spec.name}:` with {what}.",
                )
            )


def _bypass(topology: Topology, elided: Mapping[str, str], dropped: set[str]) -> Topology:
    """The topology with every stage that has no plugin replaced by its `next`."""

    def real(name: str) -> str:
        while name in elided:
            name = elided[name]
        return name

    nodes = {}
    for name, node in topology.nodes.items():
        if name in elided or name in dropped:
            continue
        edges: dict[str, str | dict[str, str]] = {}
        for edge, to in node.edges.items():
            if not isinstance(to, str):
                edges[edge] = {key: real(t) for key, t in to.items() if real(t) not in dropped}
            elif real(to) not in dropped:
                edges[edge] = real(to)
        nodes[name] = Node(name, node.use, edges)
    return Topology(real(topology.entry), nodes)

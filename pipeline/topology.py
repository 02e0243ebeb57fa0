"""The shape of a graph as its YAML writes it, and the rules that it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.problems import Problem, did_you_mean

STAGES = "graph.stages"


@dataclass(slots=True)
class Node:
    """One stage of the YAML: where its config stands, and its edges.

    An edge leads to a stage's name, or to several by name.
    """

    name: str
    use: str
    edges: dict[str, str | dict[str, str]] = field(default_factory=dict)

    def targets(self) -> list[tuple[str, str]]:
        """Every (key path below the stage, target's name) of its edges."""
        found: list[tuple[str, str]] = []
        for name, target in self.edges.items():
            if isinstance(target, str):
                found.append((name, target))
            else:
                found.extend((f"{name}.{key}", to) for key, to in target.items())
        return found


@dataclass(slots=True)
class Topology:
    """Named stages, of which one is the entry."""

    entry: str
    nodes: dict[str, Node]

    def order(self) -> list[str]:
        """The names reachable from the entry, targets before those that lead to them."""
        done: list[str] = []
        seen: set[str] = set()
        stack = [(self.entry, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                done.append(name)
            elif name in self.nodes and name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack.extend((to, False) for _, to in reversed(self.nodes[name].targets()))
        return done


def read_topology(graph: Any, problems: list[Problem]) -> Topology | None:
    """Read the `graph` node; what breaks a rule is added to `problems`.

    Returns None when there is too little to go on with.
    """
    if not isinstance(graph, Mapping):
        problems.append(
            Problem("graph", "there is no graph.", "Expected a mapping with `entry` and `stages`.")
        )
        return None
    for key in graph:
        if key not in ("entry", "stages"):
            hint = did_you_mean(str(key), ["entry", "stages"])
            problems.append(Problem(f"graph.{key}", f"unknown key `{key}`.", hint))
    stages = graph.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        problems.append(Problem(STAGES, "expected a mapping of stage names to stages."))
        return None
    nodes = {str(name): _read_node(str(name), value, problems) for name, value in stages.items()}
    topology = Topology(_read_entry(graph.get("entry"), nodes, problems), nodes)
    complete = _check_targets(topology, problems)
    _check_cycles(topology, problems)
    if complete and topology.entry in nodes:
        _check_reach(topology, problems)
    return topology


def _read_entry(entry: Any, nodes: Mapping[str, Node], problems: list[Problem]) -> str:
    if isinstance(entry, (list, tuple, Mapping)):
        problems.append(
            Problem("graph.entry", f"two entries or more: {list(entry)}.", "A graph has one; name one stage.")
        )
    elif entry is not None and not isinstance(entry, str):
        problems.append(
            Problem("graph.entry", f"expected a stage's name, got {entry!r}.", "Quote it if it is one.")
        )
    elif not entry:
        problems.append(
            Problem("graph.entry", "no entry is named.", f"Expected a stage: {', '.join(nodes)}.")
        )
    elif entry not in nodes:
        problems.append(Problem("graph.entry", f"unknown stage `{entry}`.", did_you_mean(entry, nodes)))
    else:
        return entry
    return ""


def _read_node(name: str, value: Any, problems: list[Problem]) -> Node:
    path = f"{STAGES}.{name}"
    if value is None:
        return Node(name, name)
    if not isinstance(value, Mapping):
        problems.append(Problem(path, f"expected a mapping such as {{next: STAGE}}, got {value!r}."))
        return Node(name, name)
    use = value.get("use", name)
    if not isinstance(use, str):
        problems.append(Problem(f"{path}.use", f"expected a config path such as `infer`, got {use!r}."))
        use = name
    node = Node(name, use)
    for key, target in value.items():
        if key == "use" or target is None:
            continue
        if isinstance(target, str):
            node.edges[str(key)] = target
        elif isinstance(target, (list, tuple)) and all(isinstance(t, str) for t in target):
            node.edges[str(key)] = {t: t for t in target}
        elif isinstance(target, Mapping) and all(isinstance(t, str) or t is None for t in target.values()):
            node.edges[str(key)] = {str(k): t for k, t in target.items() if t is not None}
        else:
            problems.append(
                Problem(f"{path}.{key}", f"expected a stage, a list or a mapping of stages, got {target!r}.")
            )
    return node


def _check_targets(topology: Topology, problems: list[Problem]) -> bool:
    before = len(problems)
    for node in topology.nodes.values():
        for key, target in node.targets():
            if target not in topology.nodes:
                hint = did_you_mean(target, topology.nodes)
                problems.append(Problem(f"{STAGES}.{node.name}.{key}", f"unknown stage `{target}`.", hint))
    return len(problems) == before


def _check_cycles(topology: Topology, problems: list[Problem]) -> None:
    """Depth-first search; an edge back to a stage on the current path closes a cycle."""
    state: dict[str, str] = {}
    for start in topology.nodes:
        path: list[str] = []
        stack: list[tuple[str, str, bool]] = [(start, "", False)]
        while stack:
            name, came_by, leaving = stack.pop()
            if leaving:
                state[path.pop()] = "done"
            elif state.get(name) == "open":
                ring = " -> ".join([*path[path.index(name) :], name])
                hint = "Remove one of its edges."
                problems.append(Problem(came_by, f"the graph has a cycle: {ring}.", hint))
            elif name in topology.nodes and name not in state:
                state[name] = "open"
                path.append(name)
                stack.append((name, "", True))
                targets = topology.nodes[name].targets()
                stack.extend((to, f"{STAGES}.{name}.{key}", False) for key, to in targets)


def _check_reach(topology: Topology, problems: list[Problem]) -> None:
    reached = set(topology.order())
    inner = {to for name, node in topology.nodes.items() if name not in reached for _, to in node.targets()}
    for name in topology.nodes:
        if name in reached or name in inner:
            continue
        problems.append(
            Problem(
                f"{STAGES}.{name}",
                f"no edge leads from the entry `{topology.entry}` to stage `{name}`.",
                "Add an edge to it, or remove it.",
            )
        )

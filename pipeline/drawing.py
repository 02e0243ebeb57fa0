"""Drawing a graph: as text, as Mermaid, as SVG."""

from __future__ import annotations

from html import escape

from pipeline.plan import Plan

STYLE = ".b{fill:#eef4ff;stroke:#3b6fd4}.e{stroke:#667;fill:none}.t{fill:#112}.s{fill:#556;font-size:11px}"
DARK = ".b{fill:#16233c;stroke:#7aa2f7}.e{stroke:#99a}.t{fill:#eef}.s{fill:#aab}"

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 46, 70, 26, 16


def edges_of(plan: Plan) -> list[tuple[str, str, str]]:
    """Every edge as (source, name, target), in the graph's order from the entry."""
    found: list[tuple[str, str, str]] = []
    for name in reversed(plan.parts):
        found.extend((name, key, target) for key, target in plan.topology.nodes[name].targets())
    return found


def as_text(plan: Plan) -> str:
    """A tree from the entry; a stage that was drawn before is only named again."""
    drawn: set[str] = set()
    lines: list[str] = []

    def draw(name: str, edge: str, lead: str, mark: str, below: str) -> None:
        again = name in drawn
        drawn.add(name)
        label = f"{edge} -> " if edge else ""
        lines.append(f"{lead}{mark}{label}{name}{' (above)' if again else f'  [{plan.parts[name].plugin}]'}")
        if again:
            return
        targets = plan.topology.nodes[name].targets()
        for index, (key, target) in enumerate(targets):
            last = index == len(targets) - 1
            draw(target, key, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    draw(plan.topology.entry, "", "", "", "")
    if plan.elided:
        lines.append(f"left out (none): {', '.join(plan.elided)}")
    return "\n".join(lines)


def as_mermaid(plan: Plan) -> str:
    """A Mermaid flowchart, as GitHub and many editors draw it."""
    lines = ["flowchart LR"]
    lines += [
        f'  {_id(name)}["{name}<br/><small>{plan.parts[name].plugin}</small>"]'
        for name in reversed(plan.parts)
    ]
    lines += [
        f"  {_id(source)} -->{f'|{label_of(name)}|' if label_of(name) else ''} {_id(target)}"
        for source, name, target in edges_of(plan)
    ]
    return "\n".join(lines)


def label_of(edge: str) -> str:
    """What to write on an edge: nothing on a plain `next`."""
    return "" if edge == "next" else edge.removeprefix("next.")


def _id(name: str) -> str:
    return "s_" + "".join(c if c.isalnum() else "_" for c in name)


def as_svg(plan: Plan) -> str:
    """A drawing with the entry on the left, each stage one column after its last caller."""
    places = _places(plan)
    right = max(x for x, _ in places.values()) + WIDTH + MARGIN
    bottom = max(y for _, y in places.values()) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" width="{right}"',
        f' height="{bottom}" font-family="system-ui, sans-serif" font-size="13">',
        f"<style>{STYLE}@media(prefers-color-scheme:dark){{{DARK}}}</style>",
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto">'
        '<path class="e" d="M0 0 8 4 0 8"/></marker></defs>',
    ]
    for source, name, target in edges_of(plan):
        parts.append(_svg_edge(places[source], places[target], label_of(name)))
    for name, (x, y) in places.items():
        middle = x + WIDTH / 2
        plugin = escape(plan.parts[name].plugin)
        parts.append(
            f'<rect class="b" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
            f'<text class="t" x="{middle}" y="{y + 20}" text-anchor="middle">{escape(name)}</text>'
            f'<text class="s" x="{middle}" y="{y + 36}" text-anchor="middle">{plugin}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def cells(plan: Plan) -> dict[str, tuple[int, int]]:
    """Column and row of each stage: the longest way from the entry gives its column."""
    columns: dict[str, int] = {plan.topology.entry: 0}
    for name in reversed(plan.parts):
        for _, target in plan.topology.nodes[name].targets():
            columns[target] = max(columns.get(target, 0), columns[name] + 1)
    rows: dict[int, int] = {}
    found = {}
    for name in reversed(plan.parts):
        column = columns[name]
        row = rows.get(column, 0)
        rows[column] = row + 1
        found[name] = (column, row)
    return found


def _places(plan: Plan) -> dict[str, tuple[int, int]]:
    """Top left corner of each stage."""
    return {
        name: (MARGIN + column * (WIDTH + GAP_X), MARGIN + row * (HEIGHT + GAP_Y))
        for name, (column, row) in cells(plan).items()
    }


def _svg_edge(source: tuple[int, int], target: tuple[int, int], label: str) -> str:
    x1, y1 = source[0] + WIDTH, source[1] + HEIGHT // 2
    x2, y2 = target[0], target[1] + HEIGHT // 2
    bend = (x2 - x1) // 2
    curve = f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
    path = f'<path class="e" marker-end="url(#a)" d="{curve}"/>'
    if not label:
        return path
    x, y = (x1 + x2) // 2, (y1 + y2) // 2 - 5
    return f'{path}<text class="s" x="{x}" y="{y}" text-anchor="middle">{escape(label)}</text>'

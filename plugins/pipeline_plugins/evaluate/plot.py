"""The Pareto front as a picture: quality against cost or latency."""

from __future__ import annotations

from html import escape
from pathlib import Path

from pipeline.problems import ConfigError, Problem
from pipeline_plugins.evaluate.compare import Comparison
from pipeline_plugins.evaluate.show import number

WIDTH, HEIGHT, LEFT, BOTTOM = 480, 320, 62, 44
INK, FRONT, OTHER = "#59636e", "#0969da", "#8c959f"
MOST_LABELS = 12


def points(found: Comparison, across: str) -> list[tuple[float, float, bool, str]]:
    """Each run that has both: its cost, its quality, whether none beats it, its label."""
    up = found.axes[0]
    shown = [
        (run.metrics[across]["mean"], run.metrics[up]["mean"], at in found.front, run.label)
        for at, run in enumerate(found.runs)
        if across in run.metrics and up in run.metrics
    ]
    # Those on the front last, and so on top.
    return sorted(shown, key=lambda one: one[2])


def svg(found: Comparison, across: str) -> str:
    """An SVG element: `across` to the right, quality upwards, runs on the front filled."""
    shown = points(found, across)
    if not shown:
        return ""
    xs, ys = [one[0] for one in shown], [one[1] for one in shown]
    low_x, high_x = _range(xs)
    low_y, high_y = _range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return LEFT + along * (WIDTH - LEFT - 16), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - 16)

    parts = []
    for step in range(5):
        x, y = low_x + (high_x - low_x) * step / 4, low_y + (high_y - low_y) * step / 4
        at_x, at_y = place(x, y)
        parts.append(f'<path d="M{LEFT} {at_y:.1f}H{WIDTH - 16}" stroke="#eaeef2"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{number(found.axes[0], y)}</text>'
        )
        parts.append(
            f'<text x="{at_x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(across, x)}</text>'
        )
    for x, y, best, label in shown:
        at_x, at_y = place(x, y)
        colour = FRONT if best else OTHER
        fill = colour if best else "white"
        parts.append(
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="{fill}" stroke="{colour}">'
            f"<title>{escape(label)}: {number(found.axes[0], y)}, {number(across, x)}</title></circle>"
        )
        if best and len(shown) <= MOST_LABELS:
            side, gap = ("end", -9) if at_x > WIDTH / 2 else ("start", 9)
            parts.append(
                f'<text x="{at_x + gap:.1f}" y="{at_y - 7:.1f}" text-anchor="{side}">'
                f"{escape(label[:40])}</text>"
            )
    titles = (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle" '
        f'font-weight="600">{escape(across)}</text>'
        f'<text transform="translate(12 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
        f'font-weight="600">{escape(found.axes[0])}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui,sans-serif" font-size="11" fill="{INK}">'
        f"<title>{escape(found.axes[0])} by {escape(across)}</title>{''.join(parts)}{titles}</svg>"
    )


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def png(found: Comparison, path: Path) -> None:
    """Write the pictures side by side. Raises `ConfigError` where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            [Problem("--png", "pictures need matplotlib.", "pip install 'llm-pipeline[plot]'")]
        ) from None
    axes = found.axes[1:]
    figure = Figure(figsize=(5.5 * len(axes), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for at, across in enumerate(axes, 1):
        plot = figure.add_subplot(1, len(axes), at)
        shown = points(found, across)
        low, high = _range([one[0] for one in shown] or [0.0])
        for x, y, best, label in shown:
            colour = FRONT if best else OTHER
            plot.scatter([x], [y], s=40, facecolors=colour if best else "white", edgecolors=colour)
            if best and len(shown) <= MOST_LABELS:
                side, gap = ("right", -6) if x > (low + high) / 2 else ("left", 6)
                plot.annotate(
                    label[:40], (x, y), xytext=(gap, 5), textcoords="offset points", fontsize=8, ha=side
                )
        plot.set_xlabel(across)
        plot.set_ylabel(found.axes[0])
        plot.grid(color="#eaeef2")
        plot.set_axisbelow(True)
        plot.margins(0.12)
    figure.savefig(path, dpi=150, format="png")

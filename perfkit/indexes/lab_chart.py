"""The chart of an index lab: the gain of each index against its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perfkit.base import units
from perfkit.indexes.lab_results import IndexValue, Lab
from perfkit.show.charts import draw_svg
from perfkit.show.html import Block, escape

KEPT, DROPPED = "#1f9d6b", "#c2571a"
CAPTION = (
    "Largest speed-up of any query with only this index (logarithmic), against the index's size. Higher is more "
    "useful, further right is larger. Filled: kept."
)


def gain_against_cost(lab: Lab) -> Block:
    """Return a chart with a point for each index, and the same figures in words."""
    index_values = [index for index in lab.index_values if index.alone]
    if not index_values:
        return Block("", "")
    finding = "; ".join(f"{w.name}: ×{units.significant(_gain(w))} for {units.size(w.bytes)}" for w in index_values)
    svg = draw_svg("gain-against-cost", "Gain against cost", finding, lambda ax: _draw(ax, index_values))
    html = f'<p class="note">{escape(CAPTION)}</p><div class="gallery"><figure>{svg}</figure></div>'
    return Block(html, f"{CAPTION}\n{finding}")


def _gain(index: IndexValue) -> float:
    """Return the largest speed-up of any query, at least 1."""
    return max([1.0, *(1 / c.ratio.value for c in index.alone if c.ratio)])


def _draw(ax: Axes, index_values: Sequence[IndexValue]) -> None:
    sizes, gains = [w.bytes / 1024 / 1024 for w in index_values], [_gain(w) for w in index_values]
    top = max(*gains, 2.0) ** 1.25
    ax.set_yscale("log")
    ax.set_ylim(min(0.9, 1 / top**0.06), top)
    ax.set_xlim(-0.03 * max(sizes), 1.5 * max(sizes))
    heights = _spread_labels([math.log(g) for g in gains], 0.1 * math.log(top))
    for index, size, gain, height in zip(index_values, sizes, gains, heights, strict=True):
        colour = KEPT if index.kept else DROPPED
        ax.plot([size], [gain], "o", color=colour, markerfacecolor=colour if index.kept else "none", markersize=7)
        name = index.name.replace("$", r"\$")
        side, shift = ("right", -0.03) if size > 0.6 * max(sizes) else ("left", 0.03)
        at = (size + shift * max(sizes), math.exp(height))
        ax.annotate(name, (size, gain), at, color=colour, ha=side, va="center", fontsize=8)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("size, MB")


def _spread_labels(heights: Sequence[float], distance: float) -> list[float]:
    """Return the heights, some of them raised so that all are at least `distance` apart."""
    spread: dict[int, float] = {}
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        spread[index] = max(heights[index], max(spread.values(), default=-math.inf) + distance)
    return [spread[index] for index in range(len(heights))]

"""One picture of an index lab: what each index does alone against what it occupies."""

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
    "How many times as fast the query that gains most is with the index alone (logarithmic), against the index's size. "
    "Higher is more use, further right is more to carry. Filled: kept."
)


def gain_against_cost(lab: Lab) -> Block:
    """A point for each index; further up is more use, further right is more to carry."""
    worths = [worth for worth in lab.worths if worth.alone]
    if not worths:
        return Block("", "")
    finding = "; ".join(f"{w.name}: ×{units.significant(_gain(w))} for {units.size(w.bytes)}" for w in worths)
    svg = draw_svg("gain-against-cost", "Gain against cost", finding, lambda ax: _draw(ax, worths))
    html = f'<p class="note">{escape(CAPTION)}</p><div class="gallery"><figure>{svg}</figure></div>'
    return Block(html, f"{CAPTION}\n{finding}")


def _gain(worth: IndexValue) -> float:
    """How many times as fast the query is that gains most; at least 1."""
    return max([1.0, *(1 / c.ratio.value for c in worth.alone if c.ratio)])


def _draw(ax: Axes, worths: Sequence[IndexValue]) -> None:
    sizes, gains = [w.bytes / 1024 / 1024 for w in worths], [_gain(w) for w in worths]
    top = max(*gains, 2.0) ** 1.25
    ax.set_yscale("log")
    ax.set_ylim(min(0.9, 1 / top**0.06), top)
    ax.set_xlim(-0.03 * max(sizes), 1.5 * max(sizes))
    heights = _apart([math.log(g) for g in gains], 0.1 * math.log(top))
    for worth, size, gain, height in zip(worths, sizes, gains, heights, strict=True):
        colour = KEPT if worth.kept else DROPPED
        ax.plot([size], [gain], "o", color=colour, markerfacecolor=colour if worth.kept else "none", markersize=7)
        name = worth.name.replace("$", r"\$")
        side, shift = ("right", -0.03) if size > 0.6 * max(sizes) else ("left", 0.03)
        at = (size + shift * max(sizes), math.exp(height))
        ax.annotate(name, (size, gain), at, color=colour, ha=side, va="center", fontsize=8)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("size, MB")


def _apart(wanted: Sequence[float], least: float) -> list[float]:
    """Heights as wanted, but at least that far from each other."""
    placed: dict[int, float] = {}
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        placed[index] = max(wanted[index], max(placed.values(), default=-math.inf) + least)
    return [placed[index] for index in range(len(wanted))]

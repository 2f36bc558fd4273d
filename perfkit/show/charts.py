"""The chart kit: matplotlib pictures as parts of a page, in the page's colours, and what all pictures draw alike.

A picture is a function that draws into axes. In a notebook it gets the user's axes; for a page, `Picture` gives it
axes of its own and makes inline SVG of them: without global state, and always the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perfkit.base import units
from perfkit.show.html import Part, escape

INK = "#010203"  # replaced by currentColor, which matplotlib does not know
# Mid tones with a contrast of 3:1 on white and on near-black. Colour is never the only sign: dashes, markers and words
# carry the same.
ORANGE, GREY, BLUE, GREEN, VIOLET, YELLOW, RED = (
    "#c2571a",
    "#7f8791",
    "#2f7fd6",
    "#1f9d6b",
    "#a45fd0",
    "#b58900",
    "#d1495b",
)
#: Colour, dashes and marker of the first, second, ... series of a picture.
SERIES = (
    (ORANGE, "-", "o"),
    (GREY, (0, (2, 2)), "s"),
    (BLUE, (0, (6, 2)), "^"),
    (GREEN, (0, (6, 2, 1.5, 2)), "D"),
    (VIOLET, (0, (1, 1)), "v"),
    (YELLOW, (0, (9, 3)), "P"),
)
_FONTS = "-apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif"
_STYLE: dict[Any, object] = {  # matplotlib types the keys as a literal of all 330
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True, repr=False)
class Picture(Part):
    """A picture of a page, with its finding in words for readers who do not see it.

    `slug` makes the ids of the SVG unique on the page. `caption` and `aside`, in small print, stand above the picture;
    with `shown`, the finding stands below it. `size` is in inches.
    """

    macro = "picture"
    slug: str
    title: str
    finding: str
    draw: Callable[[Axes], object]
    caption: str = ""
    aside: str = ""
    shown: bool = False
    size: tuple[float, float] = (5.2, 2.9)

    @property
    def svg(self) -> str:
        """The picture as inline SVG; text and axes take the page's colour."""
        width, height = self.size
        left, bottom, right, top = 0.494, 0.493, 0.104, 0.29  # inches around the axes
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        with mpl.rc_context({**_STYLE, "svg.hashsalt": self.slug}):
            figure = Figure(figsize=self.size)
            figure.patch.set_alpha(0)
            FigureCanvasSVG(figure)
            ax = figure.add_axes(box)
            ax.patch.set_alpha(0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(True, linewidth=0.4, alpha=0.25, color=INK)
            self.draw(ax)
            out = io.StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _inline(out.getvalue(), self.slug, self.title, self.finding)

    def text(self) -> str:
        """Return the caption and the finding."""
        return f"{self.caption or self.title}: {self.finding}"


def axes(ax: Axes | None) -> Axes:
    """Return the axes to draw into: the given ones, or new ones of pyplot, because every picture sets scales."""
    if ax is not None:
        return ax
    from matplotlib import pyplot  # only here: pages need no global state

    return pyplot.subplots()[1]


def logarithmic(axis: Axis, spread: float = 100.0, sign: str = "") -> None:
    """Give a logarithmic axis few ticks, as numbers behind a sign; `spread` is its highest value by its lowest."""
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if spread >= 8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{sign}{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spread_labels(heights: Mapping[str, float], least: float) -> dict[str, float]:
    """Move the heights of labels so that they are at least a distance apart."""
    placed: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = max(height, max(placed.values(), default=float("-inf")) + least)
    return placed


def label(text: str) -> str:
    """Return a name that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def limit_line(ax: Axes, limit: float, *, across: bool = False) -> None:
    """Mark a limit in ms by a dotted line: upright, or `across` the picture."""
    text = f"limit {units.significant(limit)} ms"
    if across:
        ax.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(0, limit, text, va="bottom", fontsize=8)
    else:
        ax.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(limit, 1.02, text, ha="center", va="bottom", fontsize=8)


def _inline(svg: str, slug: str, title: str, finding: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<g) id="[^"]*"', r"\1", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor").replace("xlink:href", "href")
    name = re.sub(r"[^a-z0-9-]", "-", slug)
    view = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" {view[0] if view else ""} role="img"'
    head += f' aria-labelledby="{name}-t {name}-d">'
    head += f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(finding)}</desc>'
    return head + body[body.index(">") + 1 :]

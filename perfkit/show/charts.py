"""Charts as inline SVG from matplotlib: without global state, in the page's colours, always the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from perfkit.show.html import escape

INK = "#010203"  # replaced by currentColor, which matplotlib does not know
FONTS = "-apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif"
_RC: dict[Any, Any] = {
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


def draw_svg(slug: str, title: str, finding: str, draw: Callable[[Axes], None]) -> str:
    """Return a figure as accessible inline SVG; `slug` makes its ids unique, text and axes take the page's colour."""
    with mpl.rc_context(_RC | {"svg.hashsalt": slug}):
        figure = Figure(figsize=(5.2, 2.9))
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        ax = figure.add_axes((0.095, 0.17, 0.885, 0.73))
        ax.patch.set_alpha(0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, linewidth=0.4, alpha=0.25, color=INK)
        draw(ax)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), slug, title, finding)


def _inline(svg: str, slug: str, title: str, finding: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<g) id="[^"]*"', r"\1", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor").replace("xlink:href", "href")
    name = re.sub(r"[^a-z0-9-]", "-", slug)
    view = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" {view[0] if view else ""} role="img"'
    head += f' aria-labelledby="{name}-t {name}-d">'
    head += f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(finding)}</desc>'
    return head + body[body.index(">") + 1 :]

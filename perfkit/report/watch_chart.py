"""The panels of a watch's page: one figure each, with its limits, alerts, downtime and gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from perfkit import numbers
from perfkit.display.html import escape, explained
from perfkit.monitor.period import DAY_S, Period, clock, lasting, stamp
from perfkit.report.charts import logarithmic
from perfkit.report.svg import INK, draw_svg
from perfkit.report.watch_series import ROUND_S, Line

# Mid tones, 3:1 on white and on near-black; a level is also written.
LEVELS = {"P1": "#d1495b", "P2": "#c2571a", "P3": "#b58900"}
_LINE = "#2f7fd6"
APART = 0.06  # of an axis, between two names


@dataclass(frozen=True, slots=True)
class Span:
    """A time of the time line, in seconds, and what was then: a level of alert, `down` or `unwatched`."""

    since: float
    until: float
    what: str


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a rule's limit lies in a panel, in the panel's unit."""

    value: float
    level: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure over time. `unit` is ms (drawn on a logarithmic scale), % or "per second"."""

    slug: str
    title: str
    now: str  # the figure as the rules see it now, in words
    unit: str
    line: Line
    limits: Sequence[Limit] = ()
    spans: Sequence[Span] = ()
    dots: Line | None = None  # the slowest answers, in ms


def draw(panel: Panel, period: Period) -> str:
    """The panel as a figure of HTML: its name and value now, the picture, and what it shows in words."""
    said = finding(panel, period)
    svg = draw_svg(panel.slug, panel.title, said, lambda ax: _draw(ax, panel, period))
    return (
        f"<figure><figcaption>{escape(panel.title)} <span>{escape(panel.now)}</span></figcaption>{svg}"
        f'<p class="note">{escape(said)}</p></figure>'
    )


def legend() -> str:
    """What lines and shades mean, as HTML."""
    said = {
        "blue": "the figure; percentiles are of all answers of a stretch, where it holds the samples for one",
        "dashed": "limits of rules",
        "shaded": "an alert stood, with its level",
        "dark foot": "the service or the database was down",
        "hatched": "nobody watched",
        "grey dots": "the slowest answer of each stretch",
    }
    return explained(said.items())


def finding(panel: Panel, period: Period) -> str:
    """Between what it moved and when it was worst, and how wide a stretch is."""
    known = np.flatnonzero(np.isfinite(panel.line.y))
    if not len(known):
        return "Not enough samples for it yet."
    y = panel.line.y[known]
    worst = known[y.argmin() if panel.unit == "per second" else y.argmax()]
    at = clock(period.wall(float(panel.line.x[worst])), day=False)
    low, high = (f"{numbers.significant(float(v))}" for v in (y.min(), y.max()))
    word = "lowest" if panel.unit == "per second" else "highest"
    moved = f"{low} to {high} {panel.unit}, {word} about {at}" if low != high else f"{low} {panel.unit} all the time"
    return f"{moved}; a point is {lasting(panel.line.width)}."


def _draw(ax: Axes, panel: Panel, period: Period) -> None:
    ax.set_xlim(period.start, period.end + 0.02 * period.seconds)  # room for the last tick's label
    low, high = _range(panel)
    if panel.unit == "ms":
        ax.set_yscale("log")
        logarithmic(ax.yaxis)
        if high < 20 * low:
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    ax.set_ylim(low, high)
    _shade(ax, panel.spans, period)
    if panel.dots:
        ax.plot(panel.dots.x, panel.dots.y, ".", color="#7f8791", markersize=2.6, markeredgewidth=0, alpha=0.8)
    line = panel.line
    ax.step(line.x, line.y, where="mid", color=_LINE, linewidth=1.4)
    known = np.isfinite(np.r_[math.nan, line.y, math.nan])
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    ax.plot(line.x[alone], line.y[alone], ".", color=_LINE, markersize=4, markeredgewidth=0)
    _mark(ax, panel.limits, period)
    _clock(ax, period)


def _mark(ax: Axes, limits: Sequence[Limit], period: Period) -> None:
    """Limits within the picture as lines, named where there is room for it."""
    named = -math.inf
    for limit in sorted(limits, key=lambda limit: limit.value):
        height = float(ax.transAxes.inverted().transform(ax.transData.transform((0, limit.value)))[1])
        if not 0 < height < 1:
            continue
        ax.axhline(limit.value, color=LEVELS.get(limit.level, INK), linewidth=0.9, linestyle=(0, (4, 2)))
        if height > named + APART:
            named, text = height, f"{limit.level} {numbers.significant(limit.value)}"
            ax.text(period.start + 0.01 * period.seconds, limit.value, text, va="bottom", fontsize=8)


def _range(panel: Panel) -> tuple[float, float]:
    """From the lowest to the highest, with room; the limit nearest to good is always in the picture."""
    y = np.concatenate([own.y[np.isfinite(own.y)] for own in (panel.line, panel.dots) if own])
    limits = [limit.value for limit in panel.limits]
    if panel.unit == "ms":
        seen = [*y, *([min(limits)] if limits else [])] or [1.0, 1000.0]
        return max(min(seen), 1e-3) / 1.3, max(seen) * 1.6
    near = [max(limits) if panel.unit == "per second" else min(limits)] if limits else []
    return 0.0, max([*y, *near], default=1.0) * 1.25 or 1.0


def _shade(ax: Axes, spans: Sequence[Span], period: Period) -> None:
    """Spans within the period, the gravest named first; a name that would lie on another's is left out."""
    where, names = ax.get_xaxis_transform(), list[tuple[float, float]]()
    for span in visible_spans(spans, period):
        if span.what == "unwatched":
            ax.axvspan(span.since, span.until, facecolor="none", edgecolor=INK, alpha=0.35, hatch="////", linewidth=0)
        elif span.what == "down":
            ax.axvspan(span.since, span.until, 0, 0.05, facecolor=INK, alpha=0.8, linewidth=0)
        else:
            ax.axvspan(span.since, span.until, facecolor=LEVELS.get(span.what, INK), alpha=0.2, linewidth=0)
        middle, height = (span.since + span.until) / 2, 0.06 if span.what == "down" else 0.94
        if all(height != own or abs(middle - other) > APART * period.seconds for other, own in names):
            names.append((middle, height))
            ax.text(middle, height, span.what, ha="center", va="center", fontsize=8, transform=where)


def visible_spans(spans: Sequence[Span], period: Period) -> list[Span]:
    """What of the spans can be seen: cut to the period, none too narrow, those too near to be told apart as one."""
    least = period.seconds / 300
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.what, span.since)):
        since, until = max(span.since, period.start), min(max(span.until, span.since + least), period.end)
        if until <= since:
            continue
        last = found[-1] if found else None
        if last and last.what == span.what and min(abs(since - last.until), since - last.since) < least:
            found[-1] = Span(last.since, max(last.until, until), last.what)
        else:
            found.append(Span(since, until, span.what))
    return found


def _clock(ax: Axes, period: Period) -> None:
    places = round_times(period)
    ax.set_xticks([t for t, _ in places], [text for _, text in places])
    ax.set_xlabel(f"{stamp(period.wall(period.end))[:10]}, UTC")


def round_times(period: Period) -> list[tuple[float, str]]:
    """Round times of the wall clock, in UTC as it is at the end: where they lie on the time line, and in words."""
    ahead = period.wall(period.end) - period.end
    weeks = DAY_S * math.ceil(period.seconds / DAY_S / 7)
    step = next((step for step in ROUND_S if period.seconds / step <= (7 if step >= 60 else 4)), weeks)
    shown = slice(5, 16) if step >= DAY_S else slice(11, 16) if step >= 60 else slice(11, 19)
    first, last = math.ceil((period.start + ahead) / step), math.floor((period.end + ahead) / step)
    return [(n * step - ahead, stamp(n * step)[shown]) for n in range(first, last + 1)]

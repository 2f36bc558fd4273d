"""Charts of a watch and of its review.

Pure functions over one part of the record. A stretch is so many seconds of the time line, the same however often the
page is written; its percentiles are of its own samples, and missing where it has too few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from perfkit.analysis.charts import logarithmic
from perfkit.base import units
from perfkit.base.stats import MIN_SAMPLES, supported
from perfkit.config.judging import Metric
from perfkit.monitor import figures
from perfkit.monitor.figures import PERCENTILES
from perfkit.monitor.incidents import DAY_S, Period, clock, duration_text, stamp
from perfkit.monitor.model import OK, About
from perfkit.monitor.notifications import formatted, percentage
from perfkit.monitor.review import Reviewed
from perfkit.show.charts import INK, draw_svg
from perfkit.show.html import Block, escape, explained

POINTS = 300  # at most so many stretches in a chart
#: Seconds of a stretch, and between the times at an axis.
ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400)

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time: at `x` (seconds of the time line, a stretch's middle) `y`, NaN where it is not known."""

    x: Values
    y: Values
    width: float  # seconds of a stretch


class WatchSeries:
    """The figures of everything that counts in a period, cut on demand."""

    def __init__(self, period: Period, about: About) -> None:
        names = figures.item_names(about.kinds)
        own = [figures.probes([tick], names) for tick in period.ticks]
        self._middle = np.array([tick.t - tick.seconds / 2 for tick in period.ticks])
        self._seconds = np.array([tick.seconds for tick in period.ticks])
        self._ok = np.array([sum(probe.outcomes.get(OK, 0) for probe in probes) for probes in own], dtype=float)
        self._sent = np.array([sum(probe.sent for probe in probes) for probes in own], dtype=float)
        samples = [[ms for probe in probes for ms in probe.ms] for probes in own]
        self._ends = np.cumsum([0, *map(len, samples)])
        self._ms = np.fromiter((ms for part in samples for ms in part), float, int(self._ends[-1]))
        self._least = max(period.seconds / POINTS, float(np.median(self._seconds)))

    def percentile(self, q: int, width: float = 0.0) -> Line:
        """The q-th percentile in ms, of stretches of a `width` in seconds; else wide enough to usually have one."""
        rate = len(self._ms) / float(self._seconds.sum())
        needed = 1.2 * MIN_SAMPLES[q] / rate if rate else 0.0
        return self._line(
            width or max(self._least, needed),
            lambda own: float(np.percentile(ms, q)) if supported(len(ms := self._samples(own)), q) else math.nan,
        )

    def slowest(self) -> Line:
        """The slowest answer of each stretch in ms."""
        return self._line(self._least, lambda own: float(self._samples(own).max(initial=-math.inf)))

    def error_rate(self) -> Line:
        """Of the probes that ended those that failed, as a share of one."""
        return self._line(self._least, lambda own: _share((self._sent - self._ok)[own].sum(), self._sent[own].sum()))

    def throughput(self) -> Line:
        """Answers as expected per second of watched time."""
        return self._line(self._least, lambda own: _share(self._ok[own].sum(), self._seconds[own].sum()))

    def _samples(self, own: slice) -> Values:
        return self._ms[self._ends[own.start] : self._ends[own.stop]]

    def _line(self, least: float, value: Callable[[slice], float]) -> Line:
        """The figure of each stretch at least so wide; one without intervals, where nobody watched, has none."""
        width = float(next((width for width in ROUND_S if width >= least), least))
        place = np.floor(self._middle / width)
        edges = [0, *(np.flatnonzero(np.diff(place)) + 1), len(place)]
        known = {place[lo]: value(slice(lo, hi)) for lo, hi in pairwise(edges)}
        every = np.arange(place[0], place[-1] + 1)
        y = np.array([known.get(n, math.nan) for n in every])
        return Line((every + 0.5) * width, np.where(np.isfinite(y), y, math.nan), width)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


# The panels of a watch's page: one figure each, with its limits, alerts, downtime and gaps.

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
    low, high = (f"{units.significant(float(v))}" for v in (y.min(), y.max()))
    word = "lowest" if panel.unit == "per second" else "highest"
    moved = f"{low} to {high} {panel.unit}, {word} about {at}" if low != high else f"{low} {panel.unit} all the time"
    return f"{moved}; a point is {duration_text(panel.line.width)}."


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
            named, text = height, f"{limit.level} {units.significant(limit.value)}"
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


# The reviewed time as pictures: percentiles of every half hour against their targets, and when it was down.

WIDTH, HEIGHT = 1000, 64  # of the strip, in its own units
LEAST = 2.0  # of its units, so that one interval of a day can be seen
_LOOKS = {
    "up": 'fill="#1f9d6b" fill-opacity="0.45"',
    "unwatched": 'fill="none" stroke="currentColor" stroke-width="0.6" stroke-dasharray="3 3"',
    "down": 'fill="#d1495b"',
}


def latency_over_time(found: Reviewed) -> Block:
    """p50, p95 and p99 of every block of time, their targets as lines, incidents and gaps shaded."""
    spans = [
        Span(own.since, found.period.end if own.eased is None else own.eased, own.level) for own in found.incidents
    ]
    spans += [span for span in _stretches(found) if span.what != "up"]
    panels = [_panel(found, metric, spans) for metric in PERCENTILES]
    width = duration_text(panels[0].line.width)
    names = " and ".join(figures.item_names(found.about.kinds))
    note = (
        f"Response times of {names} in ms, logarithmic: each step is the percentile of {width}, if it has enough "
        "samples for one. Shaded: incidents, by their gravest level; hatched: not watched."
    )
    html = f'<p class="note">{escape(note)}</p><div class="gallery">'
    html += f"{''.join(draw(panel, found.period) for panel in panels)}</div>"
    return Block(html, "\n".join([note, *(f"{p.title}: {finding(p, found.period)}" for p in panels)]))


def _panel(found: Reviewed, metric: Metric, spans: Sequence[Span]) -> Panel:
    q = PERCENTILES[metric]
    line = WatchSeries(found.period, found.about).percentile(q, found.period.width)
    rows = [row for row in found.rows if row.target.metric == metric and not row.target.item]
    limits = [Limit(row.target.at_most, "target") for row in rows if row.target.at_most is not None]
    whole = next((formatted(metric, row.actual.value) for row in rows if row.actual.value is not None), "")
    return Panel(f"review-p{q}", f"p{q}", f"{whole} over the whole time" if whole else "", "ms", line, limits, spans)


def _stretches(found: Reviewed) -> list[Span]:
    """The time in stretches that were up, unwatched or down, in this order: what is short and bad is drawn last."""
    names, ticks = figures.item_names(found.about.kinds), found.period.ticks
    up = figures.stretches(ticks, lambda tick: not figures.is_down(tick, names))
    down = figures.stretches(ticks, lambda tick: figures.is_down(tick, names) or False)
    named = {"up": up, "unwatched": found.gaps, "down": down}
    return [Span(since, until, what) for what, own in named.items() for since, until in own]


def availability(found: Reviewed) -> Block:
    """The time as one strip: where it answered, where nothing was answered, where nobody watched."""
    spans = _stretches(found)
    told = [_told(found, span) for span in sorted(spans, key=lambda span: span.since) if span.what != "up"]
    more = [f"and {len(told) - 12} more"] if len(told) > 12 else []
    shares = (own.actual.value for own in found.rows if own.target.metric == "availability")
    value = next((f"{percentage(own)} available. " for own in shares if own is not None), "")
    words = value + ("; ".join([*told[:12], *more]) + "." if told else "Answered all the time that was watched.")
    scrolled = f'<div class="scroll" role="region" tabindex="0" aria-label="Availability">{_strip(found, spans, words)}'
    return Block(f'<figure>{scrolled}</div><p class="note">{escape(words)}</p></figure>', words)


def _told(found: Reviewed, span: Span) -> str:
    since, until = (clock(found.period.wall(t), day=False) for t in (span.since, span.until))
    what = "nobody watched" if span.what == "unwatched" else span.what
    return f"{since} to {until} {what}, {duration_text(span.until - span.since)}"


def _strip(found: Reviewed, spans: Sequence[Span], words: str) -> str:
    period = found.period
    scale = WIDTH / period.seconds
    parts = []
    for span in spans:
        x, width = (span.since - period.start) * scale, (span.until - span.since) * scale
        width = max(width, LEAST if span.what == "down" else 0.0)
        parts.append(f'<rect x="{x:.2f}" y="4" height="32" width="{width:.2f}" {_LOOKS[span.what]}/>')
    for t, text in round_times(period):
        x = (t - period.start) * scale
        side = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(f'<path d="M{x:.1f} 36v5" stroke="currentColor" stroke-width="0.8"/>')
        parts.append(f'<text x="{x:.1f}" y="55" font-size="12" fill="currentColor" text-anchor="{side}">{text}</text>')
    return (
        f'<svg class="chart" style="min-width: 540px" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' role="img" aria-labelledby="strip-t strip-d"><title id="strip-t">Availability over time, UTC</title>'
        f'<desc id="strip-d">{escape(words)}</desc>{"".join(parts)}</svg>'
    )

"""Charts of a watch and of its review.

Pure functions of one period of the record. A chart has one point per step: a fixed number of seconds that begins at a
multiple of it on the time line, so that rewriting the page moves no point. The percentiles of a step come from its own
samples, and are missing if there are too few.
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

from perfkit.base import units
from perfkit.base.stats import MIN_SAMPLES, supported
from perfkit.config.judging import Metric
from perfkit.monitor import figures
from perfkit.monitor.figures import PERCENTILES
from perfkit.monitor.incidents import DAY_S, Period, clock, duration_text, stamp
from perfkit.monitor.model import OK, About
from perfkit.monitor.notifications import formatted, percentage
from perfkit.monitor.review import Reviewed
from perfkit.show.charts import INK, draw_svg, logarithmic
from perfkit.show.html import Block, escape, explained

MAX_POINTS = 300  # steps in a chart
#: Widths of a step, and of the distance between times at an axis, in seconds.
ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400)

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time: `x` is the middle of a step on the time line, `y` is NaN if the figure is unknown."""

    x: Values
    y: Values
    width: float  # of a step, in seconds


class WatchSeries:
    """The figures of all requests (or of all queries) in a period, computed per step on demand."""

    def __init__(self, period: Period, about: About) -> None:
        names = figures.item_names(about.kinds)
        per_tick = [figures.probes([tick], names) for tick in period.ticks]
        self._middle = np.array([tick.t - tick.seconds / 2 for tick in period.ticks])
        self._seconds = np.array([tick.seconds for tick in period.ticks])
        self._ok = np.array([sum(probe.outcomes.get(OK, 0) for probe in probes) for probes in per_tick], dtype=float)
        self._sent = np.array([sum(probe.sent for probe in probes) for probes in per_tick], dtype=float)
        samples = [[ms for probe in probes for ms in probe.ms] for probes in per_tick]
        self._ends = np.cumsum([0, *map(len, samples)])
        self._ms = np.fromiter((ms for part in samples for ms in part), float, int(self._ends[-1]))
        self._least = max(period.seconds / MAX_POINTS, float(np.median(self._seconds)))

    def percentile(self, q: int, width: float = 0.0) -> Line:
        """Return the q-th percentile in ms, in steps of `width` seconds, by default wide enough for a percentile."""
        rate = len(self._ms) / float(self._seconds.sum())
        needed = 1.2 * MIN_SAMPLES[q] / rate if rate else 0.0
        return self._line(
            width or max(self._least, needed),
            lambda step: float(np.percentile(ms, q)) if supported(len(ms := self._samples(step)), q) else math.nan,
        )

    def slowest(self) -> Line:
        """Return the slowest answer of each step in ms."""
        return self._line(self._least, lambda step: float(self._samples(step).max(initial=-math.inf)))

    def error_rate(self) -> Line:
        """Return the share of completed probes that failed, from 0 to 1."""
        return self._line(self._least, lambda step: _share((self._sent - self._ok)[step].sum(), self._sent[step].sum()))

    def throughput(self) -> Line:
        """Return the answers as expected per second of watched time."""
        return self._line(self._least, lambda step: _share(self._ok[step].sum(), self._seconds[step].sum()))

    def _samples(self, step: slice) -> Values:
        return self._ms[self._ends[step.start] : self._ends[step.stop]]

    def _line(self, least: float, value: Callable[[slice], float]) -> Line:
        """Return the figure of each step of at least this width; NaN for a step without intervals."""
        width = float(next((width for width in ROUND_S if width >= least), least))
        number = np.floor(self._middle / width)
        edges = [0, *(np.flatnonzero(np.diff(number)) + 1), len(number)]
        known = {number[lo]: value(slice(lo, hi)) for lo, hi in pairwise(edges)}
        every = np.arange(number[0], number[-1] + 1)
        y = np.array([known.get(n, math.nan) for n in every])
        return Line((every + 0.5) * width, np.where(np.isfinite(y), y, math.nan), width)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


# Mid tones with a contrast of 3:1 on white and on near-black. Colour is not the only sign: the level is also written.
LEVELS = {"P1": "#d1495b", "P2": "#c2571a", "P3": "#b58900"}
_LINE = "#2f7fd6"
LABEL_DISTANCE = 0.06  # minimum share of an axis between two labels


@dataclass(frozen=True, slots=True)
class Span:
    """A time on the time line, in seconds, with the level of an alert, `down` or `unwatched`."""

    since: float
    until: float
    what: str


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of a rule, in the unit of a panel."""

    value: float
    level: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure over time; `unit` is ms (drawn on a logarithmic scale), % or "per second"."""

    slug: str
    title: str
    now: str  # the current figure, as the rules use it, in words
    unit: str
    line: Line
    limits: Sequence[Limit] = ()
    spans: Sequence[Span] = ()
    dots: Line | None = None  # the slowest answers, in ms


def draw(panel: Panel, period: Period) -> str:
    """Return the panel as an HTML figure: title, current value, picture, and the finding in words."""
    text = finding(panel, period)
    svg = draw_svg(panel.slug, panel.title, text, lambda ax: _draw(ax, panel, period))
    return (
        f"<figure><figcaption>{escape(panel.title)} <span>{escape(panel.now)}</span></figcaption>{svg}"
        f'<p class="note">{escape(text)}</p></figure>'
    )


def legend() -> str:
    """Return the meaning of lines and shades, as HTML."""
    meanings = {
        "blue": "the figure; a percentile covers all answers of a step, if there are enough",
        "dashed": "limits of rules",
        "shaded": "an alert was active, with its level",
        "dark foot": "the service or the database was down",
        "hatched": "not watched",
        "grey dots": "the slowest answer of each step",
    }
    return explained(meanings.items())


def finding(panel: Panel, period: Period) -> str:
    """Return the range of the figure, when it was worst, and the width of a step, in words."""
    known = np.flatnonzero(np.isfinite(panel.line.y))
    if not len(known):
        return "Not enough samples yet."
    y = panel.line.y[known]
    worst = known[y.argmin() if panel.unit == "per second" else y.argmax()]
    at = clock(period.wall(float(panel.line.x[worst])), day=False)
    low, high = (f"{units.significant(float(v))}" for v in (y.min(), y.max()))
    extreme = "lowest" if panel.unit == "per second" else "highest"
    varied = f"{low} to {high} {panel.unit}, {extreme} about {at}" if low != high else f"{low} {panel.unit} throughout"
    return f"{varied}; each point covers {duration_text(panel.line.width)}."


def _draw(ax: Axes, panel: Panel, period: Period) -> None:
    # The margin is room for the label of the last time.
    ax.set_xlim(period.start, period.end + 0.02 * period.seconds)
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
    """Draw the limits that lie within the picture as lines, labelled if there is room."""
    labelled = -math.inf
    for limit in sorted(limits, key=lambda limit: limit.value):
        height = float(ax.transAxes.inverted().transform(ax.transData.transform((0, limit.value)))[1])
        if not 0 < height < 1:
            continue
        ax.axhline(limit.value, color=LEVELS.get(limit.level, INK), linewidth=0.9, linestyle=(0, (4, 2)))
        if height > labelled + LABEL_DISTANCE:
            labelled, text = height, f"{limit.level} {units.significant(limit.value)}"
            ax.text(period.start + 0.01 * period.seconds, limit.value, text, va="bottom", fontsize=8)


def _range(panel: Panel) -> tuple[float, float]:
    """Return the range of the axis: all values, and the limit that is broken first."""
    y = np.concatenate([line.y[np.isfinite(line.y)] for line in (panel.line, panel.dots) if line])
    limits = [limit.value for limit in panel.limits]
    if panel.unit == "ms":
        seen = [*y, *([min(limits)] if limits else [])] or [1.0, 1000.0]
        return max(min(seen), 1e-3) / 1.3, max(seen) * 1.6
    near = [max(limits) if panel.unit == "per second" else min(limits)] if limits else []
    return 0.0, max([*y, *near], default=1.0) * 1.25 or 1.0


def _shade(ax: Axes, spans: Sequence[Span], period: Period) -> None:
    """Draw the spans within the period, the gravest first; a label that would overlap another is left out."""
    transform, labels = ax.get_xaxis_transform(), list[tuple[float, float]]()
    for span in visible_spans(spans, period):
        if span.what == "unwatched":
            ax.axvspan(span.since, span.until, facecolor="none", edgecolor=INK, alpha=0.35, hatch="////", linewidth=0)
        elif span.what == "down":
            ax.axvspan(span.since, span.until, 0, 0.05, facecolor=INK, alpha=0.8, linewidth=0)
        else:
            ax.axvspan(span.since, span.until, facecolor=LEVELS.get(span.what, INK), alpha=0.2, linewidth=0)
        middle, height = (span.since + span.until) / 2, 0.06 if span.what == "down" else 0.94
        if all(height != y or abs(middle - x) > LABEL_DISTANCE * period.seconds for x, y in labels):
            labels.append((middle, height))
            ax.text(middle, height, span.what, ha="center", va="center", fontsize=8, transform=transform)


def visible_spans(spans: Sequence[Span], period: Period) -> list[Span]:
    """Return the spans as drawn: cut to the period, wide enough to see, and joined if they would touch."""
    least = period.seconds / 300
    visible: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.what, span.since)):
        since, until = max(span.since, period.start), min(max(span.until, span.since + least), period.end)
        if until <= since:
            continue
        last = visible[-1] if visible else None
        if last and last.what == span.what and min(abs(since - last.until), since - last.since) < least:
            visible[-1] = Span(last.since, max(last.until, until), last.what)
        else:
            visible.append(Span(since, until, span.what))
    return visible


def _clock(ax: Axes, period: Period) -> None:
    times = round_times(period)
    ax.set_xticks([t for t, _ in times], [text for _, text in times])
    ax.set_xlabel(f"{stamp(period.wall(period.end))[:10]}, UTC")


def round_times(period: Period) -> list[tuple[float, str]]:
    """Return round times of the wall clock in UTC: their position on the time line, and their text.

    The offset between the two clocks is that of the period's end, even if the clock was set meanwhile.
    """
    offset = period.wall(period.end) - period.end
    weeks = DAY_S * math.ceil(period.seconds / DAY_S / 7)
    step = next((step for step in ROUND_S if period.seconds / step <= (7 if step >= 60 else 4)), weeks)
    shown = slice(5, 16) if step >= DAY_S else slice(11, 16) if step >= 60 else slice(11, 19)
    first, last = math.ceil((period.start + offset) / step), math.floor((period.end + offset) / step)
    return [(n * step - offset, stamp(n * step)[shown]) for n in range(first, last + 1)]


WIDTH, HEIGHT = 1000, 64  # of the availability strip, in its own units
LEAST = 2.0  # minimum width of downtime, so that one interval of a day is visible
_STYLES = {
    "up": 'fill="#1f9d6b" fill-opacity="0.45"',
    "unwatched": 'fill="none" stroke="currentColor" stroke-width="0.6" stroke-dasharray="3 3"',
    "down": 'fill="#d1495b"',
}


def latency_over_time(reviewed: Reviewed) -> Block:
    """Return p50, p95 and p99 over time, with their targets as lines and incidents and gaps shaded."""
    spans = [
        Span(incident.since, reviewed.period.end if incident.eased is None else incident.eased, incident.level)
        for incident in reviewed.incidents
    ]
    spans += [span for span in _stretches(reviewed) if span.what != "up"]
    panels = [_panel(reviewed, metric, spans) for metric in PERCENTILES]
    width = duration_text(panels[0].line.width)
    names = " and ".join(figures.item_names(reviewed.about.kinds))
    note = (
        f"Response times of {names} in ms, logarithmic: each step is the percentile of {width}, if it has enough "
        "samples for one. Shaded: incidents, by their gravest level; hatched: not watched."
    )
    html = f'<p class="note">{escape(note)}</p><div class="gallery">'
    html += f"{''.join(draw(panel, reviewed.period) for panel in panels)}</div>"
    return Block(html, "\n".join([note, *(f"{p.title}: {finding(p, reviewed.period)}" for p in panels)]))


def _panel(reviewed: Reviewed, metric: Metric, spans: Sequence[Span]) -> Panel:
    q = PERCENTILES[metric]
    line = WatchSeries(reviewed.period, reviewed.about).percentile(q, reviewed.period.width)
    rows = [row for row in reviewed.rows if row.target.metric == metric and not row.target.item]
    limits = [Limit(row.target.at_most, "target") for row in rows if row.target.at_most is not None]
    whole = next((formatted(metric, row.actual.value) for row in rows if row.actual.value is not None), "")
    return Panel(f"review-p{q}", f"p{q}", f"{whole} over the whole period" if whole else "", "ms", line, limits, spans)


def _stretches(reviewed: Reviewed) -> list[Span]:
    """Return the times that were up, unwatched or down, in this order: short downtime must not be drawn over."""
    names, ticks = figures.item_names(reviewed.about.kinds), reviewed.period.ticks
    up = figures.find_stretches(ticks, lambda tick: not figures.is_down(tick, names))
    down = figures.find_stretches(ticks, lambda tick: figures.is_down(tick, names) or False)
    named = {"up": up, "unwatched": reviewed.gaps, "down": down}
    return [Span(since, until, what) for what, times in named.items() for since, until in times]


def availability(reviewed: Reviewed) -> Block:
    """Return the period as a strip: up, down, and not watched."""
    spans = _stretches(reviewed)
    exceptions = [_span_text(reviewed, span) for span in sorted(spans, key=lambda s: s.since) if span.what != "up"]
    more = [f"and {len(exceptions) - 12} more"] if len(exceptions) > 12 else []
    shares = (row.actual.value for row in reviewed.rows if row.target.metric == "availability")
    value = next((f"{percentage(share)} available. " for share in shares if share is not None), "")
    words = value + ("; ".join([*exceptions[:12], *more]) + "." if exceptions else "Up whenever it was watched.")
    scrolled = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Availability">{_strip(reviewed, spans, words)}'
    )
    return Block(f'<figure>{scrolled}</div><p class="note">{escape(words)}</p></figure>', words)


def _span_text(reviewed: Reviewed, span: Span) -> str:
    since, until = (clock(reviewed.period.wall(t), day=False) for t in (span.since, span.until))
    what = "not watched" if span.what == "unwatched" else span.what
    return f"{since} to {until} {what}, {duration_text(span.until - span.since)}"


def _strip(reviewed: Reviewed, spans: Sequence[Span], words: str) -> str:
    period = reviewed.period
    scale = WIDTH / period.seconds
    parts = []
    for span in spans:
        x, width = (span.since - period.start) * scale, (span.until - span.since) * scale
        width = max(width, LEAST if span.what == "down" else 0.0)
        parts.append(f'<rect x="{x:.2f}" y="4" height="32" width="{width:.2f}" {_STYLES[span.what]}/>')
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

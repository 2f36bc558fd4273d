"""Charts of a watch and of its review.

Pure functions of one period of the record. A chart has one point per step: a fixed number of seconds that begins at a
multiple of it on the time line, so that rewriting the page moves no point. The percentiles of a step come from its own
samples, and are missing if there are too few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from perfkit.base import units
from perfkit.base.stats import MIN_SAMPLES, supported
from perfkit.base.units import DAY_S, clock, duration_text, stamp
from perfkit.config.judging import Metric
from perfkit.monitor.figures import PERCENTILES, find_gaps, find_stretches, item_names, probes, service_down
from perfkit.monitor.model import OK, About, Alert, Period, Tick
from perfkit.monitor.notifications import formatted
from perfkit.monitor.review import Reviewed
from perfkit.show.charts import BLUE, GREEN, GREY, INK, ORANGE, RED, YELLOW, Picture, axes, logarithmic
from perfkit.show.html import Part, Section, Terms, note, stacked

MAX_POINTS = 300  # steps in a chart
MAX_SPANS = 12  # named below the strip of availability
#: Widths of a step, and of the distance between times at an axis, in seconds.
ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400)
# Colour is not the only sign: the level is also written.
LEVELS = {"P1": RED, "P2": ORANGE, "P3": YELLOW}
LABEL_DISTANCE = 0.06  # minimum share of an axis between two labels

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time: `x` is the middle of a step on the time line, `y` is NaN if the figure is unknown."""

    x: Samples
    y: Samples
    width: float  # of a step, in seconds


class WatchSeries:
    """The figures of all requests (or of all queries) in a period, computed per step on demand."""

    def __init__(self, period: Period, about: About) -> None:
        names = item_names(about.kinds)
        per_tick = [probes([tick], names) for tick in period.ticks]
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

        def value(step: slice) -> float:
            ms = self._samples(step)
            return float(np.percentile(ms, q)) if supported(len(ms), q) else math.nan

        return self._line(width or max(self._least, needed), value)

    def slowest(self) -> Line:
        """Return the slowest answer of each step in ms."""
        return self._line(self._least, lambda step: float(self._samples(step).max(initial=-math.inf)))

    def error_rate(self) -> Line:
        """Return the percentage of completed probes that failed."""
        return self._line(self._least, lambda step: 100 * _ratio((self._sent - self._ok)[step], self._sent[step]))

    def throughput(self) -> Line:
        """Return the answers as expected per second of watched time."""
        return self._line(self._least, lambda step: _ratio(self._ok[step], self._seconds[step]))

    def _samples(self, step: slice) -> Samples:
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


def _ratio(parts: Samples, wholes: Samples) -> float:
    return float(parts.sum() / wholes.sum()) if wholes.sum() else math.nan


@dataclass(frozen=True, slots=True)
class Span:
    """A time on the time line, in seconds, with the level of an alert, `up`, `down` or `unwatched`."""

    since: float
    until: float
    what: str


def exceptions(period: Period, down: Callable[[Tick], bool | None]) -> list[Span]:
    """Return the times without a watch, and those in which a condition says that something was down."""
    unwatched = [Span(*gap, "unwatched") for gap in find_gaps(period.ticks)]
    return unwatched + [Span(*times, "down") for times in find_stretches(period.ticks, down)]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure over time; `unit` is ms (drawn on a logarithmic scale), % or "per second"."""

    slug: str
    title: str
    now: str  # the current figure, as the rules use it, in words
    unit: str
    line: Line
    limits: Sequence[tuple[float, str]] = ()  # of rules, in the unit, each with the rule's level
    spans: Sequence[Span] = ()
    dots: Line | None = None  # the slowest answers, in ms

    def picture(self, period: Period) -> Picture:
        """Return the panel with its title, the current value, and the finding in words."""
        text = finding(self, period)
        return Picture(self.slug, self.title, text, lambda ax: draw(ax, self, period), self.title, self.now, shown=True)


def legend() -> Terms:
    """Return the meaning of lines and shades."""
    meanings = {
        "blue": "the figure; a percentile covers all answers of a step, if there are enough",
        "dashed": "limits of rules",
        "shaded": "an alert was active, with its level",
        "dark foot": "the service or the database was down",
        "hatched": "not watched",
        "grey dots": "the slowest answer of each step",
    }
    return Terms(list(meanings.items()))


def finding(panel: Panel, period: Period) -> str:
    """Return the range of the figure, when it was worst, and the width of a step, in words."""
    known = np.flatnonzero(np.isfinite(panel.line.y))
    if not len(known):
        return "Not enough samples yet."
    y = panel.line.y[known]
    worst, extreme = (y.argmin(), "lowest") if panel.unit == "per second" else (y.argmax(), "highest")
    at = clock(period.wall(float(panel.line.x[known[worst]])), day=False)
    low, high = (units.significant(float(v)) for v in (y.min(), y.max()))
    varied = f"{low} to {high} {panel.unit}, {extreme} about {at}" if low != high else f"{low} {panel.unit} throughout"
    return f"{varied}; each point covers {duration_text(panel.line.width)}."


def draw(ax: Axes, panel: Panel, period: Period) -> None:
    """Draw a figure over time with its limits, and shade what happened meanwhile."""
    # The margin is room for the label of the last time.
    ax.set_xlim(period.start, period.end + 0.02 * period.seconds)
    low, high = _range(panel)
    if panel.unit == "ms":
        ax.set_yscale("log")
        logarithmic(ax.yaxis, 100.0 if high >= 20 * low else 1.0)
    ax.set_ylim(low, high)
    _shade(ax, panel.spans, period)
    if panel.dots:
        ax.plot(panel.dots.x, panel.dots.y, ".", color=GREY, markersize=2.6, markeredgewidth=0, alpha=0.8)
    line = panel.line
    ax.step(line.x, line.y, where="mid", color=BLUE, linewidth=1.4)
    known = np.isfinite(np.r_[math.nan, line.y, math.nan])
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    ax.plot(line.x[alone], line.y[alone], ".", color=BLUE, markersize=4, markeredgewidth=0)
    _mark(ax, panel.limits, period)
    _clock(ax, period)


def _mark(ax: Axes, limits: Iterable[tuple[float, str]], period: Period) -> None:
    """Draw the limits that lie within the picture as lines, labelled if there is room."""
    labelled = -math.inf
    for limit, level in sorted(limits):
        height = float(ax.transAxes.inverted().transform(ax.transData.transform((0, limit)))[1])
        if not 0 < height < 1:
            continue
        ax.axhline(limit, color=LEVELS.get(level, INK), linewidth=0.9, linestyle=(0, (4, 2)))
        if height > labelled + LABEL_DISTANCE:
            labelled, text = height, f"{level} {units.significant(limit)}"
            ax.text(period.start + 0.01 * period.seconds, limit, text, va="bottom", fontsize=8)


def _range(panel: Panel) -> tuple[float, float]:
    """Return the range of the axis: all values, and the limit that is broken first."""
    y = np.concatenate([line.y[np.isfinite(line.y)] for line in (panel.line, panel.dots) if line])
    limits = [limit for limit, _ in panel.limits]
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


def draw_strip(ax: Axes, period: Period, spans: Sequence[Span]) -> None:
    """Draw a period as a strip: up, down, and not watched."""
    styles = {"up": (GREEN, 0.45, ""), "unwatched": ("none", 0.5, "////"), "down": (RED, 1.0, "")}
    ax.set_xlim(period.start, period.end)
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    # Short downtime must not be drawn over.
    for span in reversed(visible_spans(spans, period)):
        colour, alpha, hatch = styles[span.what]
        edge = INK if hatch else "none"
        ax.axvspan(span.since, span.until, facecolor=colour, edgecolor=edge, alpha=alpha, hatch=hatch, linewidth=0)
    _clock(ax, period)


def latency_over_time(reviewed: Reviewed) -> Part:
    """Return p50, p95 and p99 over time, with their targets as lines and incidents and gaps shaded."""
    period, kinds = reviewed.period, reviewed.about.kinds
    spans = [
        Span(incident.since, period.end if incident.eased is None else incident.eased, incident.level)
        for incident in reviewed.incidents
    ]
    spans += exceptions(period, lambda tick: service_down(tick, kinds))
    panels = [_panel(reviewed, metric, spans) for metric in PERCENTILES]
    text = (
        f"Response times of {' and '.join(item_names(kinds))} in ms, logarithmic: each step is the percentile of "
        f"{duration_text(panels[0].line.width)}, if it has enough samples for one. Shaded: incidents, by their "
        "gravest level; hatched: not watched."
    )
    return stacked(note(text), Section([panel.picture(period) for panel in panels], kind="gallery", gap="\n"), gap="\n")


def _panel(reviewed: Reviewed, metric: Metric, spans: Sequence[Span]) -> Panel:
    q = PERCENTILES[metric]
    line = WatchSeries(reviewed.period, reviewed.about).percentile(q, reviewed.period.width)
    rows = [row for row in reviewed.rows if row.target.metric == metric and not row.target.item]
    limits = [(row.target.at_most, "target") for row in rows if row.target.at_most is not None]
    whole = next((formatted(metric, row.actual.value) for row in rows if row.actual.value is not None), "")
    return Panel(f"review-p{q}", f"p{q}", f"{whole} over the whole period" if whole else "", "ms", line, limits, spans)


def availability(reviewed: Reviewed) -> Picture:
    """Return the period as a strip: up, down, and not watched."""
    period, kinds = reviewed.period, reviewed.about.kinds
    exceptional = exceptions(period, lambda tick: service_down(tick, kinds))
    up = find_stretches(period.ticks, lambda tick: not service_down(tick, kinds))
    words = [_span_text(period, span) for span in sorted(exceptional, key=lambda span: span.since)]
    more = [f"and {len(words) - MAX_SPANS} more"] if len(words) > MAX_SPANS else []
    shares = (row.actual.value for row in reviewed.rows if row.target.metric == "availability")
    value = next((f"{units.percent(share)} available. " for share in shares if share is not None), "")
    text = value + ("; ".join([*words[:MAX_SPANS], *more]) + "." if words else "Up whenever it was watched.")
    spans = [*exceptional, *(Span(*times, "up") for times in up)]
    title, size = "Availability over time, UTC", (10.0, 1.15)
    return Picture("availability", title, text, lambda ax: draw_strip(ax, period, spans), shown=True, size=size)


def _span_text(period: Period, span: Span) -> str:
    since, until = (clock(period.wall(t), day=False) for t in (span.since, span.until))
    what = "not watched" if span.what == "unwatched" else span.what
    return f"{since} to {until} {what}, {duration_text(span.until - span.since)}"


class WatchPlots:
    """The pictures of a watch as matplotlib functions: `watch.plot`.

    Each function draws into `ax` and returns it, so that you can change what it drew. Without `ax`, it draws into a
    new figure. The horizontal axis is the time since the watch began in seconds, labelled in UTC; alerts, downtime and
    time without a watch are shaded.
    """

    def __init__(self, about: About, period: Period, alerts: Iterable[Alert]) -> None:
        self._about, self._period = about, period
        ends = [(alert, period.end if alert.ended is None else alert.ended) for alert in alerts]
        self._spans = [Span(alert.raised.since, end, alert.raised.level) for alert, end in ends]
        self._spans += exceptions(period, lambda tick: service_down(tick, about.kinds))

    def latency(self, q: int = 95, ax: Axes | None = None) -> Axes:
        """Draw a percentile of the response times of all requests or, without requests, of all queries.

        Parameters
        ----------
        q : int, default 95
            The percentile: 50, 95 or 99. A step without enough samples for it is left out.
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: response time in ms (logarithmic), from when each probe was due.

        Examples
        --------
        >>> ax = watch.plot.latency(50)
        >>> ax.get_ylabel()
        'p50, ms'
        """
        line = WatchSeries(self._period, self._about).percentile(q)
        return self._draw(ax, Panel("", "", "", "ms", line, (), self._spans), f"p{q}, ms")

    def error_rate(self, ax: Axes | None = None) -> Axes:
        """Draw the percentage of probes with an unexpected outcome.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw into; by default, those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes: error rate from 0 to 100 %.

        Examples
        --------
        >>> watch.plot.error_rate().get_ylabel()
        'error rate, %'
        """
        line = WatchSeries(self._period, self._about).error_rate()
        return self._draw(ax, Panel("", "", "", "%", line, (), self._spans), "error rate, %")

    def _draw(self, ax: Axes | None, panel: Panel, name: str) -> Axes:
        ax = axes(ax)
        draw(ax, panel, self._period)
        ax.set_ylabel(name)
        return ax

"""The pictures of a run: distributions, medians of rounds, latency over time, each with its finding in words.

Every picture is a function of a run's `Subject` that draws into axes and returns them (`run.plot` offers them to
notebooks); the functions `..._pictures` make the parts of a report from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from perfkit.analysis.tables import Subject
from perfkit.base import units
from perfkit.base.errors import UsageError
from perfkit.base.stats import MIN_SAMPLES, percentile, supported
from perfkit.load.samples import DROPPED
from perfkit.runs.records import Round, ScenarioRecord
from perfkit.show.charts import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    SERIES,
    VIOLET,
    YELLOW,
    Picture,
    axes,
    label,
    limit_line,
    logarithmic,
    spread_labels,
)
from perfkit.show.html import Paragraph, Part, Section, note, stacked

V = TypeVar("V")
QUANTILES = np.linspace(0, 1, 100)


@dataclass(frozen=True, slots=True)
class ChartSeries:
    """One arm in one chart: values in ms, and the positions of their rounds in a chart over time."""

    arm: str
    y: Sequence[float]
    x: Sequence[float] = ()


def ecdf(subject: Subject, scenario: str = "", ax: Axes | None = None) -> Axes:
    """Draw the share of requests answered within a time; see `RunPlots.ecdf`."""
    return _draw_ecdf(axes(ax), subject, _chosen(_latencies(subject), scenario))


def rounds(subject: Subject, scenario: str = "", ax: Axes | None = None) -> Axes:
    """Draw the median of every round; see `RunPlots.rounds`."""
    return _draw_rounds(axes(ax), subject, _chosen(_medians(subject), scenario))


def latency(subject: Subject, scenario: str = "", arm: str = "", ax: Axes | None = None) -> Axes:
    """Draw the response time of each request over time; see `RunPlots.latency`."""
    return _draw_flow(axes(ax), _chosen(_flows(subject, arm or subject.arms[0]), scenario), _limit(subject))


def _chosen(data: Mapping[str, V], scenario: str) -> V:
    """Return the data of the named load level, or of the first. Raises UsageError."""
    if (name := scenario or next(iter(data), "")) in data:
        return data[name]
    raise UsageError(f"scenario = '{scenario}'; expected one of: {', '.join(data) or 'none in this run'}")


def _limit(subject: Subject) -> float | None:
    """Return the limit on the p95 in ms."""
    return subject.run.config.thresholds.p95_ms


def ecdf_pictures(subject: Subject) -> Section:
    """Return the share of requests answered within a time, for all arms: one picture per load level, with the limit."""

    def picture(scenario: str, series: list[ChartSeries]) -> Picture:
        finding = _finding(series, _limit(subject))
        return _picture(subject, "ecdf", scenario, finding, lambda ax: _draw_ecdf(ax, subject, series))

    caption = "Share of requests answered within a time (logarithmic). Further left is faster."
    return gallery(caption, [picture(*item) for item in _latencies(subject).items()])


def round_pictures(subject: Subject) -> Section:
    """Return the median of every round in the order of rounds; a drift would show as a slope of all arms."""

    def picture(scenario: str, series: list[ChartSeries]) -> Picture:
        return _picture(subject, "rounds", scenario, _drift(series), lambda ax: _draw_rounds(ax, subject, series))

    caption = "Median of each round, ms, in the order in which the rounds ran."
    return gallery(caption, [picture(*item) for item in _medians(subject).items()])


def _picture(
    subject: Subject, kind: str, scenario: str, finding: str, draw: Callable[[Axes], Axes], *, shown: bool = False
) -> Picture:
    title = subject.label(scenario)
    return Picture(f"{kind}-{scenario}", title, finding, draw, f"{title} ({scenario})", shown=shown)


def gallery(caption: str, pictures: Sequence[Part]) -> Section:
    """Return pictures side by side below a caption."""
    if not pictures:
        return stacked(Paragraph("Nothing to draw."))
    return stacked(note(caption), Section(pictures, kind="gallery", gap="\n"), gap="\n")


def latencies(round_: Round) -> list[float]:
    """Return the response times of a round's counted successes in ms, from when each request was due."""
    return round_.columns.times_ms(round_.columns.served())


def _latencies(subject: Subject) -> dict[str, list[ChartSeries]]:
    """Return the response times of each arm by load level."""
    samples: dict[tuple[str, str], list[float]] = {}
    for round_ in subject.rounds:
        samples.setdefault((round_.scenario, round_.arm), []).extend(latencies(round_))
    return _by_level(subject, {key: ChartSeries(key[1], values) for key, values in samples.items() if values})


def _medians(subject: Subject) -> dict[str, list[ChartSeries]]:
    """Return the medians of the rounds of each arm, with their positions, by load level."""
    medians: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for round_ in sorted(subject.rounds, key=lambda r: r.position):
        if values := latencies(round_):
            medians.setdefault((round_.scenario, round_.arm), []).append((round_.position, float(np.median(values))))
    series = {key: ChartSeries(key[1], [y for _, y in own], [x for x, _ in own]) for key, own in medians.items()}
    return _by_level(subject, series)


def _by_level(subject: Subject, series: Mapping[tuple[str, str], ChartSeries]) -> dict[str, list[ChartSeries]]:
    """Return the series of the arms by load level, both in the order of the configuration."""
    levels = dict.fromkeys(scenario for scenario, _ in subject.loads)
    by_level = {name: [series[name, arm] for arm in subject.arms if (name, arm) in series] for name in levels}
    return {name: arms for name, arms in by_level.items() if arms}


def _draw_ecdf(ax: Axes, subject: Subject, series: Sequence[ChartSeries]) -> Axes:
    limit = _limit(subject)
    curves = [(s.arm, np.quantile(s.y, QUANTILES)) for s in series]
    low, high = min(c[0] for _, c in curves), max(c[-1] for _, c in curves)
    high = max(high, limit * 1.3) if limit else high
    room = max(2.0, (high / low) ** 0.22)
    ax.set_xscale("log")
    ax.set_xlim(low / room, high * room)
    ax.set_ylim(0, 1.0)
    for arm, curve in curves:
        colour, dash, _ = _style(subject, arm)
        ax.plot(curve, QUANTILES, color=colour, linestyle=dash, linewidth=1.6)
    for position, (arm, curve) in enumerate(sorted(curves, key=lambda item: item[1][50])):
        height, left = ((0.82, True), (0.24, False), (0.62, True), (0.4, False))[position % 4]
        offset, side = (-4, "right") if left else (4, "left")
        at = (float(np.interp(height, QUANTILES, curve)), height)
        colour = _style(subject, arm)[0]
        ax.annotate(label(arm), at, (offset, 0), textcoords="offset points", ha=side, va="center", color=colour)
    if limit:
        limit_line(ax, limit)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 0.95]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}".replace("%", " %")))
    logarithmic(ax.xaxis)
    ax.set_xlabel("response time, ms")
    return ax


def _draw_rounds(ax: Axes, subject: Subject, series: Sequence[ChartSeries]) -> Axes:
    ax.set_yscale("log")
    lows, highs = min(min(s.y) for s in series), max(max(s.y) for s in series)
    room = max(1.5, (highs / lows) ** 0.15)
    ax.set_ylim(lows / room, highs * room)
    first, last = min(s.x[0] for s in series), max(s.x[-1] for s in series)
    margin = (last - first + 1) * 0.03
    ax.set_xlim(first - margin, last + (last - first + 1) * 0.34)
    heights = spread_labels({s.arm: float(np.log(s.y[-1])) for s in series}, 0.1 * np.log(highs * room * room / lows))
    for s in series:
        colour, dash, marker = _style(subject, s.arm)
        ax.plot(s.x, s.y, color=colour, linestyle=dash, linewidth=0.9, marker=marker, markersize=3.6)
        height = np.exp(heights[s.arm])
        ax.text(last + margin, height, label(s.arm), color=colour, va="center", fontsize=9)
    logarithmic(ax.yaxis)
    ax.set_xticks(sorted({first, (first + last) // 2, last}))
    ax.set_xlabel("order of rounds")
    return ax


def levels(subject: Subject, metric: str = "p50", ax: Axes | None = None) -> Axes:
    """Draw a percentile of every load level and arm with its interval; see `RunPlots.levels`."""
    if metric not in ("p50", "p95", "p99"):
        raise UsageError(f"metric = '{metric}'; expected p50, p95 or p99")
    ax = axes(ax)
    ax.set_xscale("log")
    drawn = False
    for position, arm in enumerate(subject.arms):
        estimates = {
            at: estimate
            for at, load in enumerate(subject.loads)
            if (level := subject.analysis.level(arm, *load)) and (estimate := getattr(level, metric))
        }
        values = np.array([e.value for e in estimates.values()])
        ends = np.array([(e.value - e.lo, e.hi - e.value) for e in estimates.values() if math.isfinite(e.hi)])
        drawn = drawn or bool(estimates)
        colour, _, marker = _style(subject, arm)
        heights = np.array([*estimates]) + 0.12 * (position - (len(subject.arms) - 1) / 2)
        bounded = [math.isfinite(e.hi) for e in estimates.values()]
        ax.plot(values, heights, marker, color=colour, markersize=4, label=label(arm))
        if any(bounded):
            ax.errorbar(values[bounded], heights[bounded], xerr=ends.T, fmt="none", ecolor=colour, elinewidth=1)
    if not drawn:
        raise UsageError(f"metric = '{metric}'; expected a percentile that a load level has enough samples for")
    ax.set_yticks(
        range(len(subject.loads)),
        [load[0] if len(dict(subject.loads)) == len(subject.loads) else ": ".join(load) for load in subject.loads],
    )
    ax.invert_yaxis()
    logarithmic(ax.xaxis)
    ax.set_xlabel(f"{metric} of response times, ms, with 95 % interval")
    ax.legend(frameon=False, fontsize=8)
    return ax


def _style(subject: Subject, arm: str) -> tuple[str, object, str]:
    """Return an arm's colour, dashes and marker."""
    return SERIES[(subject.arms.index(arm) if arm in subject.arms else 0) % len(SERIES)]


def _finding(series: Sequence[ChartSeries], limit: float | None) -> str:
    parts = []
    for s in series:
        within = f", {units.percent(float(np.mean(np.asarray(s.y) <= limit)))} within the limit" if limit else ""
        parts.append(f"{s.arm}: half within {units.significant(float(np.median(s.y)))} ms{within}")
    return "; ".join(parts) + "."


def _drift(series: Sequence[ChartSeries]) -> str:
    """Compare the second half of the rounds with the first, by arm."""
    parts = []
    for s in series:
        half = len(s.y) // 2
        change = float(np.median(s.y[half:]) / np.median(s.y[:half])) if half else 1.0
        parts.append(f"{s.arm}: second half ×{units.significant(change)} of the first")
    return "; ".join(parts) + "."


# Latency over time by load level: stalls, dropped requests, and both in words.

CAPTION = (
    "Response time of each request (logarithmic), from when it was due. If requests arrive at a rate: in seconds since "
    "a round began, all rounds over each other; otherwise in the order of requests, round after round. Lines are "
    "percentiles of a stretch with enough samples; some points are left out, but never the slowest."
)
COLUMNS, EACH = 120, 5  # columns of points in a chart, and points in a column: enough to show a stall
STRETCHES = 20  # about the largest number of stretches with percentiles of their own
EVEN = 1.5  # times the rest; a slowest stretch below that is not mentioned
_NICE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
_LINES = {50: (BLUE, "-"), 95: (ORANGE, (0, (6, 2))), 99: (VIOLET, (0, (1, 1)))}
_LOST = {"dropped": (YELLOW, "v", 0.105), "errors": (RED, "x", 0.035)}  # colour, marker, height of the axes

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flow:
    """The requests of one scenario over time: `x` in s since a round's start, or in order; response times in ms."""

    x: Values
    ms: Values
    lost: Mapping[str, Values]  # where requests failed or were dropped
    timed: bool  # x is seconds
    borders: tuple[float, ...] = ()  # between rounds, or between the steps of a search
    step_s: float = 0.0  # duration of a step of a search
    beyond: int = 0  # requests whose times are only in histograms


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the x axis with its response times."""

    lo: float
    hi: float
    ms: Values


def latency_pictures(subject: Subject) -> Section:
    """Return one picture for each load level of the run's first arm."""

    def picture(name: str, flow: Flow) -> Picture:
        draw = lambda ax: _draw_flow(ax, flow, _limit(subject))  # noqa: E731
        return _picture(subject, "time", name, finding(flow), draw, shown=True)

    return gallery(CAPTION, [picture(*item) for item in _flows(subject, subject.arms[0]).items()])


def _flows(subject: Subject, arm: str) -> dict[str, Flow]:
    """Return the requests of an arm by load level, in the order of the configuration."""
    scenarios = {scenario.name: scenario for scenario in subject.run.scenarios}
    flows = {}
    for name in dict.fromkeys(scenario for scenario, _ in subject.loads):
        rounds = [r for r in subject.rounds if r.arm == arm and r.scenario == name]
        flow = flow_of(rounds, scenarios[name]) if rounds else None
        if flow and len(flow.x) + sum(map(len, flow.lost.values())):
            flows[name] = flow
    return flows


def flow_of(rounds: Sequence[Round], scenario: ScenarioRecord) -> Flow:
    """Return the counted requests of a scenario's rounds on one arm; of a search, the requests of every step."""
    timed, step_s = bool(scenario.rate), (scenario.seconds or 0.0) if scenario.search else 0.0
    x: list[float] = []
    ms: list[float] = []
    lost: dict[str, list[float]] = {kind: [] for kind in _LOST}
    ends = [0]
    for round_ in sorted(rounds, key=lambda r: r.position):
        c = round_.columns
        stamps = zip(c.batch, c.scheduled, c.done, c.counted, c.outcome, strict=True)
        own = sorted((s for s in stamps if step_s or s[3]), key=lambda s: s[:2])
        for place, (batch, due, done, _, outcome) in enumerate(own, ends[-1] + 1):
            at = batch * step_s + due / 1e9 if timed else float(place)
            if outcome == "ok":
                x.append(at)
                ms.append((done - due) / 1e6)
            else:
                lost["dropped" if outcome == DROPPED else "errors"].append(at)
        ends.append(ends[-1] + len(own))
    beyond = sum(sum(own.outcomes.values()) for r in rounds for own in r.rest.values())
    marks = {kind: np.sort(np.asarray(places)) for kind, places in lost.items()}
    order = np.argsort(x, kind="stable")
    steps = 1 + max((max(r.columns.batch, default=0) for r in rounds), default=0)
    borders = [n * step_s for n in range(1, steps)] if step_s else [] if timed else [end + 0.5 for end in ends[1:-1]]
    return Flow(np.asarray(x)[order], np.asarray(ms)[order], marks, timed, tuple(borders), step_s, beyond)


def stretches(flow: Flow) -> list[Stretch]:
    """Return equal parts: steps of a search, round seconds, or enough requests for a p95, otherwise for a median."""
    if not len(flow.x):
        return []
    last = float(flow.x[-1])
    if flow.timed:
        width = flow.step_s or next((w for w in _NICE if w >= last / STRETCHES), last)
        edges = np.arange(math.floor(last / width) + 2) * width
    else:
        least = MIN_SAMPLES[95] if len(flow.x) >= 2 * MIN_SAMPLES[95] else 2 * MIN_SAMPLES[50]
        edges = np.round(np.linspace(0, last, max(1, min(STRETCHES, len(flow.x) // least)) + 1)) + 0.5
    cuts = np.searchsorted(flow.x, edges[1:-1])
    parts = zip(edges[:-1], edges[1:], np.split(flow.ms, cuts), strict=True)
    return [Stretch(float(lo), float(hi), ms) for lo, hi, ms in parts if len(ms)]


def finding(flow: Flow) -> str:
    """Return in words the slowest stretch against the rest, and the lost requests."""
    beyond = f"{units.count(flow.beyond)} later requests are in the percentiles but not in this picture"
    sentence = "; ".join([*_slowest(flow, stretches(flow)), *_lost(flow), *([beyond] if flow.beyond else [])])
    return f"{sentence[0].upper()}{sentence[1:]}."


def _slowest(flow: Flow, parts: Sequence[Stretch]) -> Iterator[str]:
    q = next((q for q in (95, 50) if sum(supported(len(part.ms), q) for part in parts) > 1), None)
    if q is None:
        yield f"the slowest of {units.count(len(flow.ms))} took {_ms(flow.ms.max())}" if len(flow.ms) else "no answer"
        return
    known = [(percentile(part.ms, q), part) for part in parts if supported(len(part.ms), q)]
    value, worst = max(known, key=lambda pair: pair[0])
    rest = percentile(np.concatenate([part.ms for part in parts if part is not worst]), q)
    span = worst.hi - worst.lo
    each = "second" if span == 1 else f"{span:g} s" if flow.timed else "stretch"
    each = f"step of {span:g} s" if flow.step_s else each
    if value < EVEN * rest:
        low = min(known, key=lambda pair: pair[0])[0]
        yield f"even: p{q} from {_ms(low)} to {_ms(value)} in every {each}"
    else:
        yield f"slowest {each}: {_where(flow, worst.lo, worst.hi)}, p{q} {_ms(value)} against {_ms(rest)} otherwise"


def _lost(flow: Flow) -> Iterator[str]:
    for kind, places in flow.lost.items():
        if count := len(places):
            one = kind.removesuffix("s") if count == 1 else kind
            where = _where(flow, math.floor(places[0]), math.floor(places[-1]) + 1) if flow.timed else ""
            yield f"{units.count(count)} {one}{f', {where}' if where else ''}"


def _where(flow: Flow, lo: float, hi: float) -> str:
    return f"{lo:g} to {hi:g} s" if flow.timed else f"requests {math.ceil(lo):,} to {math.floor(hi):,}"


def _ms(value: float) -> str:
    return f"{units.significant(float(value))} ms"


def thinned(flow: Flow) -> tuple[Values, Values]:
    """Return the points to draw: in each column of the chart some at even distances, and the slowest."""
    if len(flow.x) <= COLUMNS * EACH:
        return flow.x, flow.ms
    columns = np.minimum((flow.x / flow.x[-1] * COLUMNS).astype(int), COLUMNS - 1)
    chosen: list[int] = []
    for indices in np.split(np.arange(len(flow.x)), np.flatnonzero(np.diff(columns)) + 1):
        slowest = int(indices[flow.ms[indices].argmax()])
        evenly = indices[:: math.ceil(len(indices) / (EACH - 1))].tolist()
        chosen += sorted({slowest, *evenly})
    return flow.x[chosen], flow.ms[chosen]


def _draw_flow(ax: Axes, flow: Flow, limit: float | None) -> Axes:
    last = max([float(places[-1]) for places in (flow.x, *flow.lost.values()) if len(places)])
    ax.set_xlim(-0.02 * last, 1.13 * last)
    ax.set_yscale("log")
    low, high = (float(flow.ms.min()), float(flow.ms.max())) if len(flow.ms) else (1.0, 10.0)
    high = max(high, limit * 1.05) if limit and limit < 3 * high else high
    room = (high / low) ** 0.14 * 1.2
    ax.set_ylim(low / room, high * room**0.4)
    if flow.borders:
        ax.xaxis.grid(False)
    for border in flow.borders if len(flow.borders) < COLUMNS / 2 else ():
        ax.axvline(border, color=INK, linewidth=0.4, alpha=0.25)
    ax.plot(*thinned(flow), ".", color=GREY, markersize=2.6, markeredgewidth=0, alpha=0.8)
    ends: dict[str, tuple[float, str]] = {}
    for q, (colour, dash) in _LINES.items():
        known = [(p, percentile(p.ms, q)) for p in stretches(flow) if supported(len(p.ms), q)]
        for part, value in known:
            ax.plot([part.lo, min(part.hi, last)], [value, value], color=colour, linestyle=dash, linewidth=1.6)
        if known:
            ends[f"p{q}"] = (math.log(known[-1][1]), colour)
    heights = spread_labels(
        {name: height for name, (height, _) in ends.items()}, 0.075 * math.log(high * room**1.4 / low)
    )
    for name, (_, colour) in ends.items():
        ax.text(1.02 * last, math.exp(heights[name]), name, color=colour, va="center", fontsize=9)
    if limit and low / room < limit < high * room**0.4:
        limit_line(ax, limit, across=True)
    for kind, (colour, marker, height) in _LOST.items():
        if len(flow.lost[kind]):
            places = np.unique(np.round(flow.lost[kind] / last * COLUMNS)) / COLUMNS * last
            where = ax.get_xaxis_transform()
            ax.plot(places, [height] * len(places), marker, markersize=3.4, color=colour, transform=where)
            ax.text(1.02 * last, height, kind, va="center", fontsize=8, color=colour, transform=where)
    logarithmic(ax.yaxis, high / low)
    steps = "; lines part the steps" if flow.step_s else ""
    ax.set_xlabel(f"seconds since the round began{steps}" if flow.timed else "order of requests; lines part the rounds")
    return ax

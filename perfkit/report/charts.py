"""The charts of a report: distributions and rounds over time, and the finding of each in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perfkit import numbers
from perfkit.bundle import Round
from perfkit.display.html import Block, escape
from perfkit.display.subject import Subject
from perfkit.report.svg import INK, draw_svg

QUANTILES = np.linspace(0, 1, 100)
# Mid tones keep a contrast of 3:1 on white and on near-black; dashes and markers work without colour.
_STYLES = (
    ("#c2571a", "-", "o"),
    ("#7f8791", (0, (2, 2)), "s"),
    ("#2f7fd6", (0, (6, 2)), "^"),
    ("#1f9d6b", (0, (6, 2, 1.5, 2)), "D"),
    ("#a45fd0", (0, (1, 1)), "v"),
    ("#b58900", (0, (9, 3)), "P"),
)


Drawn = tuple[str, str]  # SVG, and what it shows in words


@dataclass(frozen=True, slots=True)
class ChartSeries:
    """One arm in one chart: values in ms, at the positions of their rounds where time matters."""

    arm: str
    y: Sequence[float]
    x: Sequence[float] = ()


def ecdf(subject: Subject, rounds: Sequence[Round]) -> Block:
    """Share of requests answered within a time: one chart per load level, every arm, the limit marked."""
    limit = subject.run.get("config", {}).get("thresholds", {}).get("p95_ms")
    samples = _samples(rounds)

    def chart(scenario: str) -> Drawn:
        series = [ChartSeries(arm, samples[scenario, arm]) for arm in subject.arms if samples.get((scenario, arm))]
        finding = _finding(series, limit)
        return draw_svg(
            f"ecdf-{scenario}", subject.label(scenario), finding, lambda ax: _ecdf(ax, subject, series, limit)
        ), finding

    return gallery(
        subject,
        chart,
        samples,
        "Share of requests answered within a time (logarithmic). Further left is faster.",
    )


def rounds_over_time(subject: Subject, rounds: Sequence[Round]) -> Block:
    """The median of every round in the order of rounds: a drift would show as a slope of all arms."""
    medians: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for round_ in sorted(rounds, key=lambda r: r.position):
        if values := latencies(round_):
            medians.setdefault((round_.scenario, round_.arm), []).append((round_.position, float(np.median(values))))

    def chart(scenario: str) -> Drawn:
        series = [
            ChartSeries(arm, [y for _, y in found], [x for x, _ in found])
            for arm in subject.arms
            if (found := medians.get((scenario, arm)))
        ]
        finding = _drift(series)
        return draw_svg(
            f"rounds-{scenario}", subject.label(scenario), finding, lambda ax: _strip(ax, subject, series)
        ), finding

    return gallery(subject, chart, medians, "Median of each round, ms, in the order in which the rounds ran.")


def latencies(round_: Round) -> list[float]:
    """Response times of a round's counted successes in ms, from when each was due."""
    c = round_.columns
    rows = zip(c["scheduled"], c["done"], c["counted"], c["outcome"], strict=True)
    return [(done - due) / 1e6 for due, done, counted, outcome in rows if counted and outcome == "ok"]


def _samples(rounds: Sequence[Round]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for round_ in rounds:
        found.setdefault((round_.scenario, round_.arm), []).extend(latencies(round_))
    return found


def _ecdf(ax: Axes, subject: Subject, series: Sequence[ChartSeries], limit: float | None) -> None:
    curves = [(s, np.quantile(s.y, QUANTILES)) for s in series]
    low, high = min(c[0] for _, c in curves), max(c[-1] for _, c in curves)
    high = max(high, limit * 1.3) if limit else high
    room = max(2.0, (high / low) ** 0.22)
    ax.set_xscale("log")
    ax.set_xlim(low / room, high * room)
    ax.set_ylim(0, 1.0)
    for found, curve in curves:
        colour, dash, _ = _style(subject, found.arm)
        ax.plot(curve, QUANTILES, color=colour, linestyle=dash, linewidth=1.6)
    for position, (found, curve) in enumerate(sorted(curves, key=lambda item: item[1][50])):
        height, left = ((0.82, True), (0.24, False), (0.62, True), (0.4, False))[position % 4]
        _label(ax, subject, found.arm, float(np.interp(height, QUANTILES, curve)), height, left=left)
    if limit:
        ax.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(limit, 1.02, f"limit {numbers.significant(limit)} ms", ha="center", va="bottom", fontsize=8)
    ax.yaxis.set_major_locator(mpl.ticker.FixedLocator([0, 0.25, 0.5, 0.75, 0.95]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}".replace("%", " %")))
    logarithmic(ax.xaxis)
    ax.set_xlabel("response time, ms")


def _strip(ax: Axes, subject: Subject, series: Sequence[ChartSeries]) -> None:
    ax.set_yscale("log")
    lows, highs = min(min(s.y) for s in series), max(max(s.y) for s in series)
    room = max(1.5, (highs / lows) ** 0.15)
    ax.set_ylim(lows / room, highs * room)
    first, last = min(s.x[0] for s in series), max(s.x[-1] for s in series)
    ax.set_xlim(first - (last - first + 1) * 0.03, last + (last - first + 1) * 0.34)
    heights = apart({s.arm: float(np.log(s.y[-1])) for s in series}, 0.1 * np.log(highs * room * room / lows))
    for found in series:
        colour, dash, marker = _style(subject, found.arm)
        ax.plot(found.x, found.y, color=colour, linestyle=dash, linewidth=0.9, marker=marker, markersize=3.6)
        ax.text(
            last + (last - first + 1) * 0.03,
            np.exp(heights[found.arm]),
            found.arm.replace("$", r"\$"),
            color=colour,
            va="center",
            fontsize=9,
        )
    logarithmic(ax.yaxis)
    ax.set_xticks(sorted({first, (first + last) // 2, last}))
    ax.set_xlabel("order of rounds")


def _label(ax: Axes, subject: Subject, arm: str, x: float, y: float, *, left: bool) -> None:
    offset, side = (-4, "right") if left else (4, "left")
    text = arm.replace("$", r"\$")  # a name is no formula
    ax.annotate(
        text,
        (x, y),
        (offset, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        color=_style(subject, arm)[0],
    )


def apart(wanted: Mapping[str, float], least: float) -> dict[str, float]:
    """Heights as wanted, but at least that far from each other."""
    placed: dict[str, float] = {}
    for arm, height in sorted(wanted.items(), key=lambda item: item[1]):
        placed[arm] = max(height, max(placed.values(), default=-np.inf) + least)
    return placed


def logarithmic(axis: mpl.axis.Axis) -> None:
    """Few ticks, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _style(subject: Subject, arm: str) -> tuple[str, object, str]:
    arms = subject.arms
    return _STYLES[(arms.index(arm) if arm in arms else 0) % len(_STYLES)]


def _finding(series: Sequence[ChartSeries], limit: float | None) -> str:
    parts = []
    for found in series:
        within = f", {numbers.percent(float(np.mean(np.asarray(found.y) <= limit)))} within the limit" if limit else ""
        parts.append(f"{found.arm}: half within {numbers.significant(float(np.median(found.y)))} ms{within}")
    return "; ".join(parts) + "."


def _drift(series: Sequence[ChartSeries]) -> str:
    """How the second half of the rounds compares with the first, arm by arm."""
    parts = []
    for found in series:
        half = len(found.y) // 2
        change = float(np.median(found.y[half:]) / np.median(found.y[:half])) if half else 1.0
        parts.append(f"{found.arm}: second half ×{numbers.significant(change)} of the first")
    return "; ".join(parts) + "."


def gallery(
    subject: Subject, chart: Callable[[str], Drawn], found: Mapping[tuple[str, str], object], caption: str
) -> Block:
    """A chart of every load level that was measured on an arm; `found` by scenario and arm is what there is to draw."""
    measured = {scenario for scenario, arm in found if found[scenario, arm] and arm in subject.arms}
    scenarios = [name for name in dict.fromkeys(s for s, _ in subject.loads) if name in measured]
    figures, texts = [], [caption]
    for scenario in scenarios:
        svg, finding = chart(scenario)
        label = f"{subject.label(scenario)} ({scenario})"
        figures.append(f"<figure><figcaption>{escape(label)}</figcaption>{svg}</figure>")
        texts.append(f"{label}: {finding}")
    html = f'<p class="note">{escape(caption)}</p><div class="gallery">{"".join(figures)}</div>'
    return Block(html if figures else "<p>Nothing to draw.</p>", "\n".join(texts))

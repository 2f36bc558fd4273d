"""The reviewed time as pictures: percentiles of every half hour against their targets, and when it was down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from perfkit import stats
from perfkit.config.watching import Metric
from perfkit.display.html import Block, escape
from perfkit.monitor.actuals import PERCENTILES, is_down, items_of, said, share, times
from perfkit.monitor.model import Tick
from perfkit.monitor.period import clock, lasting
from perfkit.monitor.review import Reviewed
from perfkit.report.watch_chart import Limit, Panel, Span, draw, finding
from perfkit.report.watch_series import Line, Values

WIDTH, HEIGHT = 1000, 64  # of the strip, in its own units
LEAST = 2.0  # of its units, so that one interval of a day can be seen
_STATES = {"up": "answered", "down": "down", "unwatched": "nobody watched"}


def latency_over_time(found: Reviewed) -> Block:
    """p50, p95 and p99 of every block of time, their targets as lines, incidents and gaps shaded."""
    names = items_of(found.about.kinds, None)
    spans = [*_incidents(found), *(span for span in stretches(found) if span.what != "up")]
    panels = [_panel(found, metric, names, spans) for metric in PERCENTILES]
    width = lasting(found.period.width)
    note = (
        f"Response times of {' and '.join(names)} in ms, logarithmic: a step is {width} with its own percentile, where "
        "it has the samples for one. Shaded: incidents, by their gravest level; hatched: nobody watched."
    )
    html = f'<p class="note">{escape(note)}</p><div class="gallery">'
    html += f"{''.join(draw(panel, found.period) for panel in panels)}</div>"
    return Block(html, "\n".join([note, *(f"{p.title}: {finding(p, found.period)}" for p in panels)]))


def _panel(found: Reviewed, metric: Metric, names: Sequence[str], spans: Sequence[Span]) -> Panel:
    q, blocks = PERCENTILES[metric], [times(block, names) for block in _every_block(found)]
    known = [stats.percentile(ms, q) if stats.supported(len(ms), q) else math.nan for ms in blocks]
    y: Values = np.asarray(known, dtype=float)
    width = found.period.width
    line = Line(np.array([found.period.start + (n + 0.5) * width for n in range(len(y))]), y, width)
    rows = [row for row in found.rows if row.target.metric == metric and not row.target.item]
    limits = [Limit(row.target.at_most, "target") for row in rows if row.target.at_most is not None]
    whole = next((said(metric, row.actual.value) for row in rows if row.actual.value is not None), "")
    return Panel(f"review-p{q}", f"p{q}", f"{whole} over the whole time" if whole else "", "ms", line, limits, spans)


def _every_block(found: Reviewed) -> Iterator[Sequence[Tick]]:
    """The blocks of the time line, those in which nobody watched empty."""
    period, width = found.period, found.period.width
    place = {int((own[0].t - own[0].seconds / 2 - period.start) / width): own for own in period.blocks()}
    yield from (place.get(n, ()) for n in range(max(place) + 1))


def _incidents(found: Reviewed) -> Iterator[Span]:
    for own in found.incidents:
        yield Span(own.since, found.period.end if own.eased is None else own.eased, own.level)


def stretches(found: Reviewed) -> list[Span]:
    """The time in stretches that were up, down or unwatched."""
    names = items_of(found.about.kinds, None)
    every = [Span(tick.start, tick.t, "down" if is_down(tick, names) else "up") for tick in found.period.ticks]
    gaps = [Span(start, end, "unwatched") for start, end in found.gaps]
    joined: list[Span] = []
    for span in sorted([*every, *gaps], key=lambda span: span.since):
        if joined and joined[-1].what == span.what:
            joined[-1] = Span(joined[-1].since, span.until, span.what)
        else:
            joined.append(span)
    return joined


def availability(found: Reviewed) -> Block:
    """The time as one strip: where it answered, where nothing was answered, where nobody watched."""
    spans = stretches(found)
    worst = [span for span in spans if span.what != "up"]
    row = next(
        (own for own in found.rows if own.target.metric == "availability" and own.actual.value is not None), None
    )
    told = [_told(found, span) for span in worst]
    more = [f"and {len(told) - 12} more"] if len(told) > 12 else []
    value = f"{share(row.actual.value)} available. " if row and row.actual.value is not None else ""
    words = value + ("; ".join([*told[:12], *more]) + "." if told else "Answered all the time that was watched.")
    scrolled = f'<div class="scroll" role="region" tabindex="0" aria-label="Availability">{_strip(found, spans, words)}'
    return Block(f'<figure>{scrolled}</div><p class="note">{escape(words)}</p></figure>', words)


def _told(found: Reviewed, span: Span) -> str:
    since, until = (clock(found.period.wall(t), day=False) for t in (span.since, span.until))
    return f"{since} to {until} {_STATES[span.what]}, {lasting(span.until - span.since)}"


def _strip(found: Reviewed, spans: Sequence[Span], words: str) -> str:
    period = found.period
    scale = WIDTH / period.seconds
    looks = {
        "up": 'fill="#1f9d6b" fill-opacity="0.45"',
        "down": 'fill="#d1495b"',
        "unwatched": 'fill="none" stroke="currentColor" stroke-width="0.6" stroke-dasharray="3 3"',
    }
    order = ("up", "unwatched", "down")  # what is short and bad is drawn over the rest
    parts = []
    for span in sorted(spans, key=lambda span: order.index(span.what)):
        x, width = (span.since - period.start) * scale, (span.until - span.since) * scale
        width = max(width, LEAST if span.what == "down" else 0.0)
        parts.append(f'<rect x="{x:.2f}" y="4" height="32" width="{width:.2f}" {looks[span.what]}/>')
    for t, text in hours(found):
        x = (t - period.start) * scale
        side = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(f'<path d="M{x:.1f} 36v5" stroke="currentColor" stroke-width="0.8"/>')
        parts.append(f'<text x="{x:.1f}" y="55" font-size="12" fill="currentColor" text-anchor="{side}">{text}</text>')
    return (
        f'<svg class="chart" style="min-width: 540px" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' role="img" aria-labelledby="strip-t strip-d"><title id="strip-t">Availability over time, UTC</title>'
        f'<desc id="strip-d">{escape(words)}</desc>{"".join(parts)}</svg>'
    )


def hours(found: Reviewed) -> Iterator[tuple[float, str]]:
    """Round times of the clock within the period, at most nine: place on the time line, and as text."""
    period = found.period
    step = next((s for s in (10, 60, 300, 600, 1800, 3600, 10800, 21600) if period.seconds / s <= 9), 86400)
    ahead = period.wall(period.end) - period.end
    at = -(-(period.start + ahead) // step) * step
    while at <= period.end + ahead:
        yield at - ahead, clock(at)[5 if step >= 86400 else 11 :]
        at += step

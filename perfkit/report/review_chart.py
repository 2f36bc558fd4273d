"""The reviewed time as pictures: percentiles of every half hour against their targets, and when it was down."""

from __future__ import annotations

from collections.abc import Sequence

from perfkit.config.watching import Metric
from perfkit.display.html import Block, escape
from perfkit.monitor import figures
from perfkit.monitor.actuals import PERCENTILES
from perfkit.monitor.period import clock, lasting
from perfkit.monitor.review import Reviewed
from perfkit.monitor.sentences import said, share
from perfkit.report.watch_chart import Limit, Panel, Span, draw, finding, round_times
from perfkit.report.watch_series import WatchSeries

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
    width = lasting(panels[0].line.width)
    note = (
        f"Response times of {' and '.join(figures.chosen(found.about.kinds))} in ms, logarithmic: a step is {width} "
        "with its own percentile, where it has the samples for one. Shaded: incidents, by their gravest level; "
        "hatched: nobody watched."
    )
    html = f'<p class="note">{escape(note)}</p><div class="gallery">'
    html += f"{''.join(draw(panel, found.period) for panel in panels)}</div>"
    return Block(html, "\n".join([note, *(f"{p.title}: {finding(p, found.period)}" for p in panels)]))


def _panel(found: Reviewed, metric: Metric, spans: Sequence[Span]) -> Panel:
    q = PERCENTILES[metric]
    line = WatchSeries(found.period, found.about).percentile(q, found.period.width)
    rows = [row for row in found.rows if row.target.metric == metric and not row.target.item]
    limits = [Limit(row.target.at_most, "target") for row in rows if row.target.at_most is not None]
    whole = next((said(metric, row.actual.value) for row in rows if row.actual.value is not None), "")
    return Panel(f"review-p{q}", f"p{q}", f"{whole} over the whole time" if whole else "", "ms", line, limits, spans)


def _stretches(found: Reviewed) -> list[Span]:
    """The time in stretches that were up, unwatched or down, in this order: what is short and bad is drawn last."""
    names, ticks = figures.chosen(found.about.kinds), found.period.ticks
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
    value = next((f"{share(own)} available. " for own in shares if own is not None), "")
    words = value + ("; ".join([*told[:12], *more]) + "." if told else "Answered all the time that was watched.")
    scrolled = f'<div class="scroll" role="region" tabindex="0" aria-label="Availability">{_strip(found, spans, words)}'
    return Block(f'<figure>{scrolled}</div><p class="note">{escape(words)}</p></figure>', words)


def _told(found: Reviewed, span: Span) -> str:
    since, until = (clock(found.period.wall(t), day=False) for t in (span.since, span.until))
    what = "nobody watched" if span.what == "unwatched" else span.what
    return f"{since} to {until} {what}, {lasting(span.until - span.since)}"


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

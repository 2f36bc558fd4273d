"""What a watch says now: its figures of the last minutes and before, what stands, and whether anybody still watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perfkit.config.watching import Watch
from perfkit.monitor import figures, severity
from perfkit.monitor.incidents import Alert, alerts
from perfkit.monitor.model import Record, Tick
from perfkit.monitor.period import Period, lasting
from perfkit.monitor.store import settings

HOUR_S = 3600.0
MISSED = 3  # intervals without a word, and the watch is not merely late

Values = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Standing:
    """A watch as of `now` (wall clock, seconds since 1970) that has at least one interval."""

    record: Record
    watch: Watch
    baseline: figures.Baseline | None
    now: float
    running: bool  # whether somebody holds its folder to write
    alerts: Sequence[Alert]  # the gravest first of those that stand, then the latest first
    spans: Mapping[str, Values]  # figures of everything that counts, by the time they are of: the shortest first

    @property
    def last(self) -> Tick:
        """The last interval."""
        return self.record.ticks[-1]

    @property
    def recent(self) -> Sequence[Tick]:
        """The intervals that rules look back on."""
        return figures.window(self.record.ticks, self.watch.window_s)

    @property
    def values(self) -> Values:
        """The figures that rules see."""
        return next(iter(self.spans.values()))

    @property
    def age_s(self) -> float:
        """How long ago the last interval ended; never below 0, whatever the clock was set to."""
        return max(self.now - self.last.at, 0.0)

    @property
    def missed(self) -> int:
        """How many intervals it should have written since, where that is more than being late; else 0."""
        count = int(self.age_s / self.record.about.every_s)
        return count if count >= MISSED else 0

    @property
    def open(self) -> Sequence[Alert]:
        """The alerts that stand."""
        return [alert for alert in self.alerts if alert.ended is None]

    @property
    def quiet_since(self) -> float:
        """Since when no alert has stood, on the time line; of use only where none does."""
        return max((alert.ended for alert in self.alerts if alert.ended is not None), default=self.first.start)

    @property
    def first(self) -> Tick:
        """The first interval."""
        return self.record.ticks[0]

    @property
    def whole(self) -> Period:
        """All intervals."""
        return Period(self.record.ticks)

    def period(self, seconds: float) -> Period:
        """The intervals of the last so many seconds."""
        return Period(figures.window(self.record.ticks, seconds))

    def level(self, metric: str) -> str:
        """The gravest level whose limit for the figure of everything is broken now; nothing where none is."""
        rules = [rule for rule in self.watch.rule if rule.metric == metric and not rule.item]
        broken = severity.gravest(rules, self.values[metric])
        return broken.level if broken else ""


def standing(record: Record, now: float, *, running: bool) -> Standing:
    """A watch as of `now`. Raises BundleError for settings that are none, and ValueError without an interval."""
    about, ticks = record.about, record.ticks
    if not ticks:
        raise ValueError("a watch with an interval")
    watch, _ = settings(about)
    baseline = figures.baseline(ticks, about.kinds, watch)
    clears = {rule.name: rule.clear_for_s for rule in watch.rule}
    found = sorted(alerts(record.events, clears), key=lambda alert: -alert.noticed)
    found.sort(key=lambda alert: (alert.ended is not None, alert.level if alert.ended is None else ""))
    spans = {
        name: figures.figures(figures.window(ticks, seconds), about.kinds, baseline)
        for name, seconds in _spans(watch.window_s, ticks[-1].t - ticks[0].start)
    }
    return Standing(record, watch, baseline, now, running, found, spans)


def _spans(window_s: float, whole_s: float) -> Iterator[tuple[str, float]]:
    """The rules' window, the last hour and the whole, as far as they differ."""
    if whole_s > window_s:
        yield f"last {lasting(window_s)}", window_s
    if whole_s > HOUR_S > window_s:
        yield f"last {lasting(HOUR_S)}", HOUR_S
    yield f"all {lasting(whole_s)}", whole_s + 1

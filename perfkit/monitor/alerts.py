"""Alerts: when a change began, which are raised, which stand.

A figure over five minutes is beyond its limit long after it began, and stays there long after it ended. So the
intervals are looked at one by one, backwards from the one that raised the alert. Each scores for or against its
samples being beyond the limit, and it began with the interval, itself beyond, at which the sum is largest. An
interval's score for is no larger than a clean interval's against, so that one bad interval some time before is not
taken for the beginning; where errors are so rare that a clean interval says little, one failure counts in full.

A rule stands once its figure has been bad for `for_s` without a break, and until it has been good, beyond `clear`,
for `clear_for_s`. A figure that is not known changes nothing; a stretch in which nobody watched begins both runs
anew.

Of several rules on the same figure of the same item only the gravest that stands is raised. A lesser one is held back
meanwhile; when the graver is taken back it is raised only if its own figure is bad at that moment. One that was
raised before things got worse stays open until it is good itself: every alert is raised once and cleared once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log

from perfkit.config.judging import Watch, WatchRule
from perfkit.monitor import figures as monitor_figures
from perfkit.monitor import model, notifications
from perfkit.monitor.figures import Baseline, baseline, figures, healthy, item_names, probes, unwatched_between, window
from perfkit.monitor.incidents import Alert, Period, alerts, duration_text
from perfkit.monitor.model import About, Event, Kind, Record, Tick, beyond, clears, gravity, limit, subject
from perfkit.monitor.store import settings

LASTS = ("service_down_s", "database_down_s", "lock_wait_s", "transaction_s")  # figures that say how long it has been
_TAIL = {"p50_ms": 0.5, "slowdown": 0.5, "p95_ms": 0.05, "p99_ms": 0.01}  # share of samples over it, at the limit


def since(
    rule: WatchRule, value: float, ticks: Sequence[Tick], kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """When it began, on the time line; `value` is the figure at the end of these intervals.

    Right within one interval wherever one interval's samples can tell, else within the time of about one failure.
    """
    if rule.metric in LASTS:
        known = (
            ticks[-1] if rule.metric.endswith("_down_s") else next((t for t in reversed(ticks) if t.server), ticks[-1])
        )
        return max(known.t - value, 0.0)
    best, began, total = float("-inf"), ticks[-1].start, 0.0
    for place in range(len(ticks) - 1, -1, -1):
        score = _score(rule, ticks[place], ticks[place - 1] if place else None, kinds, baseline)
        total += score
        if score > 0 and total >= best:
            best, began = total, ticks[place].start
    return began


def _score(
    rule: WatchRule, tick: Tick, before: Tick | None, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """Above 0 where this interval's own samples are beyond the limit, 0 where they do not say."""
    share, bad, n = _counted(rule, tick, kinds, baseline)
    if n and 0 < share < 1:
        clean = log((1 - share) / (1 - share / 2))  # the log likelihood of the limit against half of it, per sample
        return min(bad * log(2) + (n - bad) * clean, max(log(2), -n * clean))
    own = figures([tick], kinds, baseline, rule.item or "", before=before, few=True)[rule.metric]
    return 0.0 if own is None else 1.0 if beyond(rule, own) else -1.0


def _counted(
    rule: WatchRule, tick: Tick, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> tuple[float, int, int]:
    """For a figure that is a share of samples: the share at the limit, how many are bad here, of how many."""
    own = probes([tick], item_names(kinds, rule.item or ""))
    if rule.above is not None and rule.metric == "error_rate":
        return rule.above, sum(probe.failed for probe in own), sum(probe.sent for probe in own)
    if rule.above is not None and rule.metric in _TAIL:
        usual = baseline.p50_ms if baseline else 0.0
        bound = rule.above * usual if rule.metric == "slowdown" else rule.above
        slow = sum(ms > bound for probe in own for ms in probe.ms)
        return _TAIL[rule.metric], slow, sum(len(probe.ms) for probe in own)
    return 0.0, 0, 0


# Alerts: rules that fire and clear as intervals come in.

_JITTER = 0.1  # of an interval: how much earlier than its time an interval may end


@dataclass(slots=True)
class _State:
    """How far a rule is. All times are on the time line."""

    rule: WatchRule
    value: float | None = None  # its figure, as of the last interval
    bad_t: float | None = None  # when the first of the intervals ended that are bad without a break
    good_t: float | None = None  # likewise, good enough to take it back
    began: float | None = None  # when what stands began
    eased: float = 0.0  # when what stood last was good again
    told: Event | None = None  # that it was raised

    @property
    def bad(self) -> bool:
        return self.value is not None and beyond(self.rule, self.value)


class Alerts:
    """The state of every rule of a watch; `record` is what was written before a restart."""

    def __init__(self, watch: Watch, about: About, record: Record | None = None) -> None:
        self._watch, self._about = watch, about
        self._states = [_State(rule) for rule in sorted(watch.rule, key=gravity)]
        self._items = sorted({rule.item or "" for rule in watch.rule})
        self._healthy: dict[str, list[Tick]] = {item: [] for item in self._items}
        self._usual: dict[str, Baseline | None] = dict.fromkeys(self._items)
        self._ticks: list[Tick] = []
        self._forgotten: list[Event] = []  # alerts of rules that are no more
        self._horizon = watch.window_s + 2 * about.every_s
        self._horizon += max((max(rule.for_s, rule.clear_for_s) for rule in watch.rule), default=0.0)
        if record is not None:
            self._restore(record)

    @property
    def active(self) -> list[Event]:
        """The alerts that stand, as they were raised: the gravest first, of these the oldest."""
        told = [state.told for state in self._states if state.told]
        return sorted(told, key=lambda event: (event.level, event.since))

    def step(self, tick: Tick) -> list[Event]:
        """Take in an interval; the events that it brings."""
        self._learn(tick)
        self._advance(tick)
        return [*self._forget(tick), *self._tell(tick)]

    def _restore(self, record: Record) -> None:
        """The same state as before the restart: what stands from its events, the rest from the last intervals."""
        for tick in record.ticks:
            if all(self._usual.values()):
                break
            self._learn(tick)
        for tick in window(record.ticks, 2 * self._horizon):
            self._advance(tick)
        standing = {event.rule: event for event in record.active}
        for state in self._states:
            if state.rule.name in standing:
                event = standing.pop(state.rule.name)
                state.told, state.began = event, event.since
        self._forgotten = list(standing.values())

    def _learn(self, tick: Tick) -> None:
        """What is usual, from the first healthy intervals."""
        for item in self._items:
            if self._usual[item] is None and healthy(tick, self._about.kinds, item):
                self._healthy[item].append(tick)
                self._usual[item] = baseline(self._healthy[item], self._about.kinds, self._watch, item)

    def _advance(self, tick: Tick) -> None:
        """What every rule's figure is now, and what has come to stand or to an end."""
        if self._ticks and unwatched_between(self._ticks[-1], tick):
            for state in self._states:
                state.bad_t = state.good_t = None
        self._ticks = [*window(self._ticks, self._horizon), tick]
        said = {item: self._figures(item) for item in self._items}
        for state in self._states:
            state.value = said[state.rule.item or ""][state.rule.metric]
            if state.value is not None:
                self._judge(state, state.value, tick)

    def _figures(self, item: str) -> Mapping[str, float | None]:
        ticks = window(self._ticks, self._watch.window_s)
        before = self._ticks[-len(ticks) - 1] if len(ticks) < len(self._ticks) else None
        return figures(ticks, self._about.kinds, self._usual[item], item, before=before)

    def _judge(self, state: _State, value: float, tick: Tick) -> None:
        rule, soon = state.rule, tick.t + _JITTER * tick.seconds
        bad, good = beyond(rule, value), clears(rule, value)
        state.bad_t = (tick.t if state.bad_t is None else state.bad_t) if bad else None
        state.good_t = (tick.t if state.good_t is None else state.good_t) if good else None
        if state.bad_t is not None and state.began is None and soon - state.bad_t >= rule.for_s:
            run = self._run(max(state.bad_t - self._watch.window_s, state.eased))
            state.began = since(rule, value, run, self._about.kinds, self._usual[rule.item or ""])
        if state.good_t is not None and state.began is not None and soon - state.good_t >= rule.clear_for_s:
            state.began, state.eased = None, state.good_t

    def _run(self, start: float) -> Sequence[Tick]:
        """The intervals since then, up to now, between which somebody always watched."""
        ticks = window(self._ticks, self._ticks[-1].t - start)
        for place in range(len(ticks) - 1, 0, -1):
            if unwatched_between(ticks[place - 1], ticks[place]):
                return ticks[place:]
        return ticks

    def _tell(self, tick: Tick) -> Iterator[Event]:
        graver = set()
        for state in self._states:
            if state.told and state.began is None:
                yield self._cleared(state, state.told, tick)
                state.told = None
            if not state.told and state.began is not None and state.bad and subject(state.rule) not in graver:
                state.told = self._raised(state, state.began, tick)
                yield state.told
            if state.told:
                graver.add(subject(state.rule))

    def _raised(self, state: _State, began: float, tick: Tick) -> Event:
        rule, value = state.rule, state.value or 0.0
        at = tick.at - (tick.t - began)
        text = notifications.raised_text(rule, value, self._watch.window_s, at, tick.at)
        name = hashlib.sha256(f"{self._about.id}\n{rule.name}\n{began:.3f}".encode()).hexdigest()[:12]
        common = (rule.name, rule.level, began, value, limit(rule), rule.action)
        return Event("raised", name, tick.t, tick.at, text, *common)

    def _cleared(self, state: _State, told: Event, tick: Tick) -> Event:
        lasted = max(state.eased - told.since, 0.0)
        text = notifications.cleared_text(state.rule, state.value, self._watch.window_s, lasted)
        return _taken_back(told, tick, text, state.value)

    def _forget(self, tick: Tick) -> Iterator[Event]:
        while self._forgotten:
            told = self._forgotten.pop()
            yield _taken_back(told, tick, f"{told.rule}: no longer among the rules")


def _taken_back(told: Event, tick: Tick, text: str, value: float | None = None) -> Event:
    return replace(told, what="cleared", t=tick.t, at=tick.at, text=text, value=value)


# What a watch says now: its figures of the last minutes and before, what stands, and whether anybody still watches.

HOUR_S = 3600.0
MISSED = 3  # intervals without a word, and the watch is not merely late

Values = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """A watch as of `now` (wall clock, seconds since 1970) that has at least one interval."""

    record: Record
    watch: Watch
    baseline: monitor_figures.Baseline | None
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
        return monitor_figures.window(self.record.ticks, self.watch.window_s)

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
    def active(self) -> Sequence[Alert]:
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
        return Period(monitor_figures.window(self.record.ticks, seconds))

    def level(self, metric: str) -> str:
        """The gravest level whose limit for the figure of everything is broken now; nothing where none is."""
        rules = [rule for rule in self.watch.rule if rule.metric == metric and not rule.item]
        broken = model.gravest(rules, self.values[metric])
        return broken.level if broken else ""


def watch_status(record: Record, now: float, *, running: bool) -> WatchStatus:
    """A watch as of `now`. Raises BundleError for settings that are none, and ValueError without an interval."""
    about, ticks = record.about, record.ticks
    if not ticks:
        raise ValueError("a watch with an interval")
    watch, _ = settings(about)
    baseline = monitor_figures.baseline(ticks, about.kinds, watch)
    clears = {rule.name: rule.clear_for_s for rule in watch.rule}
    found = sorted(alerts(record.events, clears), key=lambda alert: -alert.noticed)
    found.sort(key=lambda alert: (alert.ended is not None, alert.level if alert.ended is None else ""))
    spans = {
        name: monitor_figures.figures(monitor_figures.window(ticks, seconds), about.kinds, baseline)
        for name, seconds in _spans(watch.window_s, ticks[-1].t - ticks[0].start)
    }
    return WatchStatus(record, watch, baseline, now, running, found, spans)


def _spans(window_s: float, whole_s: float) -> Iterator[tuple[str, float]]:
    """The rules' window, the last hour and the whole, as far as they differ."""
    if whole_s > window_s:
        yield f"last {duration_text(window_s)}", window_s
    if whole_s > HOUR_S > window_s:
        yield f"last {duration_text(HOUR_S)}", HOUR_S
    yield f"all {duration_text(whole_s)}", whole_s + 1

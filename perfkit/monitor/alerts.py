"""Alerts: when a change began, which alerts are raised and cleared, and which of them are one incident.

A figure of the last five minutes crosses its limit some time after a change began, and stays there for a while after
the change ended. So `since` looks at single intervals, backwards from the one that raised the alert. Each interval
scores for or against its own samples being beyond the limit, and the change began at the interval beyond the limit
where the sum of scores is largest. The score of a bad interval is no larger than that of a clean one, so that a single
bad interval some time earlier is not taken for the start. If errors are so rare that a clean interval proves little,
one failure counts in full.

An alert is raised once its figure has been bad for `for_s` without a break, and cleared once it has been good, beyond
`clear`, for `clear_for_s`. An unknown figure changes nothing; after a gap without a watch, both times start again.

Of several rules on the same figure of the same item, only the gravest is raised. A milder one is held back meanwhile;
after the graver one is cleared, it is raised only if its own figure is bad at that moment. A milder alert that was
raised before things got worse stays active until its own figure is good: every alert is raised once and cleared once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from perfkit.config.judging import Watch, WatchRule
from perfkit.monitor.figures import (
    Baseline,
    compute_baseline,
    compute_figures,
    healthy,
    item_names,
    probes,
    unwatched_between,
    window,
)
from perfkit.monitor.model import About, Alert, Event, Kind, Record, Tick, beyond, clears, gravity, limit, subject
from perfkit.monitor.notifications import Values, cleared_text, raised_text

# Durations of a state that still lasts.
DURATIONS = ("service_down_s", "database_down_s", "lock_wait_s", "transaction_s")
_TAIL = {"p50_ms": 0.5, "slowdown": 0.5, "p95_ms": 0.05, "p99_ms": 0.01}  # share of samples above the percentile


def since(
    rule: WatchRule, value: float, ticks: Sequence[Tick], kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """Return when the change began, on the time line; `value` is the figure at the end of these intervals.

    The result is right to within one interval if the samples of one interval can tell, else to within the usual time
    between two failures.
    """
    if rule.metric in DURATIONS:
        asked = ticks if rule.metric.endswith("_down_s") else [tick for tick in ticks if tick.server]
        return max((asked or ticks)[-1].t - value, 0.0)
    best, began, total = float("-inf"), ticks[-1].start, 0.0
    for n in range(len(ticks) - 1, -1, -1):
        score = _score(rule, ticks[n], ticks[n - 1] if n else None, kinds, baseline)
        total += score
        if score > 0 and total >= best:
            best, began = total, ticks[n].start
    return began


def _score(
    rule: WatchRule, tick: Tick, before: Tick | None, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> float:
    """Return the score of an interval: above 0 if its samples are beyond the limit, 0 if they do not tell."""
    share, bad, n = _counted(rule, tick, kinds, baseline)
    if n and 0 < share < 1:
        # Log likelihood ratio of the limit against half of it: math.log(2) per bad sample, `clean` per good one.
        clean = math.log((1 - share) / (1 - share / 2))
        return min(bad * math.log(2) + (n - bad) * clean, max(math.log(2), -n * clean))
    value = compute_figures([tick], kinds, baseline, rule.item or "", before=before, few=True)[rule.metric]
    return 0.0 if value is None else 1.0 if beyond(rule, value) else -1.0


def _counted(
    rule: WatchRule, tick: Tick, kinds: Mapping[str, Kind], baseline: Baseline | None
) -> tuple[float, int, int]:
    """Return for a share of samples: the share at the limit, the number of bad samples here, and of all samples."""
    in_tick = probes([tick], item_names(kinds, rule.item or ""))
    if rule.above is not None and rule.metric == "error_rate":
        return rule.above, sum(probe.failed for probe in in_tick), sum(probe.sent for probe in in_tick)
    if rule.above is not None and rule.metric in _TAIL:
        usual = baseline.p50_ms if baseline else 0.0
        bound = rule.above * usual if rule.metric == "slowdown" else rule.above
        slow = sum(ms > bound for probe in in_tick for ms in probe.ms)
        return _TAIL[rule.metric], slow, sum(len(probe.ms) for probe in in_tick)
    return 0.0, 0, 0


_JITTER = 0.1  # share of an interval by which it may end early


@dataclass(slots=True)
class _State:
    """The state of a rule. All times are on the time line."""

    rule: WatchRule
    value: float | None = None  # the figure at the last interval
    bad_t: float | None = None  # end of the first of the current run of bad intervals
    good_t: float | None = None  # end of the first of the current run of good intervals
    began: float | None = None  # when the current change began
    eased: float = 0.0  # when the last change was good again
    raised: Event | None = None  # the event that raised the active alert

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
        self._baselines: dict[str, Baseline | None] = dict.fromkeys(self._items)
        self._ticks: list[Tick] = []
        self._removed: list[Event] = []  # active alerts of rules that no longer exist
        self._horizon = watch.window_s + 2 * about.every_s
        self._horizon += max((max(rule.for_s, rule.clear_for_s) for rule in watch.rule), default=0.0)
        if record is not None:
            self._restore(record)

    @property
    def active(self) -> list[Event]:
        """The events that raised the active alerts: the gravest first, then the oldest."""
        raised = [state.raised for state in self._states if state.raised]
        return sorted(raised, key=lambda event: (event.level, event.since))

    def step(self, tick: Tick) -> list[Event]:
        """Add an interval and return the events that it causes."""
        self._learn(tick)
        self._advance(tick)
        return [*self._clear_removed(tick), *self._changes(tick)]

    def _restore(self, record: Record) -> None:
        """Restore the state before a restart: active alerts from their events, the rest from the last intervals."""
        for tick in record.ticks:
            if all(self._baselines.values()):
                break
            self._learn(tick)
        for tick in window(record.ticks, 2 * self._horizon):
            self._advance(tick)
        standing = {event.rule: event for event in record.active}
        for state in self._states:
            if state.rule.name in standing:
                event = standing.pop(state.rule.name)
                state.raised, state.began = event, event.since
        self._removed = list(standing.values())

    def _learn(self, tick: Tick) -> None:
        """Extend the baselines with an interval, until each is complete."""
        for item in self._items:
            if self._baselines[item] is None and healthy(tick, self._about.kinds, item):
                self._healthy[item].append(tick)
                self._baselines[item] = compute_baseline(self._healthy[item], self._about.kinds, self._watch, item)

    def _advance(self, tick: Tick) -> None:
        """Update the figure of every rule, and which changes have begun or ended."""
        if self._ticks and unwatched_between(self._ticks[-1], tick):
            for state in self._states:
                state.bad_t = state.good_t = None
        self._ticks = [*window(self._ticks, self._horizon), tick]
        values = {item: self._figures(item) for item in self._items}
        for state in self._states:
            state.value = values[state.rule.item or ""][state.rule.metric]
            if state.value is not None:
                self._judge(state, state.value, tick)

    def _figures(self, item: str) -> Values:
        ticks = window(self._ticks, self._watch.window_s)
        before = self._ticks[-len(ticks) - 1] if len(ticks) < len(self._ticks) else None
        return compute_figures(ticks, self._about.kinds, self._baselines[item], item, before=before)

    def _judge(self, state: _State, value: float, tick: Tick) -> None:
        rule, soon = state.rule, tick.t + _JITTER * tick.seconds
        bad, good = beyond(rule, value), clears(rule, value)
        state.bad_t = (tick.t if state.bad_t is None else state.bad_t) if bad else None
        state.good_t = (tick.t if state.good_t is None else state.good_t) if good else None
        if state.bad_t is not None and state.began is None and soon - state.bad_t >= rule.for_s:
            run = self._run(max(state.bad_t - self._watch.window_s, state.eased))
            state.began = since(rule, value, run, self._about.kinds, self._baselines[rule.item or ""])
        if state.good_t is not None and state.began is not None and soon - state.good_t >= rule.clear_for_s:
            state.began, state.eased = None, state.good_t

    def _run(self, start: float) -> Sequence[Tick]:
        """Return the intervals since `start`, or since the last gap."""
        ticks = window(self._ticks, self._ticks[-1].t - start)
        for n in range(len(ticks) - 1, 0, -1):
            if unwatched_between(ticks[n - 1], ticks[n]):
                return ticks[n:]
        return ticks

    def _changes(self, tick: Tick) -> Iterator[Event]:
        graver = set()
        for state in self._states:
            if state.raised and state.began is None:
                lasted = max(state.eased - state.raised.since, 0.0)
                text = cleared_text(state.rule, state.value, self._watch.window_s, lasted)
                yield _cleared(state.raised, tick, text, state.eased, state.value)
                state.raised = None
            if not state.raised and state.began is not None and state.bad and subject(state.rule) not in graver:
                state.raised = self._raised(state, state.began, tick)
                yield state.raised
            if state.raised:
                graver.add(subject(state.rule))

    def _raised(self, state: _State, began: float, tick: Tick) -> Event:
        rule, value = state.rule, state.value or 0.0
        text = raised_text(rule, value, self._watch.window_s, tick.at - (tick.t - began), tick.at)
        name = hashlib.sha256(f"{self._about.id}\n{rule.name}\n{began:.3f}".encode()).hexdigest()[:12]
        common = (rule.name, rule.level, began, value, limit(rule), rule.action)
        return Event("raised", name, tick.t, tick.at, text, *common)

    def _clear_removed(self, tick: Tick) -> Iterator[Event]:
        while self._removed:
            raised = self._removed.pop()
            yield _cleared(raised, tick, f"{raised.rule}: no longer among the rules", tick.t)


def _cleared(raised: Event, tick: Tick, text: str, eased: float, value: float | None = None) -> Event:
    """Return the event that clears an alert, with the whole alert in it."""
    eased = max(eased, raised.t)
    return replace(raised, what="cleared", t=tick.t, at=tick.at, text=text, value=value, eased=eased, raised=raised)


Stage = Literal["began", "noticed", "note", "eased", "ended"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of an incident's timeline."""

    t: float
    stage: Stage
    text: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Alerts that overlap in time, the gravest first."""

    alerts: tuple[Alert, ...]

    @property
    def level(self) -> str:
        """The level of the gravest alert."""
        return self.alerts[0].raised.level

    @property
    def since(self) -> float:
        """When the first alert began."""
        return min(alert.raised.since for alert in self.alerts)

    @property
    def noticed(self) -> float:
        """When the first alert was raised."""
        return min(alert.raised.t for alert in self.alerts)

    @property
    def ended(self) -> float | None:
        """When the last alert was cleared; None while one is active."""
        return _last(alert.ended for alert in self.alerts)

    @property
    def eased(self) -> float | None:
        """When the last figure was good again; None while one is not."""
        return _last(alert.eased for alert in self.alerts)

    @property
    def rules(self) -> str:
        """The rules of the alerts, that of the gravest first."""
        return ", ".join(dict.fromkeys(alert.raised.rule for alert in self.alerts))

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions of the rules, those of the gravest alert first."""
        return tuple(dict.fromkeys(alert.raised.action for alert in self.alerts if alert.raised.action))

    def lasted(self, now: float) -> float:
        """Return the seconds from the start until the figures were good again, or until `now`."""
        return max((now if self.eased is None else self.eased) - self.since, 0.0)

    def timeline(self, notes: Iterable[Event] = ()) -> list[Moment]:
        """Return the course of the incident in the order of time, with the notes that name one of its alerts."""
        moments = list[Moment]()
        for alert in self.alerts:
            raised, cleared, name = alert.raised, alert.cleared, f"{alert.raised.level} {alert.raised.rule}"
            moments += [Moment(raised.since, "began", name), Moment(raised.t, "noticed", raised.text)]
            moments += [Moment(note.t, "note", note.text) for note in notes if raised.id in note.text]
            if cleared:
                moments.append(
                    Moment(cleared.t if alert.eased is None else alert.eased, "eased", f"{name}: good again")
                )
                moments.append(Moment(cleared.t, "ended", cleared.text))
        return sorted(moments, key=lambda moment: moment.t)


def _last(times: Iterable[float | None]) -> float | None:
    """Return the latest of some times; None if one of them is still to come."""
    known = [math.inf if t is None else t for t in times]
    return max(known) if max(known) < math.inf else None


def group_incidents(alerts: Iterable[Alert], join_s: float = 0.0) -> list[Incident]:
    """Return the incidents of some alerts, the earliest first.

    Alerts of any rules that overlap, or are at most `join_s` apart, form one incident.
    """
    groups: list[list[Alert]] = []
    end = -math.inf
    for alert in sorted(alerts, key=lambda alert: (alert.raised.since, alert.raised.t)):
        if not groups or alert.raised.since > end + join_s:
            groups.append([])
            end = -math.inf
        groups[-1].append(alert)
        end = max(end, math.inf if alert.ended is None else alert.ended)
    ordered = (sorted(group, key=lambda alert: (alert.raised.level, alert.raised.since)) for group in groups)
    return [Incident(tuple(group)) for group in ordered]

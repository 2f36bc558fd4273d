"""Alerts: rules that fire and clear as intervals come in.

A rule stands once its figure has been bad for `for_s` without a break, and until it has been good, beyond `clear`, for
`clear_for_s`. A figure that is not known changes nothing; a stretch in which nobody watched begins both runs anew.

Of several rules on the same figure of the same item only the gravest that stands is raised. A lesser one is held back
meanwhile; when the graver is taken back it is raised only if its own figure is bad at that moment. One that was raised
before things got worse stays open until it is good itself: every alert is raised once and cleared once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from perfkit.config.watching import Watch, WatchRule
from perfkit.monitor import sentences
from perfkit.monitor.figures import Baseline, baseline, figures, healthy, parted, window
from perfkit.monitor.model import About, Event, Record, Tick
from perfkit.monitor.onset import since
from perfkit.monitor.severity import beyond, good_again, gravity, limit, subject

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
    def open(self) -> list[Event]:
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
        standing = {event.rule: event for event in record.standing}
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
        if self._ticks and parted(self._ticks[-1], tick):
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
        bad, good = beyond(rule, value), good_again(rule, value)
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
            if parted(ticks[place - 1], ticks[place]):
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
        text = sentences.raised(rule, value, self._watch.window_s, at, tick.at)
        name = hashlib.sha256(f"{self._about.id}\n{rule.name}\n{began:.3f}".encode()).hexdigest()[:12]
        common = (rule.name, rule.level, began, value, limit(rule), rule.action)
        return Event("raised", name, tick.t, tick.at, text, *common)

    def _cleared(self, state: _State, told: Event, tick: Tick) -> Event:
        lasted = max(state.eased - told.since, 0.0)
        text = sentences.cleared(state.rule, state.value, self._watch.window_s, lasted)
        return _taken_back(told, tick, text, state.value)

    def _forget(self, tick: Tick) -> Iterator[Event]:
        while self._forgotten:
            told = self._forgotten.pop()
            yield _taken_back(told, tick, f"{told.rule}: no longer among the rules")


def _taken_back(told: Event, tick: Tick, text: str, value: float | None = None) -> Event:
    return replace(told, what="cleared", t=tick.t, at=tick.at, text=text, value=value)

"""From a watch's events to incidents: alerts that overlap are one, with what became of it in the order of time.

Pure functions. All times are seconds on the watch's time line; people are shown the wall clock
(`perfkit.monitor.period`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perfkit.monitor.model import Event

Stage = Literal["began", "noticed", "note", "eased", "ended"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule that was broken, from when it began until it was taken back; `ended` is None while it stands."""

    id: str
    rule: str
    level: str  # "P1", "P2", "P3"
    since: float
    noticed: float
    text: str
    action: str
    eased: float | None = None  # when the figure was good again; it is taken back only once that has lasted
    ended: float | None = None
    ended_text: str = ""
    notes: tuple[Event, ...] = ()  # that name it: that it could not be told
    value: float | None = None  # the figure when it was raised
    limit: float | None = None


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
        """The gravest of its alerts."""
        return self.alerts[0].level

    @property
    def since(self) -> float:
        """When the first of them began."""
        return min(alert.since for alert in self.alerts)

    @property
    def noticed(self) -> float:
        """When the first of them was raised."""
        return min(alert.noticed for alert in self.alerts)

    @property
    def ended(self) -> float | None:
        """When the last of them was taken back; None while one stands."""
        ends = [alert.ended for alert in self.alerts if alert.ended is not None]
        return max(ends) if len(ends) == len(self.alerts) else None

    @property
    def eased(self) -> float | None:
        """When the last figure was good again; None while one is not."""
        ends = [alert.eased for alert in self.alerts if alert.eased is not None]
        return max(ends) if len(ends) == len(self.alerts) else None

    @property
    def actions(self) -> tuple[str, ...]:
        """What its rules say to do, those of the gravest first."""
        return tuple(dict.fromkeys(alert.action for alert in self.alerts if alert.action))

    def lasted(self, now: float) -> float:
        """Seconds from when it began until the figures were good again, or until `now`."""
        return max((now if self.eased is None else self.eased) - self.since, 0.0)

    def timeline(self) -> list[Moment]:
        """What became of it, in the order of time."""
        return sorted((moment for alert in self.alerts for moment in _moments(alert)), key=lambda m: m.t)


def incidents(events: Iterable[Event], clear_for_s: Mapping[str, float], join_s: float = 0.0) -> list[Incident]:
    """The incidents of a record, the earliest first; `clear_for_s` by rule, alerts less than `join_s` apart are one.

    An alert that began while another stood belongs to its incident, whatever rule either is of.
    """
    groups: list[list[Alert]] = []
    end = float("-inf")
    for alert in sorted(alerts(events, clear_for_s), key=lambda alert: (alert.since, alert.noticed)):
        if not groups or alert.since > end + join_s:
            groups.append([])
            end = float("-inf")
        groups[-1].append(alert)
        end = max(end, float("inf") if alert.ended is None else alert.ended)
    return [Incident(tuple(sorted(group, key=lambda a: (a.level, a.since)))) for group in groups]


def alerts(events: Iterable[Event], clear_for_s: Mapping[str, float]) -> list[Alert]:
    """One alert for each that was raised, with when it was taken back; one told twice is one.

    Taken back without having been raised in these events, it is left out: nothing says when it began.
    """
    by_id: dict[str, list[Event]] = {}
    notes: list[Event] = []
    for event in sorted(events, key=lambda event: event.t):
        (notes if event.what == "note" else by_id.setdefault(event.id, [])).append(event)
    return [found for own in by_id.values() if (found := _alert(own, notes, clear_for_s))]


def _alert(events: Sequence[Event], notes: Sequence[Event], clear_for_s: Mapping[str, float]) -> Alert | None:
    raised = next((event for event in events if event.what == "raised"), None)
    if raised is None:
        return None
    cleared = next((event for event in events if event.what == "cleared" and event.t >= raised.t), None)
    eased = max(cleared.t - clear_for_s.get(raised.rule, 0.0), raised.t) if cleared else None
    return Alert(
        raised.id,
        raised.rule,
        raised.level,
        min(raised.since, raised.t),
        raised.t,
        raised.text,
        raised.action,
        eased,
        cleared.t if cleared else None,
        cleared.text if cleared else "",
        tuple(note for note in notes if raised.id in note.text),
        raised.value,
        raised.limit,
    )


def _moments(alert: Alert) -> Iterator[Moment]:
    name = f"{alert.level} {alert.rule}"
    yield Moment(alert.since, "began", name)
    yield Moment(alert.noticed, "noticed", alert.text)
    for note in alert.notes:
        yield Moment(note.t, "note", note.text)
    if alert.eased is not None:
        yield Moment(alert.eased, "eased", f"{name}: good again")
    if alert.ended is not None:
        yield Moment(alert.ended, "ended", alert.ended_text)

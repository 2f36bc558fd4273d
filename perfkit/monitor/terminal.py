"""What a watch says in a terminal: one line that is rewritten, a line for each event, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfkit.monitor.model import Event, Record
from perfkit.monitor.period import clock, lasting
from perfkit.numbers import NONE, significant
from perfkit.text import visible

TerminalFigures = Mapping[str, float | None]


def status(seconds: float, figures: TerminalFigures, standing: Sequence[Event]) -> str:
    """The line that is rewritten: how long, the last window's figures, and what stands."""
    p50, p95 = (_ms(figures.get(name)) for name in ("p50_ms", "p95_ms"))
    rate, answered = figures.get("error_rate"), figures.get("throughput")
    errors = NONE if rate is None else f"{100 * rate:.2g} %"
    served = NONE if answered is None else f"{significant(answered)}/s"
    alerts = ", ".join(f"{event.level} {event.rule}" for event in standing) or "no alert"
    return f"watching: {lasting(seconds)}, p50 {p50}, p95 {p95}, errors {errors}, {served}; {visible(alerts)}"


def line(event: Event) -> str:
    """One event: when and what; of an alert its text says what to do."""
    what = {"raised": f"{event.level} raised", "cleared": f"{event.level} cleared", "note": "note"}[event.what]
    return visible(f"{clock(event.at, day=False)}  {what}  {event.text}")


@dataclass(frozen=True, slots=True, repr=False)
class Ended:
    """How a watch ended: its folder, and what the whole of it shows."""

    folder: Path
    seconds: float  # in which somebody watched, over all its runs
    availability: float | None  # a share
    raised: Mapping[str, int]  # alerts by level
    standing: tuple[str, ...]  # rules whose alerts stand

    @classmethod
    def of(cls, folder: Path, record: Record, figures: TerminalFigures, standing: Sequence[Event]) -> Ended:
        """From what is on disk."""
        events = [event for event in record.events if event.what == "raised"]
        raised = {level: sum(event.level == level for event in events) for level in ("P1", "P2", "P3")}
        seconds = sum(tick.seconds for tick in record.ticks)
        return cls(folder, seconds, figures.get("availability"), raised, tuple(event.rule for event in standing))

    def __repr__(self) -> str:
        available = "not known" if self.availability is None else f"{100 * self.availability:.4g} %"
        alerts = ", ".join(f"{count} {level}" for level, count in self.raised.items() if count) or "none"
        stands = f" ({', '.join(self.standing)} standing)" if self.standing else ""
        return visible(
            f"watched for {lasting(self.seconds)}: availability {available}; alerts: {alerts}{stands}; {self.folder}"
        )


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{significant(value)} ms"

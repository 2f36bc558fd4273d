"""A watch from start to end: set-up, the loop over its intervals, and shutdown.

Probes and server figures come from threads, dashboards from a process, so the loop waits for nothing but the end of
the interval.
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from perfkit.base import units
from perfkit.base.errors import BundleError, Interrupted, UsageError, visible
from perfkit.base.units import clock, duration_text
from perfkit.config import Config, Query, Watch
from perfkit.config.model import mistakes
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.figures import compute_figures, figures_frame
from perfkit.monitor.metrics import QUERIES, Metrics, ServerProbe, ServerReading, endpoint
from perfkit.monitor.model import METRICS, About, Event, Period, Tick
from perfkit.monitor.notifications import Notifier, Renewal, event_line, last_page, require_program, status_line
from perfkit.monitor.prober import ProbePlan, Prober, WatchedTarget, open_target, plan_probes
from perfkit.monitor.store import TICKS, Store, read, timeline
from perfkit.postgres.guards import Audit, Permission

if TYPE_CHECKING:
    from pandas import DataFrame

    from perfkit.monitor.charts import WatchPlots

LEAD_S = 2.0  # the server is asked this long before an interval's end, at most half an interval
LAST_S = 0.3  # for its answer when the watch stops
SLICE_S = 0.2  # maximum time until a stop is noticed
CLOCK_S = 1.0  # a wall clock that moves by more against the steady clock was set
GIVEN_UP_S = 0.5  # for the notification command when the user stops the watch
Say = Callable[[str], None]


def _steady() -> float:
    """Return seconds that never go back and, on Linux, count while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    """Wait in slices: a signal handler can only set a flag safely, which does not end a sleep."""
    end = time.monotonic() + seconds
    while not stopped() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SLICE_S))


@dataclass(frozen=True, slots=True)
class WatchClock:
    """The clocks of a watch; `wait` returns after some seconds, or soon after `stopped` returns True."""

    steady: Callable[[], float] = _steady
    wall: Callable[[], float] = time.time
    wait: Callable[[float, Callable[[], bool]], object] = _wait


def lead_s(watch: Watch) -> float:
    """Return how many seconds before an interval's end the server is asked, which is the time it has to answer."""
    return min(LEAD_S, watch.every_s / 2)


class Notes:
    """Notes from threads, kept until the loop takes them; only the first of each kind."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._taken = 0

    def __call__(self, kind: str, text: str) -> None:
        """Add a note, unless there was one of this kind before. Thread-safe."""
        self._texts.setdefault(kind, text)

    def take(self) -> list[tuple[str, str]]:
        """Return the notes since the last call, each with its kind."""
        notes = list(self._texts.copy().items())[self._taken :]
        self._taken += len(notes)
        return notes


class Loop:
    """Records one interval after another; `server` is None if no database is watched.

    Each function of `on_event` receives every event, each of `on_tick` the intervals of the last window and the
    active alerts.
    """

    def __init__(
        self,
        watch: Watch,
        store: Store,
        alerts: Alerts,
        probes: Prober,
        server: ServerProbe | None,
        notes: Notes,
        clock: WatchClock | None = None,
    ) -> None:
        self._watch, self._store, self._alerts = watch, store, alerts
        self._probes, self._server, self._notes = probes, server, notes
        self.on_event: list[Callable[[Event], None]] = []
        self.on_tick: list[Callable[[Sequence[Tick], Sequence[Event]], None]] = []
        self._clock = clock or WatchClock()
        self._recent: deque[Tick] = deque()
        self.stopped = False
        self._number = store.last.n + 1 if store.last else 0
        self._line = timeline(store.last, self._clock.wall())  # start of this run on the time line
        self._last = self._begun = self._clock.steady()
        self._offset = self._clock.wall() - self._begun
        self._silent = self._trouble = False
        self._started = (store.last.server or {}).get("started") if store.last else None

    @property
    def seconds(self) -> float:
        """The time from the start of this run to the end of its last interval."""
        return self._last - self._begun

    def run(self, seconds: float) -> bool:
        """Watch for some seconds, or until `stopped`; return whether the time is over. Raises what ended the probes."""
        end = self._begun + seconds
        while not self.stopped and self._last < end:
            self._until(min(self._following(), end))
            self._interval()
            self._probes.require_alive()
        return not self.stopped

    def drain(self) -> None:
        """Record and publish the notes of threads."""
        for kind, text in self._notes.take():
            self._note(kind, text)

    def _following(self) -> float:
        """Return the next interval's end: a multiple of the interval after the start, however many were missed."""
        every = self._watch.every_s
        # Rounded, so that an interval that ended a little early counts.
        passed = int((self._last - self._begun) / every + 0.5)
        return self._begun + (passed + 1) * every

    def _until(self, at: float) -> None:
        """Wait until an instant, and ask the server shortly before it."""
        if self._server:
            self._wait(at - lead_s(self._watch))
            self._server.ask()
        self._wait(at)

    def _wait(self, at: float) -> None:
        while not self.stopped and (left := at - self._clock.steady()) > 0:
            self._clock.wait(left, lambda: self.stopped)

    def _interval(self) -> None:
        """Record an interval: first on disk, then in the rules and the listeners."""
        now, wall = self._clock.steady(), self._clock.wall()
        probes, reading = self._probes.cut(), self._reading()
        seconds, self._last = now - self._last, now
        server = dict(reading.server) if reading else None
        scans = dict(reading.scans) if reading else {}
        t = round(self._line + self.seconds, 3)
        tick = Tick(self._number, t, round(wall, 3), round(seconds, 3), probes, server, scans)
        self._number += 1
        self._store.append(tick)
        self._recent.append(tick)
        while self._recent[0].t <= t - self._watch.window_s:
            self._recent.popleft()
        for event in self._alerts.step(tick):
            self._publish(event)
        self._notice(now, wall, server or {})
        self.drain()
        for listener in self.on_tick:
            listener(self._recent, self._alerts.active)

    def _reading(self) -> ServerReading | None:
        """Return the server's figures; None if it does not answer, empty figures if it had too little time to."""
        if self._server is None:
            return ServerReading({})
        if not self.stopped:
            reading = self._server.answer()
        else:
            self._server.ask()
            reading = self._server.answer(LAST_S) or (None if self._silent else ServerReading({}))
        self._silent = reading is None
        return reading

    def _notice(self, now: float, wall: float, server: Mapping[str, float]) -> None:
        """Note that the clock was set, that PostgreSQL was restarted, or that the disk cannot be written."""
        moved = wall - now - self._offset
        if abs(moved) > CLOCK_S:
            self._offset += moved
            direction = "forward" if moved > 0 else "back"
            self._note("clock", f"the machine's clock was set {direction} by {abs(moved):.1f} s")
        if (started := server.get("started", self._started)) != self._started:
            if self._started is not None and started is not None:
                self._note("started", f"PostgreSQL was restarted at {clock(started, day=False)} UTC")
            self._started = started
        if (trouble := bool(self._store.trouble)) is not self._trouble:
            self._trouble = trouble
            self._note("disk", self._store.trouble or "all waiting lines are on disk now")

    def _note(self, kind: str, text: str) -> None:
        t = round(self._line + self.seconds, 3)
        self._publish(Event("note", f"note-{kind}-{t:.3f}", t, round(self._clock.wall(), 3), text, since=t))

    def _publish(self, event: Event) -> None:
        self._store.add(event)
        for listener in self.on_event:
            listener(event)


@contextmanager
def stopping(loop: Loop) -> Iterator[None]:
    """Let an interrupt stop the loop in good order; a second one aborts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if loop.stopped:
            raise KeyboardInterrupt
        loop.stopped = True

    signals = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """How to run a watch; `metrics` is PORT or ADDRESS:PORT, 0 for a free port, empty for no metrics."""

    folder: Path
    seconds: float
    arm: str = ""
    scale: str = ""
    metrics: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class WatchSummary:
    """The end of a watch: its folder, and what its whole record shows."""

    folder: Path
    seconds: float  # watched, over all its runs
    availability: float | None  # a share
    raised: Mapping[str, int]  # number of alerts by level
    standing: tuple[str, ...]  # rules whose alerts are active

    @classmethod
    def of(cls, folder: Path) -> WatchSummary:
        """Return the summary of the watch in a folder. Raises BundleError."""
        record = read(folder)
        levels = Counter(alert.raised.level for alert in record.alerts)
        raised = {level: levels[level] for level in ("P1", "P2", "P3")}
        seconds = sum(tick.seconds for tick in record.ticks)
        availability = compute_figures(record.ticks, record.about.kinds, None)["availability"]
        return cls(folder, seconds, availability, raised, tuple(event.rule for event in record.active))

    @property
    def frame(self) -> DataFrame:
        """One row for each interval and request or query, as `perfkit.monitor.figures.figures_frame` describes it."""
        record = read(self.folder)
        return figures_frame(record.ticks, record.about)

    @property
    def plot(self) -> WatchPlots:
        """The pictures of the watch, each a function that draws into matplotlib axes."""
        from perfkit.monitor.charts import WatchPlots  # late: matplotlib takes 0.5 s, which a watch does without

        record = read(self.folder)
        return WatchPlots(record.about, Period(record.ticks), record.alerts)

    def __repr__(self) -> str:
        available = "unknown" if self.availability is None else units.percent(self.availability)
        alerts = ", ".join(f"{count} {level}" for level, count in self.raised.items() if count) or "none"
        active = f" ({', '.join(self.standing)} active)" if self.standing else ""
        watched = duration_text(self.seconds)
        return visible(f"watched for {watched}: availability {available}; alerts: {alerts}{active}; {self.folder}")


def with_overrides(watch: Watch, every_s: float = 0.0, rate: float = 0.0, notify: Sequence[str] = ()) -> Watch:
    """Return the settings with the options of the command line; 0 and empty keep the value of the file.

    Raises UsageError if an option is out of range.
    """
    overrides = {"every_s": every_s, "rate": rate, "notify": tuple(notify)}
    changed = {name: value for name, value in overrides.items() if value}
    try:
        return Watch.model_validate({**watch.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(mistakes("watch", error)) from None


def watch(config: Config, permission: Permission, options: WatchSpec, say: Say, echo: Say) -> WatchSummary:
    """Watch into a new folder, or continue the watch of an existing one. `say` rewrites a line, `echo` prints one.

    Raises UsageError, TargetRefused, ServerError if perfkit cannot start the target, and Interrupted if stopped.
    """
    require_program(config.watch.notify)
    # A wrong option must fail before anything is started.
    endpoint(options.metrics or "0")
    say, echo = _ignoring_lost_terminal(say), _ignoring_lost_terminal(echo)
    plan = plan_probes(config, permission, options.arm, options.scale)
    store = Store.open(options.folder, _about(config, plan))
    try:
        audit = Audit(options.folder / "audit.jsonl")
        with open_target(plan, audit, say) as target, _audited(plan, target, audit) as sent:
            whole = _run(target, config.watch, store, options, say, echo, sent)
    finally:
        store.close()
        if has_record(options.folder):
            say("writing the dashboard")
            # Only after the store is closed does the page say that the watch has ended.
            last_page(options.folder)
            say("")
    summary = WatchSummary.of(options.folder)
    if not whole:
        raise Interrupted(f"stopped; {summary}")
    return summary


def has_record(folder: Path) -> bool:
    """Return whether the folder holds at least one interval."""
    ticks = folder / TICKS
    return ticks.exists() and ticks.stat().st_size > 0


def print_line(text: str) -> None:
    """Print a line, unbuffered."""
    print(text, flush=True)  # noqa: T201


def _ignoring_lost_terminal(say: Say) -> Say:
    """Return a function that does the same, but lets the watch continue when the terminal is gone."""

    def quiet(text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            say(text)

    return quiet


def _run(
    target: WatchedTarget, settings: Watch, store: Store, options: WatchSpec, say: Say, echo: Say, sent: Counter[str]
) -> bool:
    """Set everything up, run the loop and close everything; return whether the watch ran to its end."""
    about, notes = store.about, Notes()
    alerts = Alerts(settings, about, read(options.folder) if store.last else None)
    with ExitStack() as stack:
        metrics = Metrics(about)
        if options.metrics:
            address, port = endpoint(options.metrics)
            port = metrics.serve(port, address)
            stack.callback(metrics.close)
            # The gate reads the address from this note, and checks that the metrics answer.
            notes(METRICS, f"metrics: http://{address}:{port}/metrics")
        elif store.last:
            notes(METRICS, "metrics: none")
        notifier = Notifier(settings.notify, settings.notify_timeout_s, notes)
        prober = Prober(target, settings, metrics.observe, notes)
        stack.callback(prober.close)
        server = None
        if target.reach:
            # A third of the time for each query, so that a slow one leaves time for the others.
            server = ServerProbe(target.reach, lead_s(settings) / 3, notes)
            stack.callback(server.close)
            # The connection is then open when the first interval ends.
            server.ask()
        prober.start()
        loop = Loop(settings, store, alerts, prober, server, notes)
        renewal = Renewal(options.folder, settings.every_s, notes)

        def tell(event: Event) -> None:
            say("")
            echo(event_line(event))
            notifier.tell(event)

        def show(recent: Sequence[Tick], active: Sequence[Event]) -> None:
            say(status_line(loop.seconds, compute_figures(recent, about.kinds, None), active))
            metrics.update(recent[-1], active)
            sent.update({name: probe.sent for name, probe in recent[-1].probes.items()})
            renewal.due(recent[-1].t)

        loop.on_event.append(tell)
        loop.on_tick.append(show)
        whole = False
        try:
            with stopping(loop):
                whole = loop.run(options.seconds)
        finally:
            prober.close()
            notifier.close(settings.notify_timeout_s if whole else GIVEN_UP_S)
            loop.drain()
            renewal.close()
            loop.drain()
            say("")
    return whole


@contextmanager
def _audited(plan: ProbePlan, target: WatchedTarget, audit: Audit) -> Iterator[Counter[str]]:
    """Record the load on a target that perfkit did not start in the audit: before and, with the number sent, after."""
    sent: Counter[str] = Counter()
    if not plan.live:
        yield sent
        return
    began, texts = time.monotonic(), [plan.text(item) for item in plan.items.values()]
    catalog = [f"perfkit: sql/catalog/{name}.sql" for name in QUERIES] if target.reach else []
    audit.load(plan.name, "watch", plan.arm.name, [*texts, *catalog], None, 0.0)
    yield sent
    # A full disk raises BundleError; the record of the watch has a note about it.
    with suppress(BundleError):
        audit.load(plan.name, "watch", plan.arm.name, texts, sent.total(), time.monotonic() - began)


def _about(config: Config, plan: ProbePlan) -> About:
    """Return the description of the watch for its folder."""
    return About(
        id=secrets.token_hex(4),
        title=config.title,
        target=plan.name,
        began=round(time.time(), 3),
        every_s=config.watch.every_s,
        kinds={name: "query" if isinstance(item, Query) else "request" for name, item in plan.items.items()},
        rate=config.watch.rate,
        settings={key: getattr(config, key).model_dump(mode="json") for key in ("watch", "review")},
    )

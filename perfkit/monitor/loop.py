"""A watch from start to end: its loop, its line on the terminal, the renewal of its dashboard.

Probes and the server's figures come from threads of their own, dashboards from a process; here nothing waits but for
the interval's end.
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
from queue import Empty, SimpleQueue
from typing import Protocol

from pydantic import ValidationError

from perfkit.base.errors import BundleError, Interrupted, UsageError
from perfkit.config import Config, Query, Watch
from perfkit.config.model import mistakes
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.figures import figures
from perfkit.monitor.incidents import clock
from perfkit.monitor.metrics import QUERIES, Metrics, ServerProbe, ServerReading, endpoint
from perfkit.monitor.model import METRICS, About, Event, Kind, Probe, Tick
from perfkit.monitor.notifications import (
    Notifier,
    Renewal,
    WatchSummary,
    event_line,
    last_page,
    require_program,
    status_line,
)
from perfkit.monitor.prober import ProbePlan, Prober, WatchedTarget, open_target, plan_probes
from perfkit.monitor.store import Store, read, timeline
from perfkit.postgres.guards import Audit, Permission

LEAD_S = 2.0  # before an interval's end the server is asked, but not before its middle
LAST_S = 0.3  # that its answer may take at the very end
SLICE_S = 0.2  # within which a stop is noticed
CLOCK_S = 1.0  # a wall clock that moves by more than this against the other was set


def _steady() -> float:
    """Seconds that never go back, and on Linux go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    """In slices: what a signal's handler may safely do is set a flag, which wakes nobody."""
    until = time.monotonic() + seconds
    while not stopped() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, SLICE_S))


@dataclass(frozen=True, slots=True)
class WatchClock:
    """Where time comes from. `wait` returns after so many seconds, or soon after it is `stopped`."""

    steady: Callable[[], float] = _steady
    wall: Callable[[], float] = time.time
    wait: Callable[[float, Callable[[], bool]], object] = _wait


def lead_s(watch: Watch) -> float:
    """How long before an interval's end the server is asked, in s: so long it has to answer."""
    return min(LEAD_S, watch.every_s / 2)


class Probes(Protocol):
    """What sends probes."""

    def cut(self) -> Mapping[str, Probe]:
        """The probes that ended since the last cut."""

    def require_alive(self) -> None:
        """Raise what ended it."""


class WatchFigures(Protocol):
    """What asks the server."""

    def ask(self) -> None:
        """Begin to ask."""

    def answer(self, wait_s: float = 0.0) -> ServerReading | None:
        """What it has said by then."""


class Notes:
    """What threads have to say, kept until the loop takes it; each kind of trouble once."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._kinds: set[str] = set()

    def __call__(self, kind: str, text: str) -> None:
        """Say it, unless that kind was said before. For any thread."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._queue.put((kind, text))

    def take(self) -> Iterator[tuple[str, str]]:
        """What was said since the last time."""
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return


class Loop:
    """Takes what an interval brought, one after the other; `server` is None where there is no database.

    `on_event` is called with every event, `on_tick` with the last window's intervals and the alerts that stand.
    """

    def __init__(
        self,
        watch: Watch,
        store: Store,
        alerts: Alerts,
        probes: Probes,
        server: WatchFigures | None,
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
        self._line = timeline(store.last, self._clock.wall())  # where this run begins on the time line
        self._last = self._begun = self._clock.steady()
        self._offset = self._clock.wall() - self._begun
        self._silent = self._trouble = False
        self._started = (store.last.server or {}).get("started") if store.last else None

    @property
    def seconds(self) -> float:
        """How long this run has gone on, at its last interval's end."""
        return self._last - self._begun

    def run(self, seconds: float) -> bool:
        """Watch for so long, or until it is `stopped`; whether it was not. Raises what ended the probes."""
        end = self._begun + seconds
        while not self.stopped and self._last < end:
            self._until(min(self._following(), end))
            self._interval()
            self._probes.require_alive()
        return not self.stopped

    def drain(self) -> None:
        """Keep and pass on what was said meanwhile."""
        for kind, text in self._notes.take():
            self._note(kind, text)

    def _following(self) -> float:
        """The next interval's end: of a row of ends that begins with the run's start, whatever was missed."""
        every = self._watch.every_s
        passed = int((self._last - self._begun) / every + 0.5)  # one that was cut a little early counts
        return self._begun + (passed + 1) * every

    def _until(self, at: float) -> None:
        """Wait for an instant; ask the server shortly before it."""
        if self._server:
            self._wait(at - lead_s(self._watch))
            self._server.ask()
        self._wait(at)

    def _wait(self, at: float) -> None:
        while not self.stopped and (left := at - self._clock.steady()) > 0:
            self._clock.wait(left, lambda: self.stopped)

    def _interval(self) -> None:
        """What the interval brought: first onto disk, then to the rules and the listeners."""
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
            self._pass_on(event)
        self._look(now, wall, server or {})
        self.drain()
        for told in self.on_tick:
            told(self._recent, self._alerts.active)

    def _reading(self) -> ServerReading | None:
        """The server's figures; None where it does not answer, nothing where it could not in the time that was left."""
        if self._server is None:
            return ServerReading({})
        if not self.stopped:
            reading = self._server.answer()
        else:
            self._server.ask()
            reading = self._server.answer(LAST_S) or (None if self._silent else ServerReading({}))
        self._silent = reading is None
        return reading

    def _look(self, now: float, wall: float, server: Mapping[str, float]) -> None:
        """Notice a clock that was set, a server that was started again, and a disk that takes nothing."""
        moved = wall - now - self._offset
        if abs(moved) > CLOCK_S:
            self._offset += moved
            self._note(
                "clock", f"the machine's clock was set {'forward' if moved > 0 else 'back'} by {abs(moved):.1f} s"
            )
        if (started := server.get("started", self._started)) != self._started:
            if self._started is not None and started is not None:
                self._note("started", f"PostgreSQL was started again at {clock(started, day=False)} UTC")
            self._started = started
        if (trouble := bool(self._store.trouble)) is not self._trouble:
            self._trouble = trouble
            self._note("disk", self._store.trouble or "what waited to be written is on disk now")

    def _note(self, kind: str, text: str) -> None:
        t = round(self._line + self.seconds, 3)
        self._pass_on(Event("note", f"note-{kind}-{t:.3f}", t, round(self._clock.wall(), 3), text, since=t))

    def _pass_on(self, event: Event) -> None:
        self._store.add(event)
        for told in self.on_event:
            told(event)


@contextmanager
def stopping(loop: Loop) -> Iterator[None]:
    """An interrupt stops the loop, so that everything ends in good order; a second one breaks that off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if loop.stopped:
            raise KeyboardInterrupt
        loop.stopped = True

    wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# A watch from its beginning to its end: what is watched, whoever is told, and the loop in between.

GIVEN_UP_S = 0.5  # that a command may still take when the user stops the watch
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """How a watch is carried out; `metrics` is PORT or ADDRESS:PORT, 0 for a free one; empty for none."""

    folder: Path
    seconds: float
    arm: str = ""
    scale: str = ""
    metrics: str = ""


def with_overrides(watch: Watch, every_s: float = 0.0, rate: float = 0.0, notify: Sequence[str] = ()) -> Watch:
    """The settings with what the command line gave in place of the file's; 0 and nothing for the file's own.

    Raises UsageError for what cannot be meant.
    """
    given = {"every_s": every_s, "rate": rate, "notify": tuple(notify)}
    changed = {name: value for name, value in given.items() if value}
    try:
        return Watch.model_validate({**watch.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(mistakes("watch", error)) from None


def watch(config: Config, permission: Permission, options: WatchSpec, say: Say, echo: Say) -> WatchSummary:
    """Watch for so long, into a new folder or one that is gone on with. `say` rewrites a line, `echo` prints one.

    Raises PerfkitError: UsageError, TargetRefused, ServerError for what perfkit cannot start; Interrupted.
    """
    require_program(config.watch.notify)
    endpoint(options.metrics or "0")  # what is wrong shows before anything is started
    say, echo = _surviving(say), _surviving(echo)
    plan = plan_probes(config, permission, options.arm, options.scale)
    store = Store.open(options.folder, _about(config, plan))
    try:
        alerts = Alerts(config.watch, store.about, read(options.folder) if store.last else None)
        audit = Audit(options.folder / "audit.jsonl")
        with open_target(plan, audit, say) as target, _audited(plan, target, audit) as sent:
            whole = _watched(config, target, store, alerts, options, say, echo, sent)
    finally:
        store.close()
        if has_record(options.folder):
            say("writing the dashboard")
            last_page(options.folder)  # now that nobody watches, which it says
            say("")
    record = read(options.folder)
    ended = WatchSummary.of(options.folder, record, figures(record.ticks, record.about.kinds, None), alerts.active)
    if not whole:
        raise Interrupted(f"stopped; {ended}")
    return ended


def has_record(folder: Path) -> bool:
    """Whether anything was recorded there."""
    ticks = folder / "ticks.jsonl"
    return ticks.exists() and ticks.stat().st_size > 0


def print_line(text: str) -> None:
    """Print a line of its own, at once."""
    print(text, flush=True)  # noqa: T201


def _surviving(say: Say) -> Say:
    """The same, also when the terminal is gone: the watch goes on."""

    def said(text: str) -> None:
        with suppress(OSError, ValueError):  # the latter of a stream that is closed
            say(text)

    return said


def _watched(
    config: Config,
    target: WatchedTarget,
    store: Store,
    alerts: Alerts,
    options: WatchSpec,
    say: Say,
    echo: Say,
    sent: Counter[str],
) -> bool:
    """Everything set up, the loop, and everything put away; whether it went on to the end."""
    settings, about, notes = config.watch, store.about, Notes()
    with ExitStack() as stack:
        metrics = Metrics(about)
        if options.metrics:
            address, port = endpoint(options.metrics)
            port = metrics.serve(port, address)
            stack.callback(metrics.close)
            notes(METRICS, f"metrics: http://{address}:{port}/metrics")  # the gate asks there whether they answer
        elif store.last:
            notes(METRICS, "metrics: none")
        notifier = Notifier(settings.notify, settings.notify_timeout_s, notes)
        prober = Prober(target, settings, metrics.observe, notes)
        stack.callback(prober.close)
        server = None
        if target.reach:
            server = ServerProbe(
                target.reach, lead_s(settings) / 3, notes
            )  # one slow answer leaves time for the others
            stack.callback(server.close)
            server.ask()  # so that its connection stands when the first interval ends
        prober.start()
        loop = Loop(settings, store, alerts, prober, server, notes)
        renewal = Renewal(options.folder, settings.every_s, notes)

        def told(event: Event) -> None:
            say("")
            echo(event_line(event))
            notifier.tell(event)

        def shown(recent: Sequence[Tick], standing: Sequence[Event]) -> None:
            say(status_line(loop.seconds, figures(recent, about.kinds, None), standing))
            metrics.update(recent[-1], standing)
            sent.update({name: probe.sent for name, probe in recent[-1].probes.items()})
            renewal.due(recent[-1].t)

        loop.on_event.append(told)
        loop.on_tick.append(shown)
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
    """In the audit of what perfkit did not start: what is sent there again and again, and how often it was."""
    sent: Counter[str] = Counter()
    if not plan.live:
        yield sent
        return
    has_record = time.monotonic()
    texts = [
        target.text(name) if isinstance(item, Query) else f"{item.method} {item.path}"
        for name, item in plan.items.items()
    ]
    own = [f"perfkit: sql/catalog/{name}.sql" for name in QUERIES] if target.reach else []
    audit.load(plan.name, "watch", target.arm.name, [*texts, *own], None, 0.0)
    yield sent
    with suppress(BundleError):  # of a full disk; the watch's own record says so too
        audit.load(plan.name, "watch", target.arm.name, texts, sent.total(), time.monotonic() - has_record)


def _about(config: Config, plan: ProbePlan) -> About:
    """What the folder says of the watch."""
    settings = {
        "watch": config.watch.model_dump(mode="json"),
        "review": config.review.model_dump(mode="json"),
    }
    kinds: dict[str, Kind] = {
        name: "query" if isinstance(item, Query) else "request" for name, item in plan.items.items()
    }
    began, every_s, rate = round(time.time(), 3), config.watch.every_s, config.watch.rate
    return About(secrets.token_hex(4), config.title, plan.name, began, every_s, kinds, rate, settings)

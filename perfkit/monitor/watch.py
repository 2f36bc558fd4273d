"""A watch from its beginning to its end: what is watched, whoever is told, and the loop in between."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from perfkit.config import Config, Query, Watch
from perfkit.config.load import mistakes
from perfkit.errors import BundleError, Interrupted, UsageError
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.figures import figures
from perfkit.monitor.loop import Loop, Notes, lead_s, stopping
from perfkit.monitor.metrics import Metrics, endpoint
from perfkit.monitor.model import METRICS, About, Event, Kind, Tick
from perfkit.monitor.notify import Notifier, require_program
from perfkit.monitor.prober import Prober
from perfkit.monitor.renewal import Renewal, last_page
from perfkit.monitor.server import QUERIES, ServerProbe
from perfkit.monitor.store import Store, read
from perfkit.monitor.target import ProbePlan, WatchedTarget, opened, planned
from perfkit.monitor.terminal import Ended, line, status

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


def settled(watch: Watch, every_s: float = 0.0, rate: float = 0.0, notify: Sequence[str] = ()) -> Watch:
    """The settings with what the command line gave in place of the file's; 0 and nothing for the file's own.

    Raises UsageError for what cannot be meant.
    """
    given = {"every_s": every_s, "rate": rate, "notify": tuple(notify)}
    changed = {name: value for name, value in given.items() if value}
    try:
        return Watch.model_validate({**watch.model_dump(), **changed})
    except ValidationError as error:
        raise UsageError(mistakes("watch", error)) from None


def watch(config: Config, permission: Permission, options: WatchSpec, say: Say, echo: Say) -> Ended:
    """Watch for so long, into a new folder or one that is gone on with. `say` rewrites a line, `echo` prints one.

    Raises PerfkitError: UsageError, TargetRefused, ServerError for what perfkit cannot start; Interrupted.
    """
    require_program(config.watch.notify)
    endpoint(options.metrics or "0")  # what is wrong shows before anything is started
    say, echo = _surviving(say), _surviving(echo)
    plan = planned(config, permission, options.arm, options.scale)
    store = Store.open(options.folder, _about(config, plan))
    try:
        alerts = Alerts(config.watch, store.about, read(options.folder) if store.last else None)
        audit = Audit(options.folder / "audit.jsonl")
        with opened(plan, audit, say) as target, _audited(plan, target, audit) as sent:
            whole = _watched(config, target, store, alerts, options, say, echo, sent)
    finally:
        store.close()
        if begun(options.folder):
            say("writing the dashboard")
            last_page(options.folder)  # now that nobody watches, which it says
            say("")
    record = read(options.folder)
    ended = Ended.of(options.folder, record, figures(record.ticks, record.about.kinds, None), alerts.open)
    if not whole:
        raise Interrupted(f"stopped; {ended}")
    return ended


def begun(folder: Path) -> bool:
    """Whether anything was recorded there."""
    ticks = folder / "ticks.jsonl"
    return ticks.exists() and ticks.stat().st_size > 0


def printed(text: str) -> None:
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
            echo(line(event))
            notifier.tell(event)

        def shown(recent: Sequence[Tick], standing: Sequence[Event]) -> None:
            say(status(loop.seconds, figures(recent, about.kinds, None), standing))
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
    begun = time.monotonic()
    texts = [
        target.text(name) if isinstance(item, Query) else f"{item.method} {item.path}"
        for name, item in plan.items.items()
    ]
    own = [f"perfkit: sql/catalog/{name}.sql" for name in QUERIES] if target.reach else []
    audit.load(plan.name, "watch", target.arm.name, [*texts, *own], None, 0.0)
    yield sent
    with suppress(BundleError):  # of a full disk; the watch's own record says so too
        audit.load(plan.name, "watch", target.arm.name, texts, sent.total(), time.monotonic() - begun)


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

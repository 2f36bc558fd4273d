"""Made-up watches of the booking system: quiet hours with the noise of a real service, and incidents put into them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from perfkit import config
from perfkit.config import Config
from perfkit.monitor.model import OK, About, Event, Probe, Record, Tick

BEGAN = 1768467600.0  # 2026-01-15 09:00:00 UTC
MEDIAN_MS = {"book": 190.0, "upcoming": 120.0, "conflict_check": 12.0}
SPREAD = 0.3  # of the logarithms of latencies
REQUESTS = ("book", "upcoming")
TIMEOUT_S = 5.0

Incident = Literal[
    "service-down",
    "database-down",
    "hang",
    "slow",
    "errors",
    "throughput-drop",
    "lock",
    "corruption",
    "degrading",
    "long-transaction",
    "invalid-index",
]


def about(booking: Config | None = None, every_s: float = 10.0, rate: float = 2.0, title: str = "") -> About:
    """What `watch.json` would say of a watch of the booking system."""
    booking = booking or config.load()
    return About(
        id="w1",
        title=title or booking.title,
        target="service http://127.0.0.1:8080, database booking",
        began=BEGAN,
        every_s=every_s,
        kinds={"book": "request", "upcoming": "request", "conflict_check": "query"},
        rate=rate,
        settings={"watch": booking.watch.model_dump(mode="json"), "review": booking.review.model_dump(mode="json")},
    )


def record(ticks: Sequence[Tick], events: Sequence[Event] = (), booking: Config | None = None) -> Record:
    """A watch as it is read back."""
    return Record(about(booking), list(ticks), list(events))


def quiet(hours: float = 1.0, seed: int = 1, every_s: float = 10.0, rate: float = 2.0, t0: float = 0.0) -> list[Tick]:
    """Nothing happens: lognormal latencies under a daily wave, a slow sample in 500, a failed probe in 100,000."""
    random, per = np.random.default_rng(seed), max(1, round(rate * every_s))
    count = round(hours * 3600 / every_s)
    wave = 1 + 0.2 * np.sin(2 * np.pi * (t0 + every_s * np.arange(count)) / 86400)
    ms = np.exp(random.normal(0, SPREAD, (count, len(MEDIAN_MS), per))) * wave[:, None, None]
    ms *= np.array(list(MEDIAN_MS.values()))[None, :, None]
    ms[random.random(ms.shape) < 1 / 500] += 700.0
    failed = random.random(ms.shape) < 1e-5
    taken = random.random((count, per)) < 0.005
    commits = np.cumsum(random.poisson(60 * wave * every_s))
    ticks = []
    for n in range(count):
        t = t0 + (n + 1) * every_s
        probes = {}
        for i, name in enumerate(MEDIAN_MS):
            conflicts = int((taken[n] & ~failed[n, i]).sum()) if name == "book" else 0
            probes[name] = _probe(name, ms[n, i][~failed[n, i]], {"timeout": int(failed[n, i].sum())}, conflicts)
        ticks.append(Tick(round(t / every_s) - 1, t, BEGAN + t, every_s, probes, _server(int(commits[n]), wave[n]), {}))
    return ticks


def with_incident(
    ticks: Sequence[Tick], kind: Incident, start: float, seconds: float, size: float | None = None
) -> list[Tick]:
    """The same with something happening from `start` on the time line for so many seconds.

    `size`: of `slow` the p95 of all requests in ms (650), of `errors` the share that fails (0.02, evenly spaced, the
    first at once), of `throughput-drop` the share of probes that do not end (0.5), of `degrading` the factor on every
    latency (2.5), of `corruption` and `invalid-index` how many (1). `lock` and `long-transaction` show in the server's
    figures alone, as long as they last; `hang` leaves every request without an answer.
    """
    debt = {"owed": 1.0}
    factor = _factor(ticks, start, start + seconds, size or 650.0) if kind == "slow" else size or 2.5
    out = []
    for tick in ticks:
        inside = _inside(tick, start, start + seconds)
        late = tick.t > start and kind == "corruption"  # a counter so far stays where it is
        if not inside.any() and not late and not (kind == "hang" and start < tick.t <= start + seconds + TIMEOUT_S):
            out.append(tick)
            continue
        new = tick
        match kind:
            case "service-down":
                new = _failing(tick, inside, REQUESTS, "refused")
            case "database-down":
                new = _failing(tick, inside, tuple(tick.probes), "refused")
                new = replace(new, server=None) if inside[-1] else new
            case "hang":
                new = _hanging(tick, start, start + seconds)
            case "slow" | "degrading":
                new = _scaled(tick, inside, factor, REQUESTS if kind == "slow" else tuple(tick.probes))
            case "errors":
                new = _erring(tick, inside, 0.02 if size is None else size, debt)
            case "throughput-drop":
                new = _missing(tick, inside, 0.5 if size is None else size)
            case "corruption":
                new = _said(tick, checksum_failures=size or 1)
            case "invalid-index":
                new = _said(tick, invalid_indexes=size or 1) if inside[-1] else tick
            case "lock":
                held = tick.t - start
                new = _said(tick, lock_wait_s=held, waiting=2, transaction_s=held) if inside[-1] else tick
            case "long-transaction":
                new = _said(tick, transaction_s=tick.t - start, idle_in_transaction=1) if inside[-1] else tick
        out.append(new)
    return out


def without(ticks: Sequence[Tick], start: float, end: float) -> list[Tick]:
    """The same with nobody watching from `start` to `end`: intervals that touch this stretch are gone."""
    return [tick for tick in ticks if tick.t <= start or tick.start >= end]


def _server(commits: int, wave: float) -> Mapping[str, float]:
    return {
        "started": BEGAN - 3600,
        "connections": round(12 * wave),
        "connections_max": 100,
        "active": 2,
        "waiting": 0,
        "lock_wait_s": 0.0,
        "idle_in_transaction": 0,
        "transaction_s": 0.1,
        "commits": commits,
        "rollbacks": commits // 400,
        "blocks_hit": commits * 40,
        "blocks_read": commits // 10,
        "temp_bytes": 0,
        "wal_bytes": commits * 900,
        "deadlocks": 0,
        "checksum_failures": 0,
        "invalid_indexes": 0,
        "locks_held": 6,
    }


def _probe(name: str, ms: "np.ndarray[tuple[int], np.dtype[np.float64]]", failed: dict[str, int], taken: int) -> Probe:
    outcomes = {key: n for key, n in {OK: len(ms), **failed}.items() if n}
    statuses = {}
    if name in REQUESTS:
        good = "201" if name == "book" else "200"
        statuses = {key: n for key, n in {good: len(ms) - taken, "409": taken}.items() if n}
    return Probe(outcomes, statuses, tuple(np.round(ms, 3).tolist()))


def _inside(tick: Tick, start: float, end: float) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which of an interval's probes, evenly spaced, were due in a stretch of time."""
    per = max((probe.sent for probe in tick.probes.values()), default=1) or 1
    due = tick.start + (np.arange(per) + 0.5) * tick.seconds / per
    return (due >= start) & (due < end)


def _with(tick: Tick, **probes: Probe) -> Tick:
    return replace(tick, probes={**tick.probes, **probes})


def _failing(
    tick: Tick, inside: "np.ndarray[tuple[int], np.dtype[np.bool_]]", names: Sequence[str], outcome: str
) -> Tick:
    new = {}
    for name in names:
        probe, kept = tick.probes[name], ~inside
        ms = np.array(probe.ms)[kept[: len(probe.ms)]]
        new[name] = _probe(name, ms, {outcome: probe.sent - len(ms)}, 0)
    return _with(tick, **new)


def _hanging(tick: Tick, start: float, end: float) -> Tick:
    """Requests due while it hangs end `TIMEOUT_S` later, without an answer."""
    new = {}
    for name in REQUESTS:
        probe, per = tick.probes[name], tick.probes[name].sent
        gap = tick.seconds / per
        due = tick.start - TIMEOUT_S + (np.arange(round(per + TIMEOUT_S / gap)) + 0.5) * gap
        hung = due[(due >= start) & (due < end)]
        ended = int((hung + TIMEOUT_S <= tick.t).sum())
        waiting = hung[hung + TIMEOUT_S > tick.t]
        answered = np.array(probe.ms)[~_inside(tick, start, end)[: len(probe.ms)]]
        made = _probe(name, answered, {"timeout": ended}, 0)
        oldest = float(tick.t - waiting[0]) if len(waiting) else 0.0
        new[name] = replace(made, pending=len(waiting), oldest_s=oldest)
    return _with(tick, **new)


def _factor(ticks: Sequence[Tick], start: float, end: float, p95_ms: float) -> float:
    within = [tick for tick in ticks if start < tick.t and tick.start < end]
    samples = [value for tick in within for name in REQUESTS for value in tick.probes[name].ms]
    return p95_ms / float(np.percentile(samples, 95))


def _scaled(
    tick: Tick, inside: "np.ndarray[tuple[int], np.dtype[np.bool_]]", factor: float, names: Sequence[str]
) -> Tick:
    new = {}
    for name in names:
        ms = np.array(tick.probes[name].ms)
        ms[inside[: len(ms)]] *= factor
        new[name] = replace(tick.probes[name], ms=tuple(np.round(ms, 3).tolist()))
    return _with(tick, **new)


def _erring(
    tick: Tick, inside: "np.ndarray[tuple[int], np.dtype[np.bool_]]", rate: float, debt: dict[str, float]
) -> Tick:
    new = {}
    for name in REQUESTS:
        probe = tick.probes[name]
        kept = np.ones(len(probe.ms), dtype=bool)
        for i in np.flatnonzero(inside[: len(probe.ms)]):
            kept[i] = debt["owed"] < 1
            debt["owed"] += rate - (not kept[i])
        new[name] = _probe(name, np.array(probe.ms)[kept], {"status_500": int((~kept).sum())}, 0)
        new[name] = replace(new[name], statuses={**new[name].statuses, "500": int((~kept).sum())})
    return _with(tick, **new)


def _missing(tick: Tick, inside: "np.ndarray[tuple[int], np.dtype[np.bool_]]", share: float) -> Tick:
    new = {}
    for name in REQUESTS:
        probe = tick.probes[name]
        gone = np.flatnonzero(inside[: len(probe.ms)])
        kept = np.delete(np.array(probe.ms), gone[: round(share * len(gone))])
        new[name] = replace(_probe(name, kept, {}, 0), pending=probe.sent - len(kept), oldest_s=1.0)
    return _with(tick, **new)


def _said(tick: Tick, **figures: float) -> Tick:
    return replace(tick, server={**(tick.server or {}), **figures})

"""The pool of load workers: targets, the processes, a round's samples, and the number of workers that helps.

A load worker is a process of its own (`worker`), so that neither a notebook's kernel nor this process disturbs the
times. The parent only waits while a batch runs. Users are dealt to the workers like cards, so that a burst is spread
over all of them.
"""

from __future__ import annotations

import json
import math
import select
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import monotonic, monotonic_ns
from typing import IO, TYPE_CHECKING, Any, Self

from perfkit.base.errors import LoadError, TargetRefused
from perfkit.base.process import MODULE, spawn, stop
from perfkit.base.stats import percentile
from perfkit.load.samples import DROPPED, OK, Caps, Rest, RestRecord, Samples, faults, merged
from perfkit.load.schedule import (
    AlternatingTarget,
    Arrivals,
    Batch,
    Hand,
    HttpOptions,
    HttpTarget,
    Message,
    SqlOptions,
    SqlTarget,
    Target,
)

if TYPE_CHECKING:  # what needs only the pool, such as the watch, does not load the models of a configuration
    from perfkit.config import Limits, RateSearch, Thresholds

WATCH_S = 0.5  # between two calls of the pool's `watch`
SAMPLES = 100_000  # requests of a round whose times are kept; those beyond are counted in histograms
PER_WORKER = 1000  # arrivals per second that a single worker sends without lag
LEAD_NS = 3_000_000  # from the command to the release, so that every worker is already waiting at the release
TRIES = 5  # bursts by each number of workers in a calibration
TOLERANCE = 1.1  # times the fastest median: fewer processes leave more of the machine to the server


def http_target(
    base: str, timeout_s: float, warm: str | None = None, *, address: str = "", limits: Caps | None = None
) -> HttpTarget:
    """Describe an HTTP service; `warm` is a path that each connection fetches once before the clock runs.

    With an `address`, every connection goes there, whatever the host name resolves to by then.
    """
    options: HttpOptions = {"base": base, "timeout_s": timeout_s, "warm": warm, "address": address}
    return {"kind": "http", "options": options, "limits": limits, "pinned": False}


def sql_target(
    conninfo: str,
    timeout_s: float,
    statement_timeout_s: float,
    *,
    pooler: bool = False,
    read_only: bool = False,
    settings: Mapping[str, str] | None = None,
    limits: Caps | None = None,
    retries: int = 0,
    connections: int | None = None,
    pinned: bool = False,
) -> SqlTarget:
    """Describe a PostgreSQL database, with one connection for each user.

    Behind a `pooler`, no settings and no prepared statements are used, because nothing belongs to a session there.
    A statement that fails with a conflict is sent again up to `retries` times. With fewer `connections` than users,
    users wait for a free connection. `pinned` is for a single user of a server that perfkit started on this machine,
    see `samples.pin_to_processors`.
    """
    required = {"statement_timeout": str(int(statement_timeout_s * 1000)), "standard_conforming_strings": "on"}
    session = {**(settings or {}), **required}
    if read_only:
        session["default_transaction_read_only"] = "on"
    options: SqlOptions = {
        "conninfo": conninfo,
        "timeout_s": min(timeout_s, statement_timeout_s) if pooler else timeout_s,
        "session": {} if pooler else session,
        "prepare": not pooler,
        "retries": retries,
        "connections": connections or 0,
    }
    return {"kind": "sql", "options": options, "limits": limits, "pinned": pinned}


def alternating_target(targets: Mapping[str, SqlTarget]) -> AlternatingTarget:
    """Describe several databases, with a connection to each; the key `arm` of a message names its database."""
    options = {name: target["options"] for name, target in targets.items()}
    first = next(iter(targets.values()))
    return {"kind": "alternating", "options": options, "limits": first["limits"], "pinned": first["pinned"]}


@dataclass(frozen=True, slots=True)
class Load:
    """The samples of a round, column by column (ns from each batch's release), and the health of the client."""

    columns: Samples
    health: dict[str, float]
    bodies: list[str]
    rest: dict[str, Rest] = field(default_factory=dict)  # requests whose times are not kept

    def counts(self) -> Counter[tuple[str, str]]:
        """Return the number of requests by item and outcome, including those whose times are not kept."""
        counts = Counter(zip(self.columns.item, self.columns.outcome, strict=True))
        for item, rest in self.rest.items():
            counts.update({(item, outcome): count for outcome, count in rest.outcomes.items()})
        return counts


class WorkerPool:
    """A fixed number of load worker processes, reused round after round.

    `watch` is called about twice a second while the pool waits; an exception from it ends the round and the pool.
    """

    def __init__(self, size: int, watch: Callable[[], None] = lambda: None) -> None:
        self._watch = watch
        self._workers = [_Worker() for _ in range(size)]
        self._sent: Counter[str] = Counter()  # requests by budget

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._workers)

    def shrink(self, size: int) -> None:
        """End all workers beyond the first `size`."""
        for worker in self._workers[size:]:
            worker.close()
        del self._workers[size:]

    def close(self) -> None:
        """End every worker at once, busy or not."""
        for worker in self._workers:
            worker.close()

    def run(
        self,
        target: Target,
        batches: Sequence[Batch | Arrivals],
        *,
        keep_bodies: bool = False,
        samples: int = SAMPLES,
        workers: int = 0,
    ) -> Load:
        """Connect, send the batches one after another, disconnect; return the round's samples.

        The times of up to `samples` requests are kept. At most `workers` workers take part (0: all that are needed).
        Raises LoadError if a worker fails, TargetRefused if a limit of the target stopped the load. A pool whose
        round was broken off cannot be used again.
        """
        users = max(batch.users for batch in batches)
        limits = target["limits"] or Caps()
        left = limits.left(self._sent[limits.budget])
        paced = [math.ceil(batch.peak / PER_WORKER) for batch in batches if isinstance(batch, Arrivals)]
        connections = (target["options"]["connections"] if target["kind"] == "sql" else 0) or users
        used = self._workers[: min(limits.workers(users), workers or len(self), connections, *paced)]
        opens = []
        for number in range(len(used)):
            limited = asdict(left.share(number, len(used))) if target["limits"] else None
            most = {"connections": len(range(number, connections, len(used)))} if connections < users else {}
            share = {**target, "limits": limited, "options": {**target["options"], **most}}
            opens.append({"do": "open", "target": share, "users": len(range(number, users, len(used)))})
        try:
            self._ask(used, opens, timeout_s=60 + (users / limits.rate if limits.rate else 0))
            parts = [self._release(used, batch, keep_bodies, samples) for batch in batches]
            closed = self._ask(used, [{"do": "close"}] * len(used), timeout_s=30)
            self._sent[limits.budget] += sum(answer["sent"] for answer in closed)
        except BaseException:
            self.close()
            raise
        return _merge(batches, parts)

    def _release(
        self, used: Sequence[_Worker], batch: Batch | Arrivals, keep_bodies: bool, samples: int
    ) -> list[_Answer]:
        """Deal a batch to the workers, and release all of them at one instant."""
        hands = _dealt(batch, len(used), samples)
        busy = [worker for worker, hand in zip(used, hands, strict=True) if hand]
        self._ask(busy, [{"do": "arm", "batch": vars(hand)} for hand in hands if hand], timeout_s=60)
        go = {"do": "go", "at": monotonic_ns() + LEAD_NS, "keep_body": keep_bodies}
        timeout_s = 3600 + (batch.lasts_s if isinstance(batch, Arrivals) else 0)
        answers = self._ask(busy, [go] * len(busy), timeout_s=timeout_s)
        if reason := next((answer["stopped"] for answer in answers if answer["stopped"]), ""):
            raise TargetRefused(f"{reason}; nothing more was sent")
        return [_Answer.of(answer) for answer in answers]

    def _ask(
        self, workers: Sequence[_Worker], commands: Sequence[Mapping[str, object]], *, timeout_s: float
    ) -> list[dict[str, Any]]:
        """Send each worker its command, then wait for all answers."""
        for worker, command in zip(workers, commands, strict=True):
            worker.send(command)
        deadline = monotonic() + timeout_s
        return [worker.receive(deadline, self._watch) for worker in workers]


@dataclass(slots=True)
class _Answer:
    """One worker's part of a batch."""

    columns: Samples
    rest: dict[str, Rest]
    health: dict[str, int]
    bodies: list[str]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        rest = {item: Rest.of(RestRecord(**record)) for item, record in answer["rest"].items()}
        return cls(Samples(**answer["columns"]), rest, answer["health"], answer["bodies"])


class _Worker:
    """One process and its two pipes."""

    def __init__(self) -> None:
        self._process = spawn([*MODULE, "perfkit.load.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, command: Mapping[str, object]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: the pipe of a closed pool
            raise LoadError("a load worker died; expected it to live through the run") from None

    def receive(self, deadline: float, watch: Callable[[], None]) -> dict[str, Any]:
        assert self._process.stdout
        ready: list[IO[bytes]] = []
        while not ready and monotonic() < deadline:
            ready, _, _ = select.select([self._process.stdout], [], [], WATCH_S)
            if not ready:
                watch()
        line = self._process.stdout.readline() if ready else b""
        if not line:
            state = "died" if ready else "did not answer in time"
            raise LoadError(f"a load worker {state}; expected it to live through the run")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise LoadError(answer["refused"])
        if "error" in answer:
            raise LoadError(f"a load worker failed: {answer['error']}")
        return answer

    def close(self) -> None:
        stop(self._process)


def _dealt(batch: Batch | Arrivals, workers: int, samples: int) -> list[Hand | None]:
    """Return each worker's part of a batch, None if it has none: users dealt like cards, arrivals by their numbers."""
    most = max(1, samples // workers)
    if isinstance(batch, Batch):
        users = range(len(batch.queues))
        hands = [{str(user): batch.queues[user] for user in users[index::workers]} for index in range(workers)]
        return [Hand(min(sum(map(len, hand.values())), most), queues=hand) if hand else None for hand in hands]
    expected = batch.expected / workers
    size = int(min(samples / workers, expected + 10 * math.sqrt(expected) + 10))
    common = (batch.messages, batch.segments, batch.seed, workers)
    shares = [len(range(index, batch.users, workers)) for index in range(workers)]
    return [Hand(size, {}, *common, index, share) for index, share in enumerate(shares)]


def selected(load: Load, counted: Sequence[bool | None]) -> Load:
    """Return some samples of a load: `counted` states for each whether it counts, or None to leave it out."""
    columns = load.columns.selected([row for row, counts in enumerate(counted) if counts is not None])
    columns.counted = [counts for counts in counted if counts is not None]
    return replace(load, columns=columns, bodies=[])


def combined(loads: Sequence[Load], *, numbered: bool = True) -> Load:
    """Return several loads as one, with the worst health of any; batches are renumbered in sequence if `numbered`."""
    columns = Samples()
    for load in loads:
        first = max(columns.batch, default=-1) + 1 if numbered else 0
        columns.extend(replace(load.columns, batch=[batch + first for batch in load.columns.batch]))
    health = {name: max(load.health[name] for load in loads) for name in loads[0].health}
    for name in ("wall_ms", "cpu_ms"):
        health[name] = sum(load.health[name] for load in loads)
    rest = merged(load.rest for load in loads)
    return Load(columns, health, [body for load in loads for body in load.bodies], rest)


def _merge(batches: Sequence[Batch | Arrivals], parts: Sequence[list[_Answer]]) -> Load:
    """Concatenate the workers' samples; under a ramp, only requests that start at full concurrency count."""
    columns, bodies = Samples(), list[str]()
    for number, (batch, answers) in enumerate(zip(batches, parts, strict=True)):
        full_only = isinstance(batch, Batch) and batch.full_only
        full_until = _full_until([answer.columns for answer in answers]) if full_only else math.inf
        for answer in answers:
            answer.columns.batch = [number] * len(answer.columns)
            answer.columns.counted = [batch.counted and at <= full_until for at in answer.columns.started]
            columns.extend(answer.columns)
            bodies += answer.bodies
    rest = merged(a.rest for b, answers in zip(batches, parts, strict=True) if b.counted for a in answers)
    return Load(columns, _health(columns, parts), bodies, rest)


def _full_until(parts: Sequence[Samples]) -> float:
    """Return the instant (ns) at which the first user had nothing more to send."""
    last: dict[int, int] = {}
    for part in parts:
        for user, done in zip(part.user, part.done, strict=True):
            last[user] = max(last.get(user, 0), done)
    return min(last.values(), default=math.inf)


def lags_ms(lags_ns: Iterable[int]) -> dict[str, float]:
    """Return the part of a round's health that its schedule lags are."""
    lags = sorted(lags_ns) or [0]
    return {
        "lag_p50_ms": lags[len(lags) // 2] / 1e6,
        "lag_p99_ms": lags[min(len(lags) - 1, int(len(lags) * 0.99))] / 1e6,
    }


def _health(columns: Samples, parts: Sequence[list[_Answer]]) -> dict[str, float]:
    """Return the cost of the client itself: schedule lag, garbage collection, CPU (ms), the busiest worker's share."""
    rows = zip(columns.started, columns.scheduled, columns.outcome, strict=True)
    by_worker: dict[int, list[int]] = {}
    for answers in parts:
        for index, answer in enumerate(answers):
            totals = by_worker.setdefault(index, [0, 0])
            totals[0] += answer.health["cpu_ns"]
            totals[1] += answer.health["wall_ns"]
    return {
        **lags_ms(started - due for started, due, outcome in rows if outcome != DROPPED),
        "gc_ms": max(answer.health["gc_ns"] for answers in parts for answer in answers) / 1e6,
        "worker_cpu": max(cpu / max(wall, 1) for cpu, wall in by_worker.values()),
        "cpu_ms": sum(cpu for cpu, _ in by_worker.values()) / 1e6,
        "wall_ms": sum(max(answer.health["wall_ns"] for answer in answers) for answers in parts) / 1e6,
    }


@dataclass(frozen=True, slots=True)
class CalibrationTrial:
    """A number of workers, and the median response time of a burst at a target that does nothing, in ms."""

    workers: int
    p50_ms: float


def calibrate(pool: WorkerPool, target: Target, message: Message, users: int) -> tuple[CalibrationTrial, ...]:
    """Send bursts of `users` users by 1, 2, 4 ... workers, in turns; return the median over the tries of each."""
    numbers = [1 << power for power in range(len(pool).bit_length())]
    numbers = [number for number in numbers if number <= min(len(pool), users)]
    burst = [Batch(((message,),) * users, counted=False), Batch(((message, message),) * users)]
    medians: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(TRIES):
        for number in numbers:
            columns = pool.run(target, burst, workers=number).columns
            # All that count: without one answer the next step says what is wrong.
            counted = (row for row, counts in enumerate(columns.counted) if counts)
            medians[number].append(percentile(columns.times_ms(counted), 50))
    return tuple(CalibrationTrial(number, round(percentile(times, 50), 4)) for number, times in medians.items())


def fewest_workers(trials: Sequence[CalibrationTrial]) -> int:
    """Return the smallest number of workers that is nearly as fast as the fastest.

    >>> fewest_workers([CalibrationTrial(1, 4.0), CalibrationTrial(2, 2.1), CalibrationTrial(4, 2.0)])
    2
    """
    limit = TOLERANCE * min(trial.p50_ms for trial in trials)
    return min(trial.workers for trial in trials if trial.p50_ms <= limit)


# The search for the highest rate at which a target keeps the thresholds. Pure: the caller sends each step's load; a
# step is one round of the open model at a constant rate.


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A rate that was tried, per second; whether the thresholds held, and whether the client kept up."""

    rate: float
    held: bool
    healthy: bool = True


def next_rate(search: RateSearch, first: float, steps: Sequence[SearchStep]) -> float | None:
    """Return the rate of the next step, or None if the search is over.

    The rate grows by `growth` until a threshold breaks or `most` is reached. Then come `closer` geometric means of
    the highest rate that held and the lowest that broke. If the first rate broke, the next is below it.

    >>> from perfkit.config import RateSearch
    >>> search = RateSearch(most=100, growth=2, closer=1)
    >>> next_rate(search, 10, [SearchStep(10, True), SearchStep(20, True), SearchStep(40, False)])
    28.284271247461902
    """
    held, broke = highest_rate(steps), min((step.rate for step in steps if not step.held), default=math.inf)
    if not steps:
        return first
    if broke == math.inf:
        return min(held * search.growth, search.most) if held < search.most else None
    since = len(steps) - 1 - next(n for n, step in enumerate(steps) if not step.held)
    if since >= search.closer:
        return None
    return math.sqrt(held * broke) if held else broke / search.growth


def highest_rate(steps: Sequence[SearchStep]) -> float:
    """Return the highest rate that held, below every rate that broke; 0 if no rate held."""
    broke = min((step.rate for step in steps if not step.held), default=math.inf)
    return max((step.rate for step in steps if step.held and step.rate < broke), default=0.0)


def is_open_ended(search: RateSearch, steps: Sequence[SearchStep]) -> bool:
    """Return whether the target might sustain more: no rate broke, or the client failed at the lowest that did."""
    broke = [step for step in steps if not step.held]
    return not broke or not min(broke, key=lambda step: step.rate).healthy


def judge_step(rate: float, load: Load, thresholds: Thresholds, limits: Limits) -> SearchStep:
    """Judge a step by the thresholds; response times count from the instants at which requests were due."""
    columns, rests = load.columns, load.rest.values()
    served = columns.served()
    times = [*columns.times_ms(served), *(ms for rest in rests for ms in rest.values_ms(limits.samples))]
    sent = sum(columns.counted) + sum(rest.outcomes.total() for rest in rests)
    failed = sent - len(served) - sum(rest.outcomes[OK] for rest in rests)
    if not times:
        return SearchStep(rate, held=False)
    healthy = not faults(load.health, percentile(times, 50), limits)
    bounds = ((50, thresholds.p50_ms), (95, thresholds.p95_ms), (99, thresholds.p99_ms))
    in_time = all(limit is None or percentile(times, q) <= limit for q, limit in bounds)
    return SearchStep(rate, in_time and failed <= thresholds.error_rate * sent, healthy)


def combined_steps(loads: Sequence[Load], steps: Sequence[SearchStep], open_ended: bool) -> Load:
    """Return all steps as one round: `batch` is a step's number, and only requests at the highest rate count."""
    rate, parts = highest_rate(steps), []
    for number, (load, step) in enumerate(zip(loads, steps, strict=True)):
        best = step.rate == rate
        counted = [best and counts for counts in load.columns.counted]
        columns = replace(load.columns, counted=counted, batch=[number] * len(counted))
        parts.append(replace(load, columns=columns, rest=load.rest if best else {}))
    whole = combined(parts, numbered=False)
    return replace(whole, health={**whole.health, "rate": rate, "limited": float(open_ended)})

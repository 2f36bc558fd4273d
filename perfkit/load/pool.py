"""Load worker processes: what they send when, how many help, and the search for the highest rate.

Pure. A round is a sequence of batches. In the closed model a batch releases its users at one instant, and each
user sends its own requests one after the other; in the open model requests arrive at instants of their own. The
next batch starts when the last one is complete.

The parent only waits while a batch runs. Users are dealt to the workers like cards, so that a burst is
spread over all of them.
"""

from __future__ import annotations

import json
import math
import re
import select
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from time import monotonic, monotonic_ns
from typing import Any, Self
from urllib.parse import quote

from perfkit.base.bundle import COLUMNS
from perfkit.base.errors import LoadError, TargetRefused, UsageError
from perfkit.base.process import MODULE, spawn, stop
from perfkit.base.stats import percentile
from perfkit.config import Limits, RateSearch, Request, Scenario, Thresholds
from perfkit.load.arrivals import Segment
from perfkit.load.samples import DROPPED, OK, Caps, Rest, faults, merged

Row = Mapping[str, Any]
Message = dict[str, Any]  # one request as the workers take it
MESSAGES = 2000  # of each kind that a round in the open model goes round in
LEAST = 2  # requests of an arm's round where arms take turns
ALIKE = 4.0  # times as long as the fastest arm
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests by user, released at one instant.

    An uncounted batch only brings the load up; with `full_only`, requests that start after the first user has
    nothing more to send do not count either.
    """

    queues: tuple[tuple[Message, ...], ...]
    counted: bool = True
    full_only: bool = False

    @property
    def users(self) -> int:
        """Connections that it needs."""
        return len(self.queues)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of the open model: the messages in turn, at instants that segments and seed decide.

    Of `users` requests at most in flight; what arrives beyond that is dropped.
    """

    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    users: int
    seed: str | None  # of a Poisson process; None: evenly spaced
    counted: bool = True

    @property
    def lasts_s(self) -> float:
        """How long requests arrive, in s."""
        return sum(seconds for *_, seconds in self.segments)

    @property
    def expected(self) -> float:
        """How many requests arrive, on average."""
        return sum((first + last) / 2 * seconds for first, last, seconds in self.segments)

    @property
    def peak(self) -> float:
        """The highest rate, per second."""
        return max(max(first, last) for first, last, _ in self.segments)


class Draw:
    """Parameter rows without replacement, in an order that the seed alone decides.

    A source that runs out starts over: its rows have then been used equally often. `last_first` takes the
    same order from its end, so that two draws of one seed meet only when a source runs out.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], seed: str, *, last_first: bool = False) -> None:
        self._rows, self._seed, self._last_first = rows, seed, last_first
        self._streams: dict[str, Iterator[Row]] = {}

    def __call__(self, source: str) -> Row:
        """The next row of a source."""
        if source not in self._streams:
            self._streams[source] = self._stream(source)
        return next(self._streams[source])

    def _stream(self, source: str) -> Iterator[Row]:
        order = list(self._rows[source])
        Random(f"{self._seed}/{source}").shuffle(order)
        if self._last_first:
            order.reverse()
        while True:
            yield from order


def batches(scenario: Scenario, message: Callable[[str], Message], seed: str = "") -> list[Batch | Arrivals]:
    """The batches of one round. `message(name)` makes the next request or query of that name.

    The seed decides when requests of the open model arrive.
    """

    def queue(length: int) -> tuple[Message, ...]:
        return tuple(message(name) for _ in range(length) for name in scenario.send)

    sizes = range(1, scenario.users) if scenario.ramp else [scenario.users] * scenario.warm
    lead: list[Batch | Arrivals] = [Batch(tuple(queue(1) for _ in range(users)), counted=False) for users in sizes]
    if scenario.rate:
        return [*lead, arriving(scenario, message, seed)]
    full = [
        Batch(tuple(queue(scenario.requests) for _ in range(scenario.users)), full_only=scenario.ramp)
        for _ in range(scenario.batches)
    ]
    return lead + full


def arriving(scenario: Scenario, message: Callable[[str], Message], seed: str, rate: float | None = None) -> Arrivals:
    """The arrivals of one round, or of one step of a search at its `rate`."""
    segments, last = [], rate or scenario.rate or 0.0
    for own, seconds in [(last, scenario.seconds or 0.0), *((stage.rate, stage.seconds) for stage in scenario.stage)]:
        segments.append((last, own, seconds))
        last = own
    found = Arrivals((), tuple(segments), scenario.users, seed if scenario.arrivals == "poisson" else None)
    count = max(1, min(MESSAGES, math.ceil(found.expected / len(scenario.send))))
    return replace(found, messages=tuple(message(name) for _ in range(count) for name in scenario.send))


def turns(scenario: Scenario, took_ms: Mapping[str, float], draw: Random) -> list[tuple[str, int]]:
    """Which arm sends the request of which number, one after the other: each once for every number, in random order.

    Where a round would outlast `scenario.seconds`, arms sit out evenly, down to a few requests: those that take about
    as long as the fastest the same number of times, so that they are compared on the same requests.
    """
    most, limit = scenario.requests, 1000 * (scenario.seconds or math.inf)
    fastest = min([ms for ms in took_ms.values() if ms], default=0.0)
    own: dict[str, int] = {}
    for name, ms in took_ms.items():
        alike = fastest if ms <= ALIKE * fastest else ms
        own[name] = min(most, max(LEAST, int(min(most, limit / alike)))) if alike else most
    found: list[tuple[str, int]] = []
    for number in range(-scenario.warm, most):
        taking = [n for n, count in own.items() if (number + 1) * count // most > number * count // most]
        if number < 0:  # what takes long is long whether it comes first or not
            taking = [n for n, count in own.items() if count > LEAST]
        found += [(name, number + scenario.warm) for name in draw.sample(taking, len(taking))]
    return found


def http_message(request: Request, row: Row) -> Message:
    """One HTTP request with its placeholders filled from a parameter row.

    Raises UsageError naming a placeholder that the row has no column for.
    """
    try:
        path, body = fill(request.path, row, encode=True), fill(request.body, row)
        headers = {name: str(fill(value, row)) for name, value in request.headers.items()}
    except KeyError as error:
        raise UsageError(
            f"request '{request.name}': {{{error.args[0]}}} is no column of its parameters; "
            f"expected one of: {', '.join(row)}"
        ) from None
    if any(value.count("{env:") != request.headers[name].count("{env:") for name, value in headers.items()):
        raise UsageError(f"request '{request.name}': a parameter value names an environment variable; expected data")
    return {
        "item": request.name,
        "method": request.method,
        "path": path,
        "json": body,
        "headers": headers,
        "expect": list(request.expect),
        "contains": list(request.contains),
    }


def fill(template: Any, row: Row, *, encode: bool = False) -> Any:
    """Replace `{column}` in a template; text that is nothing but one placeholder keeps the value's type.

    Raises KeyError with the column that the row lacks.
    """
    if isinstance(template, dict):
        return {key: fill(value, row) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, row) for value in template]
    if not isinstance(template, str):
        return template
    if (whole := _PLACEHOLDER.fullmatch(template)) and not encode:
        return row[whole[1]]
    return _PLACEHOLDER.sub(lambda m: quote(str(row[m[1]]), safe="") if encode else str(row[m[1]]), template)


# The load workers as their parent sees them: open, release batch by batch, collect, close.

WATCH_S = 0.5
SAMPLES = 100_000
PER_WORKER = 1000  # arrivals per second that are no reason for another worker
LEAD_NS = 3_000_000  # from the go to the release: time for every worker to be waiting
Target = Mapping[str, Any]


def http_target(
    base: str, timeout_s: float, warm: str | None = None, *, address: str = "", limits: Caps | None = None
) -> Target:
    """An HTTP service; `warm` is a path that is fetched once for each connection before the clock runs.

    With `address`, every connection goes there, whatever the name resolves to by then.
    """
    options = {"base": base, "timeout_s": timeout_s, "warm": warm, "address": address}
    return {"kind": "http", "options": options, "limits": limits}


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
    apart: bool = False,
) -> Target:
    """A PostgreSQL database, one connection for each user; behind a `pooler` nothing belongs to a session.

    `retries` for statements that met a conflict; with fewer `connections` than users, these wait for one.
    `apart` is for one user of a server whose processes are this machine's and perfkit's own, see `processors`.
    """
    own = {"statement_timeout": str(int(statement_timeout_s * 1000)), "standard_conforming_strings": "on"}
    session = {**(settings or {}), **own}
    if read_only:
        session["default_transaction_read_only"] = "on"
    options = {
        "conninfo": conninfo,
        "timeout_s": min(timeout_s, statement_timeout_s) if pooler else timeout_s,
        "session": {} if pooler else session,
        "prepare": not pooler,
        "retries": retries,
        "connections": connections or 0,
    }
    return {"kind": "sql", "options": options, "limits": limits, "apart": apart}


def alternating_target(targets: Mapping[str, Target]) -> Target:
    """Several databases at once, a connection to each; a message names its own as `arm`."""
    options = {"targets": {name: target["options"] for name, target in targets.items()}}
    first = next(iter(targets.values()))
    return {"kind": "alternating", "options": options, "limits": first["limits"], "apart": first["apart"]}


@dataclass(frozen=True, slots=True)
class Load:
    """The samples of a round, column by column (ns from each batch's release), and its health."""

    columns: dict[str, list[Any]]
    health: dict[str, float]
    bodies: list[str]
    rest: dict[str, dict[str, Any]] = field(default_factory=dict)  # requests beyond the limit, see samples.Rest

    def counts(self) -> Counter[tuple[str, str]]:
        """Requests by item and outcome, those beyond the limit included."""
        found = Counter(zip(self.columns["item"], self.columns["outcome"], strict=True))
        for item, own in self.rest.items():
            found.update({(item, outcome): count for outcome, count in own["outcomes"].items()})
        return found


class WorkerPool:
    """A fixed number of load worker processes, reused round after round.

    `watch` is called about twice a second while the crew waits; what it raises ends the round and the crew.
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

    def keep(self, size: int) -> None:
        """Go on with so many workers, and end the others."""
        for worker in self._workers[size:]:
            worker.close()
        del self._workers[size:]

    def close(self) -> None:
        """End every worker, whatever it is doing."""
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
        """Connect, send the batches one after another, disconnect; returns every time of up to `samples` requests.

        All workers take part that have something to do, or at most so many `workers`. Raises LoadError when one
        fails as such. A crew whose round was broken off cannot be used again.
        """
        users = max(batch.users for batch in batches)
        limits: Caps = target["limits"] or Caps()
        left = limits.left(self._sent[limits.budget])
        paced = [math.ceil(batch.peak / PER_WORKER) for batch in batches if isinstance(batch, Arrivals)]
        connections = target["options"].get("connections") or users
        used = self._workers[: min(limits.workers(users), workers or len(self), connections, *paced)]
        opens = []
        for number in range(len(used)):
            own = dict(target)
            own["limits"] = asdict(left.share(number, len(used))) if target["limits"] else None
            if connections < users:
                own["options"] = target["options"] | {"connections": len(range(number, connections, len(used)))}
            opens.append({"do": "open", "target": own, "users": len(range(number, users, len(used)))})
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
    ) -> list[dict[str, Any]]:
        """Deal a batch to the workers, and let all of them go at one instant."""
        hands = _dealt(batch, len(used), samples)
        busy = [worker for worker, hand in zip(used, hands, strict=True) if hand]
        self._ask(busy, [{"do": "arm", **hand} for hand in hands if hand], timeout_s=60)
        go = {"do": "go", "at": monotonic_ns() + LEAD_NS, "keep_body": keep_bodies}
        patience_s = 3600 + (batch.lasts_s if isinstance(batch, Arrivals) else 0)
        answers = self._ask(busy, [go] * len(busy), timeout_s=patience_s)
        if reason := next((answer["stopped"] for answer in answers if answer.get("stopped")), ""):
            raise TargetRefused(f"{reason}; nothing more was sent")
        return answers

    def _ask(
        self, workers: Sequence[_Worker], commands: Sequence[Mapping[str, Any]], *, timeout_s: float
    ) -> list[dict[str, Any]]:
        """Tell each worker its command, then wait for all answers."""
        for worker, command in zip(workers, commands, strict=True):
            worker.tell(command)
        deadline = monotonic() + timeout_s
        return [worker.hear(deadline, self._watch) for worker in workers]


class _Worker:
    """One process and its two pipes."""

    def __init__(self) -> None:
        self._process = spawn([*MODULE, "perfkit.load.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: the pipe of a closed crew
            raise LoadError("a load worker died; expected it to live through the run") from None

    def hear(self, deadline: float, watch: Callable[[], None]) -> dict[str, Any]:
        assert self._process.stdout
        ready: list[Any] = []
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


def _dealt(batch: Batch | Arrivals, workers: int, samples: int) -> list[dict[str, Any] | None]:
    """Each worker's part of a batch; None where it has none. Users are dealt like cards, arrivals by their numbers."""
    if isinstance(batch, Batch):
        users = range(len(batch.queues))
        hands = [{user: batch.queues[user] for user in users[index::workers]} for index in range(workers)]
        sizes = [sum(map(len, hand.values())) for hand in hands]
        most = max(1, samples // workers)
        return [
            {"queues": hand, "samples": min(size, most)} if hand else None
            for hand, size in zip(hands, sizes, strict=True)
        ]
    expected = batch.expected / workers
    common = {
        "messages": batch.messages,
        "segments": batch.segments,
        "seed": batch.seed,
        "poisson": batch.seed is not None,
        "samples": int(min(samples / workers, expected + 10 * math.sqrt(expected) + 10)),
        "parts": workers,
    }
    shares = [len(range(index, batch.users, workers)) for index in range(workers)]
    return [{**common, "part": index, "in_flight": share} for index, share in enumerate(shares)]


def part(load: Load, counted: Sequence[bool | None]) -> Load:
    """Those samples of a load for which `counted` says whether they count; None leaves one out."""
    kept = [index for index, own in enumerate(counted) if own is not None]
    columns = {name: [values[index] for index in kept] for name, values in load.columns.items()}
    return replace(load, columns={**columns, "counted": [bool(counted[index]) for index in kept]}, bodies=[])


def joined(loads: Sequence[Load], *, numbered: bool = True) -> Load:
    """Several loads as one: the worst health; batches numbered on, unless they have their numbers."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for load in loads:
        first = max(columns["batch"], default=-1) + 1 if numbered else 0
        for name, values in load.columns.items():
            columns[name] += [value + first for value in values] if name == "batch" else values
    health = {name: max(load.health[name] for load in loads) for name in loads[0].health}
    for name in ("wall_ms", "cpu_ms"):
        health[name] = sum(load.health[name] for load in loads)
    rest = merged(load.rest for load in loads)
    return Load(columns, health, [body for load in loads for body in load.bodies], rest)


def _merge(batches: Sequence[Batch | Arrivals], parts: Sequence[list[dict[str, Any]]]) -> Load:
    """Put the workers' columns together; only requests begun at full concurrency count under a ramp."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    bodies: list[str] = []
    for number, (batch, answers) in enumerate(zip(batches, parts, strict=True)):
        own = [answer["columns"] for answer in answers if answer["columns"]["item"]]
        full_until = _full_until(own) if isinstance(batch, Batch) and batch.full_only else None
        for part in own:
            size = len(part["item"])
            columns["batch"] += [number] * size
            columns["counted"] += [
                batch.counted and (full_until is None or started <= full_until) for started in part["started"]
            ]
            for name in COLUMNS:
                if name in part:
                    columns[name] += part[name]
            bodies += part.get("body", [])
    rest = merged(a["rest"] for b, answers in zip(batches, parts, strict=True) if b.counted for a in answers)
    return Load(columns, _health(columns, parts), bodies, rest)


def _full_until(parts: Sequence[Mapping[str, list[Any]]]) -> int:
    """The instant (ns) at which the first user had nothing more to send."""
    last: dict[int, int] = {}
    for part in parts:
        for user, done in zip(part["user"], part["done"], strict=True):
            last[user] = max(last.get(user, 0), done)
    return min(last.values())


def _health(columns: Mapping[str, list[Any]], parts: Sequence[list[dict[str, Any]]]) -> dict[str, float]:
    """What the client itself cost: schedule lag, collecting garbage and CPU in ms, the busiest worker's share."""
    rows = zip(columns["started"], columns["scheduled"], columns["outcome"], strict=True)
    lags = sorted(started - due for started, due, outcome in rows if outcome != DROPPED) or [0]
    by_worker: dict[int, list[int]] = {}
    for answers in parts:
        for index, answer in enumerate(answers):
            totals = by_worker.setdefault(index, [0, 0])
            totals[0] += answer["health"]["cpu_ns"]
            totals[1] += answer["health"]["wall_ns"]
    return {
        "lag_p50_ms": lags[len(lags) // 2] / 1e6,
        "lag_p99_ms": lags[min(len(lags) - 1, int(len(lags) * 0.99))] / 1e6,
        "gc_ms": max(answer["health"]["gc_ns"] for answers in parts for answer in answers) / 1e6,
        "worker_cpu": max(cpu / max(wall, 1) for cpu, wall in by_worker.values()),
        "cpu_ms": sum(cpu for cpu, _ in by_worker.values()) / 1e6,
        "wall_ms": sum(max(a["health"]["wall_ns"] for a in answers) for answers in parts) / 1e6,
    }


# How many worker processes this machine's client is fastest with: tried against what does nothing.

TRIES = 5
NEARLY = 1.1  # as fast: the fewer processes, the more of the machine is left to the server


@dataclass(frozen=True, slots=True)
class CalibrationTrial:
    """A number of workers, and the median of a burst to a target that does nothing, in ms."""

    workers: int
    p50_ms: float


def calibrate(crew: WorkerPool, target: Target, message: dict[str, Any], users: int) -> tuple[CalibrationTrial, ...]:
    """Bursts of so many users by 1, 2, 4 ... workers, taking turns; the median over the tries of each."""
    numbers = [1 << power for power in range(len(crew).bit_length())]
    numbers = [number for number in numbers if number <= min(len(crew), users)]
    burst = [Batch(((message,),) * users, counted=False), Batch(((message, message),) * users)]
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(TRIES):
        for number in numbers:
            columns = crew.run(target, burst, workers=number).columns
            rows = zip(columns["done"], columns["scheduled"], columns["counted"], strict=True)
            found[number].append(percentile([(done - due) / 1e6 for done, due, counted in rows if counted], 50))
    return tuple(CalibrationTrial(number, round(percentile(times, 50), 4)) for number, times in found.items())


def fewest(trials: Sequence[CalibrationTrial]) -> int:
    """The fewest workers that are nearly as fast as any.

    >>> fewest([CalibrationTrial(1, 4.0), CalibrationTrial(2, 2.1), CalibrationTrial(4, 2.0)])
    2
    """
    limit = NEARLY * min(trial.p50_ms for trial in trials)
    return min(trial.workers for trial in trials if trial.p50_ms <= limit)


# The highest rate that a target stands: which one to try next, and what the steps say together. Pure.


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A rate that was tried, per second; whether the thresholds held, and whether the client did."""

    rate: float
    held: bool
    healthy: bool = True


def following(search: RateSearch, first: float, steps: Sequence[SearchStep]) -> float | None:
    """The rate of the next step; None where the search is over.

    Up by `growth` until one breaks or `most` is reached, then `closer` times the geometric middle between the
    highest that held and the lowest that broke; below the first where even that broke.

    >>> search = RateSearch(most=100, growth=2, closer=1)
    >>> following(search, 10, [SearchStep(10, True), SearchStep(20, True), SearchStep(40, False)])
    28.284271247461902
    """
    held, broke = best(steps), min((step.rate for step in steps if not step.held), default=math.inf)
    if not steps:
        return first
    if broke == math.inf:
        return min(held * search.growth, search.most) if held < search.most else None
    since = len(steps) - 1 - next(n for n, step in enumerate(steps) if not step.held)
    if since >= search.closer:
        return None
    return math.sqrt(held * broke) if held else broke / search.growth


def best(steps: Sequence[SearchStep]) -> float:
    """The highest rate that held, below all that broke; 0 where none did."""
    broke = min((step.rate for step in steps if not step.held), default=math.inf)
    return max((step.rate for step in steps if step.held and step.rate < broke), default=0.0)


def limited(search: RateSearch, steps: Sequence[SearchStep]) -> bool:
    """Whether the target might stand more: no rate broke, or the lowest that did was the client's failure."""
    broke = [step for step in steps if not step.held]
    return not broke or not min(broke, key=lambda step: step.rate).healthy


def judged(rate: float, load: Load, thresholds: Thresholds, limits: Limits) -> SearchStep:
    """Whether a step's requests were answered as the thresholds want, counted from when they were due."""
    columns = load.columns
    counted = [i for i, own in enumerate(columns["counted"]) if own]
    rest = [Rest.of(own) for own in load.rest.values()]
    times = [(columns["done"][i] - columns["scheduled"][i]) / 1e6 for i in counted if columns["outcome"][i] == OK]
    for own in rest:
        times += own.values_ms(limits.samples)
    sent = len(counted) + sum(own.outcomes.total() for own in rest)
    failed = sent - sum(columns["outcome"][i] == OK for i in counted) - sum(own.outcomes[OK] for own in rest)
    if not times:
        return SearchStep(rate, held=False)
    healthy = not faults(load.health, percentile(times, 50), limits.model_dump())
    bounds = ((50, thresholds.p50_ms), (95, thresholds.p95_ms), (99, thresholds.p99_ms))
    in_time = all(limit is None or percentile(times, q) <= limit for q, limit in bounds)
    return SearchStep(rate, in_time and failed <= thresholds.error_rate * sent, healthy)


def stepped(loads: Sequence[Load], steps: Sequence[SearchStep], open_ended: bool) -> Load:
    """All steps as one round: `batch` is the step's number, and only the best one's requests count."""
    rate, parts = best(steps), []
    for number, (load, step) in enumerate(zip(loads, steps, strict=True)):
        columns, own = load.columns, step.rate == rate
        counted = [own and value for value in columns["counted"]]
        batch = [number] * len(counted)
        rest = load.rest if own else {}
        parts.append(replace(load, columns={**columns, "counted": counted, "batch": batch}, rest=rest))
    found = joined(parts, numbered=False)
    return replace(found, health={**found.health, "rate": rate, "limited": float(open_ended)})

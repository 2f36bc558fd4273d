"""The load workers as their parent sees them: open, release batch by batch, collect, close.

The parent only waits while a batch runs. Users are dealt to the workers like cards, so that a burst is
spread over all of them.
"""

from __future__ import annotations

import json
import math
import select
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import monotonic, monotonic_ns
from typing import Any, Self

from perfkit.bundle import COLUMNS
from perfkit.errors import LoadError, TargetRefused
from perfkit.load.limits import Caps
from perfkit.load.plan import Arrivals, Batch
from perfkit.load.samples import DROPPED, merged
from perfkit.process import MODULE, spawn, stop

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

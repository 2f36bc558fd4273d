"""A load worker process: takes requests from its parent, sends them when told, returns the samples.

One JSON object a line each way. `open` connects, `arm` takes a batch, `go` releases it at an absolute
instant of the monotonic clock that all workers share, `close` disconnects; end of input ends the worker.
Nothing is printed, logged or collected while a batch runs: what is there at the start is frozen, and garbage
is collected on `close` only.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from time import monotonic_ns, process_time_ns
from typing import Any

from perfkit.load.limits import Caps, Gate
from perfkit.load.senders import Answer, Sender, make
from perfkit.postgres.lifetime import run

SPIN_NS = 2_000_000  # the event loop's timers are no finer than a millisecond: sleep, then spin
COLUMNS = ("item", "user", "scheduled", "started", "acquired", "done", "outcome", "detail", "body")


class Worker:
    """The state of one worker between its parent's commands."""

    def __init__(self) -> None:
        self._sender: Sender | None = None
        self._queues: dict[str, list[dict[str, Any]]] = {}
        self._gate: Gate | None = None
        self._gates: dict[str, Gate] = {}  # by budget: a run's bounds outlive its rounds
        self._slots: asyncio.Semaphore | None = None

    async def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command and return the answer to the parent."""
        match command["do"]:
            case "open":
                self._sender = make(command["target"])
                self._bound(command["target"]["limits"])
                await self._sender.open(command["users"])
                if (warm := self._sender.warm) is not None:  # within the bounds, like any other request
                    self._sender.check(warm)
                    await asyncio.gather(*(self._send(warm, 0) for _ in range(command["users"])))
            case "arm":
                self._queues = command["queues"]
                for queue in self._queues.values():
                    for message in queue:
                        self._sender.check(message)  # type: ignore[union-attr]
            case "go":
                return await self._run(command["at"], keep_body=command["keep_body"])
            case "close":
                if self._sender is not None:
                    await self._sender.close()
                self._sender = None
                gc.collect()
                return {"sent": self._gate.sent if self._gate else 0}
        return {"ok": True}

    def _bound(self, limits: dict[str, Any] | None) -> None:
        """Keep to the target's bounds, where it has some."""
        self._gate = self._slots = None
        if limits:
            caps = Caps(**limits)
            self._gate = self._gates.setdefault(caps.budget, Gate(caps))
            self._gate.renew(caps)
            self._slots = asyncio.Semaphore(caps.in_flight) if caps.in_flight > 0 else None

    async def _run(self, at: int, *, keep_body: bool) -> dict[str, Any]:
        """Release every user at the instant `at`; returns columns with times in ns from it."""
        release = asyncio.Event()
        samples: list[tuple[Any, ...]] = []
        queues = self._queues.items()
        users = [asyncio.create_task(self._user(int(user), queue, at, release, samples)) for user, queue in queues]
        await asyncio.sleep(max(0, at - monotonic_ns() - SPIN_NS) / 1e9)
        while monotonic_ns() < at:
            pass
        cpu = process_time_ns()
        release.set()
        await asyncio.gather(*users)
        health = {"cpu_ns": process_time_ns() - cpu, "wall_ns": monotonic_ns() - at}
        columns = dict(zip(COLUMNS, map(list, zip(*samples, strict=True)), strict=True)) if samples else {}
        if not keep_body:
            columns.pop("body", None)
        return {"columns": columns, "health": health, "stopped": self._gate.reason if self._gate else ""}

    async def _user(
        self, user: int, queue: list[dict[str, Any]], at: int, release: asyncio.Event, samples: list[Any]
    ) -> None:
        """Send a user's requests one after the other; each is due when the one before it is done."""
        await release.wait()
        scheduled = at
        for message in queue:
            sent = await self._send(message, scheduled)
            if sent is None:
                return
            scheduled, started, answer = sent
            stamps = (scheduled - at, started - at, answer.acquired - at, answer.done - at)
            samples.append((message["item"], user, *stamps, answer.outcome, answer.detail, answer.body))
            scheduled = answer.done

    async def _send(self, message: dict[str, Any], scheduled: int) -> tuple[int, int, Answer] | None:
        """One request within the bounds: when it was due, when it was sent, the answer. None: it may not be sent."""
        if self._gate is not None:
            due = await self._let_through(self._gate, scheduled)
            if due is None:
                return None
            scheduled = due
        started = monotonic_ns()
        answer = await self._sender.send(message)  # type: ignore[union-attr]
        if self._gate is not None:
            self._gate.note(answer.outcome, (answer.done - started) / 1e6)
            if self._slots:
                self._slots.release()
        return scheduled, started, answer

    async def _let_through(self, gate: Gate, scheduled: int) -> int | None:
        """When the next request is due: waiting for a bound is not the target's slowness. None: never."""
        began = monotonic_ns()
        if self._slots:
            await self._slots.acquire()
        at = gate.admit(monotonic_ns())
        if at is not None and (wait := at - monotonic_ns()) > 0:
            await asyncio.sleep(wait / 1e9)
        if at is None or gate.reason:  # which may have come up meanwhile
            if self._slots:
                self._slots.release()
            return None
        return scheduled + max(0, monotonic_ns() - began)


async def serve() -> None:
    """Answer the parent's commands until its end of the pipe closes."""
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # what it would log is in the outcomes
    gc.collect()
    gc.freeze()
    gc.disable()
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    worker = Worker()
    while line := await reader.readline():
        try:
            answer = await worker.handle(json.loads(line))
        except (ValueError, ConnectionError) as error:  # of check() and open(): a sentence for the user
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    run(serve())

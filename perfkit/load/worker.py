"""A load worker process: receives requests from its parent, sends them on command, returns the samples.

Parent and worker exchange JSON objects, one a line. `open` connects, `arm` receives a batch, `go` releases the batch at
an absolute instant of the monotonic clock that all workers share, `close` disconnects; the end of the input ends the
worker. Nothing is printed or logged while a batch runs. Garbage is collected on `close`, and during a long batch twice
a minute, which is measured; the objects that exist at the start are frozen.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from time import monotonic_ns, process_time_ns
from typing import Any

from perfkit.base.process import run
from perfkit.load.samples import DROPPED, Answer, Caps, Clock, RateGate, SampleBuffer, pin_to_processors
from perfkit.load.schedule import Hand, Message, instants
from perfkit.load.senders import Sender, make

SWEEP_S = 30.0  # between two garbage collections in a long batch


class Worker:
    """The state of one worker between its parent's commands."""

    def __init__(self) -> None:
        self._sender: Sender | None = None
        self._batch = Hand(0)
        self._gate: RateGate | None = None
        self._gates: dict[str, RateGate] = {}  # by budget: the limits hold for a whole run, not for a round
        self._slots: asyncio.Semaphore | None = None
        self._in_flight = 0
        self._moved_back: Callable[[], None] | None = None  # undoes the pinning to processors

    async def handle(self, command: dict[str, Any]) -> dict[str, object]:
        """Carry out a command of the parent, which is JSON; return the answer."""
        match command["do"]:
            case "open":
                self._sender = make(command["target"])
                self._limit(Caps(**limits) if (limits := command["target"]["limits"]) else None)
                await self._sender.open(command["users"])
                if command["target"]["pinned"]:
                    self._moved_back = pin_to_processors(self._sender.pids)
                if (warm := self._sender.warm) is not None:  # within the limits, like any other request
                    self._sender.check(warm)
                    await asyncio.gather(*(self._send(warm, 0) for _ in range(command["users"])))
            case "arm":
                self._batch = Hand(**command["batch"])
                assert self._sender
                for message in chain(self._batch.messages, *self._batch.queues.values()):
                    self._sender.check(message)
            case "go":
                return await self._run(command["at"], keep_body=command["keep_body"])
            case "close":
                if self._moved_back:
                    self._moved_back()
                self._moved_back = None
                if self._sender is not None:
                    await self._sender.close()
                self._sender = None
                gc.collect()
                return {"sent": self._gate.sent if self._gate else 0}
        return {"ok": True}

    def _limit(self, caps: Caps | None) -> None:
        """Set up the limits of the target, if it has any."""
        self._gate = self._slots = None
        if caps:
            self._gate = self._gates.setdefault(caps.budget, RateGate(caps))
            self._gate.renew(caps)
            self._slots = asyncio.Semaphore(caps.in_flight) if caps.in_flight > 0 else None

    async def _run(self, at: int, *, keep_body: bool) -> dict[str, object]:
        """Release the batch at the instant `at`; return the columns, with times in ns from `at`."""
        samples, clock = SampleBuffer(self._batch.samples, at, keep_body=keep_body), Clock()
        try:
            async with _sweeping() as sweep:
                if self._batch.queues:
                    cpu = await self._closed(at, samples, clock)
                else:
                    cpu = await self._open(at, samples, clock)
        finally:
            clock.close()
        health = {"cpu_ns": cpu, "wall_ns": monotonic_ns() - at, "gc_ns": sweep["ns"]}
        return {**samples.answer(), "health": health, "stopped": self._gate.reason if self._gate else ""}

    async def _closed(self, at: int, samples: SampleBuffer, clock: Clock) -> int:
        """Release all users at one instant; return the CPU time in ns."""
        release, queues = asyncio.Event(), self._batch.queues.items()
        users = [asyncio.create_task(self._user(int(user), queue, at, release, samples)) for user, queue in queues]
        await clock.until(at)
        cpu = process_time_ns()
        release.set()
        await asyncio.gather(*users)
        return process_time_ns() - cpu

    async def _user(
        self, user: int, queue: Sequence[Message], at: int, release: asyncio.Event, samples: SampleBuffer
    ) -> None:
        """Send a user's requests one after the other; each is due when the previous one is done."""
        await release.wait()
        scheduled = at
        for message in queue:
            sent = await self._send(message, scheduled)
            if sent is None:
                return
            samples.add(message["item"], user, *sent)
            scheduled = sent[2].done

    async def _open(self, at: int, samples: SampleBuffer, clock: Clock) -> int:
        """Send requests at their instants, whether earlier ones are answered or not; return the CPU time in ns.

        A request that arrives when the maximum number is in flight is dropped. Arrivals are dealt to the workers by
        their number: this worker sends those whose number modulo `parts` is `part`.
        """
        batch, messages = self._batch, self._batch.messages
        running: set[asyncio.Task[None]] = set()
        await clock.until(at)
        cpu, spun = process_time_ns(), clock.spun_ns
        for number, due in enumerate(instants(batch.segments, batch.seed)):
            if number % batch.parts != batch.part:
                continue
            await clock.until(at + due)
            if self._gate and self._gate.reason:
                break
            message = messages[number % len(messages)]
            if self._in_flight >= batch.in_flight:
                samples.add(
                    message["item"], number, at + due, at + due, Answer(at + due, at + due, DROPPED, attempts=0)
                )
                continue
            self._in_flight += 1
            task = asyncio.create_task(self._arrival(message, number, at + due, samples))
            await asyncio.sleep(0)  # sends the request now, before the next instant is computed
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return process_time_ns() - cpu - (clock.spun_ns - spun)

    async def _arrival(self, message: Message, number: int, due: int, samples: SampleBuffer) -> None:
        try:
            if sent := await self._send(message, due):
                samples.add(message["item"], number, *sent)
        finally:
            self._in_flight -= 1

    async def _send(self, message: Message, scheduled: int) -> tuple[int, int, Answer] | None:
        """Send a request within the limits; return when it was due and sent, and the answer. None: not sent."""
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

    async def _let_through(self, gate: RateGate, scheduled: int) -> int | None:
        """Wait for the limits; return the instant from which the response time counts, or None if nothing may be sent.

        Waiting for a limit is not the target's slowness, so the request is due that much later.
        """
        began = monotonic_ns()
        if self._slots:
            await self._slots.acquire()
        at = gate.admit(monotonic_ns())
        if at is not None and (wait := at - monotonic_ns()) > 0:
            await asyncio.sleep(wait / 1e9)
        if at is None or gate.reason:  # the reason may have come up during the wait
            if self._slots:
                self._slots.release()
            return None
        return scheduled + max(0, monotonic_ns() - began)


@asynccontextmanager
async def _sweeping() -> AsyncIterator[dict[str, int]]:
    """Collect young garbage every `SWEEP_S` seconds while the body runs; `ns` is the time that it takes."""
    took = {"ns": 0}

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            began = monotonic_ns()
            gc.collect(1)
            took["ns"] += monotonic_ns() - began

    task = asyncio.create_task(sweep())
    try:
        yield took
    finally:
        task.cancel()


async def serve() -> None:
    """Answer the parent's commands until its end of the pipe closes."""
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # outcomes hold what psycopg would log
    gc.collect()
    gc.freeze()
    gc.disable()
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    worker = Worker()
    while line := await reader.readline():
        try:
            answer = await worker.handle(json.loads(line))
        except (ValueError, ConnectionError) as error:  # from check() and open(): a message for the user
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    run(serve())

"""A network in a box: a Unix socket that passes everything on to a server's, a chosen round trip away.

Each direction delays every chunk by half the round trip and keeps their order; chunks travel together, so
throughput is that of the sockets. Connecting costs a number of round trips in total, as TCP, TLS and SCRAM do
on a hosted database. The start-up packet and its answer (trust authentication) pay one of them; the others
are added to the first chunk the client sends.

    python -m perfkit.postgres.relay --listen DIR --server DIR --rtt-ms N

prints {"socket": PATH} when it listens, and ends with its stdin or on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from perfkit.base.process import run, stop_event

_CHUNK = 65536
_IN_FLIGHT = 1024  # chunks per direction on their way: bounds memory, far above what a round trip holds

_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay to the server's socket at `server`; `rtt` in seconds, `connect_rtts` round trips to connect."""

    server: Path
    rtt: float
    connect_rtts: int

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Carry one client's connection until both sides have ended it, or either broke it."""
        with contextlib.closing(writer), contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_unix_connection(self.server)
            with contextlib.closing(server_writer), contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    handshake = self.rtt * (self.connect_rtts - 1)
                    tasks.create_task(self._carry(reader, server_writer, handshake))
                    tasks.create_task(self._carry(server_reader, writer, 0.0))

    async def _carry(self, source: StreamReader, sink: StreamWriter, handshake: float) -> None:
        """Pass `source` on to `sink`, each chunk half a round trip late and the first by `handshake` more."""
        travelling = _Queue(_IN_FLIGHT)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_deliver(travelling, sink))
            data = b"first"
            while data:
                data = await source.read(_CHUNK)
                await travelling.put((monotonic() + self.rtt / 2 + handshake, data))
                handshake = 0.0  # what follows cannot overtake the first chunk


async def _deliver(travelling: _Queue, sink: StreamWriter) -> None:
    """Write each chunk when it is due; an empty one is the end of this direction."""
    while True:
        due, data = await travelling.get()
        # Event loops round to milliseconds, uvloop also downwards: never deliver early.
        while (early := due - monotonic()) > 0:
            await asyncio.sleep(early)
        if not data:
            sink.write_eof()
            return
        sink.write(data)
        await sink.drain()


async def listen(relay: Relay, path: Path) -> int:
    """Serve at `path` until told to stop; returns an exit code. Raises OSError if it cannot listen there."""
    stop = stop_event(watch_stdin=True)
    clients: set[asyncio.Task[None]] = set()

    def accepted(reader: StreamReader, writer: StreamWriter) -> None:
        clients.add(task := asyncio.create_task(relay.serve(reader, writer)))
        task.add_done_callback(clients.discard)

    listener = await asyncio.start_unix_server(accepted, path)
    print(json.dumps({"socket": str(path)}), flush=True)  # noqa: T201
    await stop.wait()
    listener.close()
    path.unlink(missing_ok=True)
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perfkit.postgres.relay", allow_abbrev=False)
    parser.add_argument("--listen", required=True, type=Path, help="private folder for the relay's own socket")
    parser.add_argument("--server", required=True, type=Path, help="folder of the server's socket")
    parser.add_argument("--port", type=int, default=5432, help="port in the sockets' names")
    parser.add_argument("--rtt-ms", required=True, type=float, help="round trip in milliseconds")
    parser.add_argument("--connect-rtts", type=int, default=6, help="round trips to connect, in total")
    given = parser.parse_args()
    if not 0 <= given.rtt_ms <= 10_000 or given.connect_rtts < 1:
        parser.error("--rtt-ms must lie between 0 and 10000, --connect-rtts be at least 1")
    return given


def main() -> int:
    """Run the relay as a process; returns its exit code."""
    given = _arguments()
    name = f".s.PGSQL.{given.port}"
    relay = Relay(given.server / name, given.rtt_ms / 1000, given.connect_rtts)
    try:
        return run(listen(relay, given.listen / name))
    except OSError as error:
        print(f"relay: cannot listen at {given.listen / name}: {error}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())

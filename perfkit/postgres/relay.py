"""A simulated network: a Unix socket that forwards to a server's socket with a chosen round trip time.

Each direction delays every chunk by half the round trip and keeps the order of chunks. Chunks travel concurrently, so
the throughput is that of the sockets. A connection costs several round trips, as TCP, TLS and SCRAM do on a hosted
database. The start-up packet and its answer (trust authentication) take one of them; the others are added to the first
chunk that the client sends.

    python -m perfkit.postgres.relay --listen DIR --server DIR --rtt-ms N

The process prints {"socket": PATH} when it listens, and ends with its stdin or on SIGTERM.
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
_IN_FLIGHT = 1024  # chunks in transit per direction: bounds memory, far above the number in one round trip

_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay to the socket at `server`; `rtt` in seconds, `connect_rtts` round trips per connection."""

    server: Path
    rtt: float
    connect_rtts: int

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Relay one client's connection until both sides have closed it, or one side broke it."""
        with contextlib.closing(writer), contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_unix_connection(self.server)
            with contextlib.closing(server_writer), contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    handshake = self.rtt * (self.connect_rtts - 1)
                    tasks.create_task(self._carry(reader, server_writer, handshake))
                    tasks.create_task(self._carry(server_reader, writer, 0.0))

    async def _carry(self, source: StreamReader, sink: StreamWriter, handshake: float) -> None:
        """Forward `source` to `sink`, each chunk half a round trip late, the first one by `handshake` more."""
        travelling = _Queue(_IN_FLIGHT)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_deliver(travelling, sink))
            data = b"first"
            while data:
                data = await source.read(_CHUNK)
                await travelling.put((monotonic() + self.rtt / 2 + handshake, data))
                handshake = 0.0  # later chunks cannot overtake the first one


async def _deliver(travelling: _Queue, sink: StreamWriter) -> None:
    """Write each chunk when it is due; an empty chunk ends this direction."""
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
    """Serve at `path` until stopped; return an exit code. Raises OSError if `path` cannot be used."""
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
    parser.add_argument("--listen", required=True, type=Path, help="private folder for the relay's socket")
    parser.add_argument("--server", required=True, type=Path, help="folder of the server's socket")
    parser.add_argument("--port", type=int, default=5432, help="port in the names of the sockets")
    parser.add_argument("--rtt-ms", required=True, type=float, help="round trip in milliseconds")
    parser.add_argument("--connect-rtts", type=int, default=6, help="round trips to connect, in total")
    options = parser.parse_args()
    if not 0 <= options.rtt_ms <= 10_000 or options.connect_rtts < 1:
        parser.error("--rtt-ms must be from 0 to 10000, and --connect-rtts at least 1")
    return options


def main() -> int:
    """Run the relay as a process; return its exit code."""
    options = _arguments()
    name = f".s.PGSQL.{options.port}"
    relay = Relay(options.server / name, options.rtt_ms / 1000, options.connect_rtts)
    try:
        return run(listen(relay, options.listen / name))
    except OSError as error:
        print(f"relay: cannot listen at {options.listen / name}: {error}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())

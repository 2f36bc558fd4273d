"""The booking service as a process.

    PERFKIT_DATABASE=CONNINFO python -m perfkit.booking.service --handler baseline|pooled [--port N]

prints {"port": N} when it listens on 127.0.0.1, and ends on SIGTERM or, with --watch-stdin, with its stdin.
SIGHUP makes it forget its connections; /health answers 200 again when new ones are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys

from aiohttp import web

from perfkit.booking.handlers import BaselineHandler, Handler, PooledHandler
from perfkit.booking.routes import BookingService
from perfkit.postgres.lifetime import run, stop_event

_GRACE = 0.1  # seconds for requests under way when told to stop; then their statements are cancelled
_HARD_STOP = 0.4  # seconds until the process ends whatever still hangs


async def serve(service: BookingService, port: int, watch_stdin: bool) -> int:
    """Serve until told to stop; returns an exit code. Raises OSError if the port is taken."""
    stop = stop_event(watch_stdin)
    resets: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    def reset() -> None:
        resets.add(task := asyncio.create_task(service.reset()))
        task.add_done_callback(resets.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reset)
    runner = web.AppRunner(service.application(), access_log=None, shutdown_timeout=_GRACE)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)  # noqa: T201
        await stop.wait()
    finally:
        # A database that does not answer must not keep the process: what hangs by then ends with it.
        asyncio.get_running_loop().call_later(_HARD_STOP, os._exit, 0)
        await runner.cleanup()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perfkit.booking.service", allow_abbrev=False)
    parser.add_argument("--handler", required=True, choices=["baseline", "pooled"])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--pool-size", type=int, default=10, help="connections of the pooled handler")
    parser.add_argument("--watch-stdin", action="store_true", help="end when stdin ends")
    given = parser.parse_args()
    if not os.environ.get("PERFKIT_DATABASE"):
        parser.error("PERFKIT_DATABASE must hold the connection string of the database")
    if not 0 <= given.port < 65536 or given.pool_size < 1:
        parser.error("--port must lie between 0 and 65535, --pool-size be at least 1")
    return given


def _handler(name: str, pool_size: int) -> Handler:
    conninfo = os.environ["PERFKIT_DATABASE"]
    return BaselineHandler(conninfo) if name == "baseline" else PooledHandler(conninfo, pool_size)


def main() -> int:
    """Run the service; returns its exit code."""
    given = _arguments()
    try:
        service = BookingService(_handler(given.handler, given.pool_size))
        return run(serve(service, given.port, given.watch_stdin))
    except OSError as error:
        print(f"booking service: {error.strerror}: {error.filename or given.port}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())

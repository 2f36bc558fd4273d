"""A service that does nothing: answers every HTTP request at once. What the client itself costs shows here.

Run as `python -m perfkit.load.null`; prints its port as JSON and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from perfkit.base.process import run

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


class Responder(asyncio.Protocol):
    """Counts requests off the wire and answers each with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            self._transport.write(RESPONSE)  # type: ignore[attr-defined]


async def serve() -> None:
    """Listen on a free loopback port until the input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Responder, "127.0.0.1", 0)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    run(serve())

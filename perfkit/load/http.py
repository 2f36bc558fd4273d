"""HTTP as load workers speak it: a connection, the sender that times a request, and the null service.

aiohttp's parser reads the answers. aiohttp's client is not used: for a small answer it costs a worker several times
as much as everything else together, so that a load level would measure the client.

The null service answers every request at once, so that what is measured against it is the cost of the client itself.
It runs as `python -m perfkit.load.http`, prints its port as JSON and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import sys
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, cast
from urllib.parse import quote

from aiohttp.http import HttpProcessingError, HttpResponseParser
from yarl import URL

from perfkit.base.process import run
from perfkit.base.refusals import require_header
from perfkit.load.samples import OK, Answer, first_words

_WHOLE = 1 << 30  # bytes of a body that are kept before the parser would stop reading


class HttpConnection(asyncio.Protocol):
    """A connection that sends one request at a time. Once `broken` it is closed, and another must be opened."""

    _reading_paused = False  # the parser asks its protocol, which never pauses

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._bodiless = False
        self._message: Any = None
        self._payload: Any = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.broken = False
        self.answering = False  # something of the answer has come

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None, name: str) -> HttpConnection:
        """Connect to an address; `name` is whom its certificate must belong to. Raises OSError."""
        loop, whose = asyncio.get_running_loop(), name if tls else None
        return (await loop.create_connection(cls, host, port, ssl=tls, server_hostname=whose))[1]

    def run(self, request: bytes, *, head: bool = False) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; its future brings the status and the whole body.

        It raises ConnectionError where the connection is lost or the answer is not HTTP, TimeoutError when expired.
        """
        if self._parser is None or head is not self._bodiless:
            self._bodiless = head
            self._parser = HttpResponseParser(
                cast(Any, self), self._loop, _WHOLE, response_with_body=not head, read_until_eof=True
            )
        self._waiting, self._message, self._payload = self._loop.create_future(), None, None
        self.answering = False
        if self.broken:
            self._waiting.set_exception(ConnectionResetError("closed before the request"))
        else:
            self._transport.write(request)
        return self._waiting

    def expire(self) -> None:
        """Wait no longer: whoever does gets a TimeoutError."""
        self._lost(TimeoutError("no answer in time"))

    def close(self) -> None:
        """Close it."""
        self._lost(ConnectionAbortedError("closed"))

    def pause_reading(self, *_: Any, **__: Any) -> None:
        """The parser would like to wait; every body is read whole."""

    def resume_reading(self, *_: Any, **__: Any) -> None:
        """Nothing was paused."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """A part of an answer has come."""
        if self._waiting is None or self._waiting.done():
            self._lost(ConnectionResetError("an answer that nothing asked for"))
            return
        self.answering = True
        try:
            messages, upgraded, rest = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._lost(ConnectionResetError(f"an answer that is not HTTP: {error.message}"))
            return
        for message, payload in messages:
            if message.code >= 200 and self._message is None:  # before it there may be others, which announce it
                self._message, self._payload = message, payload
        if upgraded or rest:
            self._lost(ConnectionResetError("the server changed the protocol"))
        elif self._message is not None:
            self._finish()

    def eof_received(self) -> None:
        """Nothing more will come, which ends a body of unknown length."""
        if self._message is None:
            return
        try:
            self._parser.feed_eof()
        except HttpProcessingError as error:
            self._lost(ConnectionResetError(f"the answer was cut off: {error.message}"))
            return
        self.broken = True
        self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        self._lost(ConnectionResetError(str(error) if error else "the server closed the connection"))

    def _finish(self) -> None:
        """Give the answer to whoever waits, if it is whole."""
        if error := self._payload.exception():
            self._lost(ConnectionResetError(f"a body that cannot be read: {error}"))
        elif self._payload.is_eof() and self._waiting and not self._waiting.done():
            if self._message.should_close or self.broken:
                self.broken = True
                self._transport.close()
            self._waiting.set_result((self._message.code, self._payload.read_nowait()))

    def _lost(self, error: Exception) -> None:
        self.broken = True
        self._transport.abort()
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error)


# How one HTTP request is sent and timed. Runs inside a load worker only.

_SAFE = "!$%&'()*+,/:;=?@[]~"  # what of a path stays as it was written
_SECRET = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_BODILESS = ("GET", "HEAD", "OPTIONS", "TRACE")
_REPEATABLE = (*_BODILESS, "PUT", "DELETE")  # RFC 9110, 9.2.2: sent twice they do what they do once


class HttpSender:
    """HTTP/1.1, keep-alive, as many connections as users; every request stays at the target's origin.

    No proxy, whatever the environment says; no cookies, no redirects.
    """

    pids: Sequence[int] = ()  # a service's processes are its own

    def __init__(self, base: str, timeout_s: float, warm: str | None = None, address: str = "") -> None:
        self._base, self._timeout_s, self._address = base, timeout_s, address
        get = {"item": "warm", "method": "GET", "path": warm, "json": None, "expect": [200]}
        self.warm = None if warm is None else get  # sent once for each user before the clock runs
        self._secrets: dict[str, str] = {}
        self._free: list[HttpConnection] = []

    async def open(self, users: int) -> None:
        """Get ready; connections are opened when they are wanted."""
        url, self._loop = URL(self._base), asyncio.get_running_loop()
        self._name, self._port = url.host or "", url.port or 80
        self._tls = ssl.create_default_context() if url.scheme == "https" else None

    async def send(self, message: dict[str, Any]) -> Answer:
        """Send one HTTP request and read its body; once more where a kept connection turns out to be closed."""
        acquired, attempts, until = monotonic_ns(), 0, self._loop.time() + self._timeout_s
        try:
            while True:
                attempts += 1
                kept = connection = self._kept()
                if connection is None:
                    async with asyncio.timeout_at(until):
                        connection = await self._connected()
                acquired = monotonic_ns()
                late = self._loop.call_at(until, connection.expire)
                try:
                    status, body = await connection.run(message["wire"], head=message["method"] == "HEAD")
                    break
                except asyncio.CancelledError:
                    connection.close()
                    raise
                except ConnectionError:
                    if not kept or connection.answering or message["method"] not in _REPEATABLE:
                        raise
                finally:
                    late.cancel()
            done = monotonic_ns()
            self._free.append(connection)
        except (TimeoutError, ConnectionError, _Unreachable) as error:
            return Answer(acquired, monotonic_ns(), _failure(error), self._clean(first_words(error)), "", attempts)
        text = self._clean(body[:65536].decode("utf-8", "replace"))
        if status not in message["expect"]:
            return Answer(acquired, done, f"http_{status}", text[:200], text, attempts)
        if any(needle not in text for needle in message.get("contains", ())):
            return Answer(acquired, done, "unexpected_body", text[:200], text, attempts)
        return Answer(acquired, done, OK, str(status), text, attempts)

    def _kept(self) -> HttpConnection | None:
        """The connection used last of those that still stand."""
        while self._free:
            if not (connection := self._free.pop()).broken:
                return connection
        return None

    async def _connected(self) -> HttpConnection:
        """Another connection. Raises _Unreachable, TimeoutError."""
        try:
            return await HttpConnection.open(self._address or self._name, self._port, self._tls, self._name)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:  # the latter for a name or a certificate that is none
            raise _Unreachable(f"no connection to {self._base}: {error}") from None

    def check(self, message: dict[str, Any]) -> None:
        """Turn the request into what is sent.

        Raises ValueError for one that could leave the target's origin, or lacks a secret it names.
        """
        where, path = f"request {message['item']}", message["path"]
        if not re.fullmatch(r"/(?![/\\])[^\s\\]*", path):
            raise ValueError(f"{where}: {path!r} leaves {self._base}; expected a path")
        url = URL(self._base + path)
        if url.origin() != URL(self._base).origin():
            raise ValueError(f"{where}: {path!r} leaves {self._base}; expected a path")
        for header, value in message.get("headers", {}).items():
            for name in _SECRET.findall(value):
                if name not in os.environ:
                    raise ValueError(f"{where}: no {name} in the environment; expected its value")
                self._secrets[name] = os.environ[name]
            try:
                require_header(header, self._filled(value))
            except ValueError as error:
                raise ValueError(f"{where}: expected {error}") from None
        message["wire"] = self._wire(url, message)

    def _wire(self, url: URL, message: dict[str, Any]) -> bytes:
        """A request as it is sent; headers of its own take the place of ours."""
        method, body = message["method"], b""
        headers = {"Host": url.host_port_subcomponent or "", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
        headers["User-Agent"] = "perfkit"
        if message["json"] is not None:
            body, headers["Content-Type"] = json.dumps(message["json"]).encode(), "application/json"
        own = {name: self._filled(value) for name, value in message.get("headers", {}).items()}
        taken = {name.lower() for name in own}
        headers = {name: value for name, value in headers.items() if name.lower() not in taken} | own
        if body or method not in _BODILESS:
            headers["Content-Length"] = str(len(body))
        path = quote(message["path"].partition("#")[0], safe=_SAFE)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def _filled(self, value: str) -> str:
        """A header with the secrets it names."""
        return _SECRET.sub(lambda match: self._secrets[match[1]], value)

    def _clean(self, text: str) -> str:
        """Text from a target without the secrets it was sent."""
        for secret in self._secrets.values():
            text = text.replace(secret, "***") if secret else text
        return text

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._free:
            connection.close()
        self._free.clear()
        await asyncio.sleep(0)  # the loop closes them in its next turn


class _Unreachable(Exception):
    """No connection could be had."""


def _failure(error: Exception) -> str:
    if isinstance(error, _Unreachable):
        return "refused"
    return "timeout" if isinstance(error, TimeoutError) else "reset"


NULL_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


class NullResponder(asyncio.Protocol):
    """Counts requests off the wire and answers each with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            self._transport.write(NULL_RESPONSE)  # type: ignore[attr-defined]


async def serve_null() -> None:
    """Run the null service on a free loopback port until the input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(NullResponder, "127.0.0.1", 0)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    run(serve_null())

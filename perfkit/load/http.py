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
from typing import cast
from urllib.parse import quote

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.http_parser import HttpParser
from aiohttp.streams import StreamReader
from yarl import URL

from perfkit.base.process import run
from perfkit.base.refusals import require_header
from perfkit.load.samples import OK, REFUSED, RESET, TIMEOUT, UNEXPECTED_BODY, Answer, first_words
from perfkit.load.schedule import Message

_WHOLE = 1 << 30  # bytes of a body that the parser buffers before it would stop reading


class HttpConnection(asyncio.Protocol):
    """A connection that sends one request at a time. Once `broken` it is closed and must be replaced."""

    _reading_paused = False  # the parser reads this attribute of its protocol

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: HttpParser[RawResponseMessage] | None = None
        self._bodiless = False
        self._message: RawResponseMessage | None = None
        self._payload: StreamReader | None = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.broken = False
        self.answering = False  # part of the answer has arrived

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None, name: str) -> HttpConnection:
        """Connect to an address; with TLS, its certificate must belong to `name`. Raises OSError."""
        loop, hostname = asyncio.get_running_loop(), name if tls else None
        return (await loop.create_connection(cls, host, port, ssl=tls, server_hostname=hostname))[1]

    def run(self, request: bytes, *, head: bool = False) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; return a future that brings the status and the whole body.

        The future raises ConnectionError if the connection is lost or the answer is not HTTP, TimeoutError if the
        request expires.
        """
        if self._parser is None or head is not self._bodiless:
            self._bodiless = head
            self._parser = HttpResponseParser(
                cast(BaseProtocol, self), self._loop, _WHOLE, response_with_body=not head, read_until_eof=True
            )
        self._waiting, self._message, self._payload = self._loop.create_future(), None, None
        self.answering = False
        if self.broken:
            self._waiting.set_exception(ConnectionResetError("closed before the request"))
        else:
            self._transport.write(request)
        return self._waiting

    def expire(self) -> None:
        """Give up the answer: the pending `run` raises TimeoutError."""
        self._lost(TimeoutError("no answer in time"))

    def close(self) -> None:
        """Close the connection; a pending `run` raises ConnectionAbortedError."""
        self._lost(ConnectionAbortedError("closed"))

    def pause_reading(self, *_: object, **__: object) -> None:
        """Ignore the parser's request to pause: every body is read whole."""

    def resume_reading(self, *_: object, **__: object) -> None:
        """Do nothing: reading never pauses."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the open connection."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse a part of an answer."""
        if self._parser is None or self._waiting is None or self._waiting.done():
            self._lost(ConnectionResetError("an answer that nothing asked for"))
            return
        self.answering = True
        try:
            messages, upgraded, rest = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._lost(ConnectionResetError(f"an answer that is not HTTP: {error.message}"))
            return
        for message, payload in messages:
            if message.code >= 200 and self._message is None:  # informational responses (1xx) may come first
                self._message, self._payload = message, payload
        if upgraded or rest:
            self._lost(ConnectionResetError("the server changed the protocol"))
        elif self._message is not None:
            self._finish()

    def eof_received(self) -> None:
        """End a body of unknown length, which lasts until the server closes."""
        if self._parser is None or self._message is None:
            return
        try:
            self._parser.feed_eof()
        except HttpProcessingError as error:
            self._lost(ConnectionResetError(f"the answer was cut off: {error.message}"))
            return
        self.broken = True
        self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        """Give up the answer, if one is pending."""
        self._lost(ConnectionResetError(str(error) if error else "the server closed the connection"))

    def _finish(self) -> None:
        """Resolve the pending future if the answer is complete."""
        message, payload = self._message, self._payload
        assert message is not None and payload is not None
        if error := payload.exception():
            self._lost(ConnectionResetError(f"a body that cannot be read: {error}"))
        elif payload.is_eof() and self._waiting and not self._waiting.done():
            if message.should_close or self.broken:
                self.broken = True
                self._transport.close()
            self._waiting.set_result((message.code, payload.read_nowait()))

    def _lost(self, error: Exception) -> None:
        self.broken = True
        self._transport.abort()
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error)


_SAFE = "!$%&'()*+,/:;=?@[]~"  # characters of a path that are not encoded
_SECRET = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_BODILESS = ("GET", "HEAD", "OPTIONS", "TRACE")
_REPEATABLE = (*_BODILESS, "PUT", "DELETE")  # idempotent methods (RFC 9110, 9.2.2): safe to send a second time


class HttpSender:
    """Sends HTTP/1.1 requests over kept-alive connections, one for each user; they stay at the target's origin.

    The sender uses no proxy, whatever the environment says, keeps no cookies and follows no redirects.
    """

    pids: Sequence[int] = ()  # unknown for a service

    def __init__(self, base: str, timeout_s: float, warm: str | None = None, address: str = "") -> None:
        self._base, self._timeout_s, self._address = base, timeout_s, address
        self.warm: Message | None = None  # sent once for each user before the clock runs
        if warm is not None:
            self.warm = {"item": "warm", "method": "GET", "path": warm, "json": None, "expect": [200]}
        self._secrets: dict[str, str] = {}
        self._free: list[HttpConnection] = []

    async def open(self, users: int) -> None:
        """Prepare for sending; connections are opened when they are needed."""
        url, self._loop = URL(self._base), asyncio.get_running_loop()
        self._name, self._port = url.host or "", url.port or 80
        self._tls = ssl.create_default_context() if url.scheme == "https" else None

    async def send(self, message: Message) -> Answer:
        """Send a request and read its body; send it once more if a kept connection turns out to be closed.

        A request without an answer after `timeout_s` expires: its connection is closed, its outcome is TIMEOUT.
        """
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
            outcome = _OUTCOMES.get(type(error), RESET)
            return Answer(acquired, monotonic_ns(), outcome, self._clean(first_words(error)), "", attempts)
        text = self._clean(body[:65536].decode("utf-8", "replace"))
        if status not in message["expect"]:
            return Answer(acquired, done, f"http_{status}", text[:200], text, attempts)
        if any(needle not in text for needle in message.get("contains", ())):
            return Answer(acquired, done, UNEXPECTED_BODY, text[:200], text, attempts)
        return Answer(acquired, done, OK, str(status), text, attempts)

    def _kept(self) -> HttpConnection | None:
        """Return the open connection that was used last."""
        while self._free:
            if not (connection := self._free.pop()).broken:
                return connection
        return None

    async def _connected(self) -> HttpConnection:
        """Open a connection. Raises _Unreachable, TimeoutError."""
        try:
            return await HttpConnection.open(self._address or self._name, self._port, self._tls, self._name)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an invalid host name or certificate
            raise _Unreachable(f"no connection to {self._base}: {error}") from None

    def check(self, message: Message) -> None:
        """Prepare the request for sending.

        Raises ValueError if the request could leave the target's origin or names a secret that is not set.
        """
        where, path = f"request {message['item']}", message["path"]
        inside = re.fullmatch(r"/(?![/\\])[^\s\\]*", path)  # asked first: any other text need not be a URL at all
        if not inside or (url := URL(self._base + path)).origin() != URL(self._base).origin():
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

    def _wire(self, url: URL, message: Message) -> bytes:
        """Return the request's bytes; its own headers override the default ones."""
        method, body = message["method"], b""
        headers = {"Host": url.host_port_subcomponent or "", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
        headers["User-Agent"] = "perfkit"
        if message["json"] is not None:
            body, headers["Content-Type"] = json.dumps(message["json"]).encode(), "application/json"
        custom = {name: self._filled(value) for name, value in message.get("headers", {}).items()}
        overridden = {name.lower() for name in custom}
        headers = {name: value for name, value in headers.items() if name.lower() not in overridden} | custom
        if body or method not in _BODILESS:
            headers["Content-Length"] = str(len(body))
        path = quote(message["path"].partition("#")[0], safe=_SAFE)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def _filled(self, value: str) -> str:
        """Return a header with the secrets that it names."""
        return _SECRET.sub(lambda match: self._secrets[match[1]], value)

    def _clean(self, text: str) -> str:
        """Return a text from the target with every secret replaced by ***."""
        for secret in self._secrets.values():
            text = text.replace(secret, "***") if secret else text
        return text

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._free:
            connection.close()
        self._free.clear()
        await asyncio.sleep(0)  # the loop closes the connections in its next turn


class _Unreachable(Exception):
    """No connection could be opened."""


_OUTCOMES: dict[type[Exception], str] = {TimeoutError: TIMEOUT, _Unreachable: REFUSED}  # all others: RESET


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

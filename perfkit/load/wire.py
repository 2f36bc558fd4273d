"""One HTTP/1.1 connection of a load worker, kept alive from request to request.

aiohttp's parser reads the answers. Its client is not in the way: for a small answer it takes a worker several times
as long as everything else does, and would be what a load level measures.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from aiohttp.http import HttpProcessingError, HttpResponseParser

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

"""How one HTTP request is sent and timed. Runs inside a load worker only."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any
from urllib.parse import quote

from yarl import URL

from perfkit.load.answer import Answer, first_words
from perfkit.load.limits import OK
from perfkit.load.wire import HttpConnection
from perfkit.text import require_header

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

"""How one HTTP request is sent and timed. Runs inside a load worker only."""

from __future__ import annotations

import os
import re
import socket
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from perfkit.load.answer import Answer, first_words
from perfkit.load.limits import OK
from perfkit.text import require_header

_SECRET = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class HttpSender:
    """aiohttp, keep-alive, as many connections as users; every request stays at the target's origin."""

    def __init__(self, base: str, timeout_s: float, warm: str | None = None, address: str = "") -> None:
        self._base, self._timeout_s, self._address = base, timeout_s, address
        get = {"item": "warm", "method": "GET", "path": warm, "json": None, "expect": [200]}
        self.warm = None if warm is None else get  # sent once for each user before the clock runs
        self._secrets: dict[str, str] = {}

    @staticmethod
    async def _acquired(_session: Any, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.acquired = monotonic_ns()

    async def open(self, users: int) -> None:
        """Open the session, which uses no proxy, whatever the environment says."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._acquired)
        trace.on_connection_reuseconn.append(self._acquired)
        resolver = _Pinned(self._address) if self._address else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=300, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trace_configs=[trace],
            trust_env=False,
        )

    async def send(self, message: dict[str, Any]) -> Answer:
        """Send one HTTP request and read its body."""
        stamp = SimpleNamespace(acquired=monotonic_ns())
        try:
            headers = {name: self._filled(value) for name, value in message.get("headers", {}).items()}
            async with self._session.request(
                message["method"],
                self._base + message["path"],
                json=message["json"],
                headers=headers,
                trace_request_ctx=stamp,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                done = monotonic_ns()
        except Exception as error:
            return Answer(stamp.acquired, monotonic_ns(), self._failure(error), self._clean(first_words(error)))
        text = self._clean(body[:65536].decode("utf-8", "replace"))
        if response.status not in message["expect"]:
            return Answer(stamp.acquired, done, f"http_{response.status}", text[:200], text)
        if any(needle not in text for needle in message.get("contains", ())):
            return Answer(stamp.acquired, done, "unexpected_body", text[:200], text)
        return Answer(stamp.acquired, done, OK, str(response.status), text)

    def check(self, message: dict[str, Any]) -> None:
        """Raise ValueError for a message that could leave the target's origin, or lacks a secret it names."""
        where, path = f"request {message['item']}", message["path"]
        if not re.fullmatch(r"/(?![/\\])[^\s\\]*", path):
            raise ValueError(f"{where}: {path!r} leaves {self._base}; expected a path")
        if URL(self._base + path).origin() != URL(self._base).origin():
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

    def _filled(self, value: str) -> str:
        """A header with the secrets it names."""
        return _SECRET.sub(lambda match: self._secrets[match[1]], value)

    def _clean(self, text: str) -> str:
        """Text from a target without the secrets it was sent."""
        for secret in self._secrets.values():
            text = text.replace(secret, "***") if secret else text
        return text

    def _failure(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return "timeout"
        if isinstance(error, aiohttp.ClientConnectorError):
            return "refused"
        if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
            return "reset"
        return "generator"

    async def close(self) -> None:
        """Close the session with its connections."""
        await self._session.close()


class _Pinned(AbstractResolver):
    """A resolver that knows one answer, whatever a name would resolve to now."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        found = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [ResolveResult(hostname=host, host=self._address, port=port, family=found, proto=0, flags=0)]

    async def close(self) -> None:
        pass

"""How one request is sent and timed, by HTTP or SQL. Runs inside a load worker only.

A sender stamps `acquired` when it holds a connection and `done` when the last byte of the answer is read;
what the answer means is decided after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from dataclasses import dataclass
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any

import aiohttp
import psycopg
from aiohttp.abc import AbstractResolver, ResolveResult
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from yarl import URL

from perfkit.load.limits import OK
from perfkit.postgres.parameters import exact, options
from perfkit.text import require_header

_SECRET = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(slots=True)
class Answer:
    """Stamps in ns of the monotonic clock, the outcome, its first message, and the body where it is kept."""

    acquired: int
    done: int
    outcome: str = OK
    detail: str = ""
    body: str = ""


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
            return Answer(stamp.acquired, monotonic_ns(), self._failure(error), self._clean(_first_line(error)))
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


class SqlSender:
    """psycopg async, autocommit, one pooled connection for each user."""

    warm: dict[str, Any] | None = None  # connecting is enough

    def __init__(self, conninfo: str, timeout_s: float, session: dict[str, str], prepare: bool) -> None:
        self._conninfo, self._timeout_s = conninfo, timeout_s
        self._kwargs: dict[str, Any] = {"autocommit": True, "application_name": "perfkit load"}
        if session:
            self._kwargs["options"] = options(session)
        if not prepare:
            self._kwargs["prepare_threshold"] = None

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """One connection. Raises ConnectionError with the server's words."""
        patience = max(2, int(self._timeout_s))
        try:
            return await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=patience, **self._kwargs)
        except psycopg.OperationalError as error:
            raise ConnectionError(_first_line(error)) from None

    async def open(self, users: int) -> None:
        """Open one connection for each user. Raises ConnectionError with the server's words."""
        await (await self.connect()).close()  # the pool says of a failure only that it took too long
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            self._conninfo, min_size=users, max_size=users, timeout=self._timeout_s, kwargs=self._kwargs, open=False
        )
        try:
            await self._pool.open(wait=True, timeout=self._timeout_s)
        except PoolTimeout:
            raise ConnectionError(f"{users} connections could not be had within {self._timeout_s:g} s") from None

    def check(self, message: dict[str, Any]) -> None:
        """Nothing in a statement leads elsewhere; its numbers become what the server can compare with an index."""
        message["params"] = exact(message["params"])

    async def send(self, message: dict[str, Any]) -> Answer:
        """Run one statement and fetch every row."""
        acquired = monotonic_ns()
        try:
            async with asyncio.timeout(self._timeout_s), self._pool.connection() as connection:
                acquired = monotonic_ns()
                return await self.run(connection, message, acquired)
        except Exception as error:
            return Answer(acquired, monotonic_ns(), self._failure(error), _first_line(error))

    @staticmethod
    async def run(connection: psycopg.AsyncConnection[Any], message: dict[str, Any], acquired: int) -> Answer:
        """Run one statement on a connection and fetch every row. Raises what goes wrong."""
        cursor = await connection.execute(message["sql"], message["params"])
        rows = await cursor.fetchall() if cursor.description else []
        return Answer(acquired, monotonic_ns(), OK, f"{len(rows)} rows")

    @staticmethod
    def _failure(error: Exception) -> str:
        if isinstance(error, PoolTimeout):
            return "pool_timeout"
        if isinstance(error, TimeoutError):
            return "timeout"
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return f"sqlstate_{error.sqlstate}"
        return "reset" if isinstance(error, psycopg.OperationalError) else "generator"

    async def close(self) -> None:
        """Close every connection; the server publishes their statistics with it."""
        await self._pool.close()


class AlternatingSender:
    """Several databases, a connection to each; a message names its own."""

    warm: dict[str, Any] | None = None

    def __init__(self, targets: dict[str, dict[str, Any]]) -> None:
        self._senders = {name: SqlSender(**own) for name, own in targets.items()}
        self._timeouts_s = {name: own["timeout_s"] for name, own in targets.items()}

    async def open(self, users: int) -> None:
        """Open every connection, for the one user that there is. Raises ConnectionError with the server's words."""
        if users != 1:
            raise ConnectionError(f"{users} users; expected one, for the databases take turns")
        self._connections: dict[str, psycopg.AsyncConnection[Any]] = {}
        for name, sender in self._senders.items():
            self._connections[name] = await sender.connect()

    def check(self, message: dict[str, Any]) -> None:
        """As for one database."""
        self._senders[message["arm"]].check(message)

    async def send(self, message: dict[str, Any]) -> Answer:
        """Run one statement where it belongs and fetch every row."""
        acquired = monotonic_ns()
        try:
            async with asyncio.timeout(self._timeouts_s[message["arm"]]):
                return await SqlSender.run(self._connections[message["arm"]], message, acquired)
        except Exception as error:
            return Answer(acquired, monotonic_ns(), SqlSender._failure(error), _first_line(error))

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._connections.values():
            await connection.close()


Sender = HttpSender | SqlSender | AlternatingSender


def make(spec: dict[str, Any]) -> Sender:
    """The sender that a target description from the parent asks for."""
    kinds: dict[str, type[Sender]] = {"http": HttpSender, "sql": SqlSender, "alternating": AlternatingSender}
    return kinds[spec["kind"]](**spec["options"])


def _first_line(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]

"""Guards: the real address of a target, whether perfkit may use it, and the audit of everything sent to it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
from psycopg import pq, sql
from psycopg.abc import Params, Query
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import RowFactory, dict_row

from perfkit.base.errors import BundleError, ServerError, TargetRefused, UsageError
from perfkit.postgres.catalog import Connection, Row, limited
from perfkit.postgres.commands import Extended

_SECRETS = {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
_SAFE_MODES = ("require", "verify-ca", "verify-full")
# Settings belong to the arms; TLS keys in a file and a replication stream are never needed.
_UNWANTED = ("options", "replication", "sslkeylogfile")
# Networks whose addresses contain an IPv4 address: IPv4-compatible, NAT64, 6to4; with its distance from the last bit.
_TRANSLATED = ((ipaddress.IPv6Network("::/96"), 0), (ipaddress.IPv6Network("64:ff9b::/96"), 0),
               (ipaddress.IPv6Network("2002::/16"), 80))  # fmt: skip
# Parameters that libpq must not take from the environment or a service file.
_PINNED = ("host", "hostaddr", "port", "dbname", "user", "sslmode", "options", "target_session_attrs")
_environment = threading.Lock()


@dataclass(frozen=True, slots=True)
class Address:
    """One database: its name, and the IP address that every connection to it uses."""

    host: str
    address: str  # "" for a socket folder
    port: int
    dbname: str
    user: str
    service: str
    aliases: tuple[str, ...]  # other names of the host
    parameters: Mapping[str, str]  # other libpq parameters, without secrets

    @property
    def name(self) -> str:
        """`host:port/dbname`: the name that the user allows and confirms."""
        return f"{bracketed(self.host)}:{self.port}/{self.dbname}"

    @property
    def words(self) -> tuple[str, ...]:
        """The names that could contain a word for production."""
        return (self.host, *self.aliases, self.dbname, self.service, self.user)

    @property
    def local(self) -> bool:
        """Whether the address belongs to this machine."""
        return not self.address or ipaddress.ip_address(self.address).is_loopback

    def conninfo(self, dbname: str = "") -> str:
        """Return a libpq string that sets every parameter that could lead elsewhere; libpq finds the password."""
        parameters = dict(self.parameters) | {"host": self.host, "port": str(self.port), "user": self.user}
        parameters["dbname"] = dbname or self.dbname
        # An empty hostaddr overrides PGHOSTADDR.
        parameters |= {"hostaddr": self.address, "options": "", "target_session_attrs": "any"}
        if self.service:  # which may hold the password; explicit parameters override its others
            parameters["service"] = self.service
        return make_conninfo("", **parameters)


def resolve(db: str, tls: bool = True) -> Address:
    """Return the address for a libpq string, URI or `service=NAME`, with the environment as libpq reads it.

    `tls=False` states that the user accepts an unencrypted connection.
    Raises UsageError for an invalid value, TargetRefused for a value that could lead to another target, ServerError
    for a host name without an address.
    """
    read = _read(db)
    for key in ("host", "hostaddr", "port"):
        if "," in read.get(key, ""):
            raise TargetRefused(f"{key} = {read[key]!r}; expected one host, so that load reaches no other")
    for key in _UNWANTED:
        if read.get(key):
            raise TargetRefused(f"{key} = {read[key]!r}; expected no {key}: it changes the kind of session")
    if not read.get("dbname"):
        raise UsageError("db names no database; expected dbname=... or a service with a dbname")
    port = read.get("port") or "5432"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"port = {port!r}; expected a number from 1 to 65535")
    host, address, aliases = _located(read.get("host", ""), read.get("hostaddr", ""), int(port))
    parameters = {k: v for k, v in read.items() if k not in (*_PINNED, *_SECRETS, "service", "requiressl")}
    parameters["sslmode"] = _mode(read, address, tls)
    user, service = read.get("user", ""), read.get("service", "")
    return Address(host, address, int(port), read["dbname"], user, service, aliases, parameters)


def bracketed(host: str) -> str:
    """Return a host in the form used before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def canonical(host: str) -> str:
    """Return the canonical spelling of a host: lower case, no final dot, addresses in standard notation."""
    text = host.strip().lower().rstrip(".").removeprefix("[").removesuffix("]")
    return str(_numeric(text) or text)


def addresses(host: str, port: int) -> tuple[list[str], tuple[str, ...]]:
    """Return the addresses of a host, the preferred one first, and its other names. Raises ServerError."""
    if literal := _numeric(host):
        return [str(literal)], ()
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except (OSError, ValueError):
        raise ServerError(f"{host!r} cannot be resolved; expected a host name with an address") from None
    if canonical(host) == "localhost":  # many servers listen on 127.0.0.1 only, and perfkit uses one address
        entries.sort(key=lambda entry: entry[0] != socket.AF_INET)
    others = {canonical(name) for _, _, _, name, _ in entries if name} - {canonical(host)}
    texts = [str(entry[4][0]) for entry in entries]
    return list(dict.fromkeys(str(_numeric(text) or text) for text in texts)), tuple(sorted(others))


def here(address: str) -> bool:
    """Whether an address belongs to this machine: only then can a socket bind to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def require_sensible(host: str, address: str) -> None:
    """Raise TargetRefused for addresses of no single machine, and for names that hide this machine."""
    ip = ipaddress.ip_address(address)
    if inner := _translated(ip):
        require_sensible(f"{host} ({address})", inner)
    elif ip.is_multicast or (ip.version == 4 and (ip.is_reserved or int(ip) < 1 << 24)) or ip.is_unspecified:
        raise TargetRefused(f"{host} is {address}; expected the address of one machine")
    if ip.is_link_local:
        raise TargetRefused(f"{host} is {address}, a link-local address; expected the address of a database or service")
    if host == "localhost" and not ip.is_loopback:
        raise TargetRefused(f"localhost is {address}, not this machine; expected a loopback address")
    if ip.is_loopback and host != "localhost" and not _numeric(host):
        raise TargetRefused(
            f"{host} is {address}, this machine; expected 'localhost' for a server, tunnel or pooler on this machine"
        )


def _require_plain(parameters: Mapping[str, str]) -> None:
    """Raise UsageError for a connection string in place of a name; do not repeat it, as it may hold a password."""
    for key in ("host", "hostaddr", "port", "dbname", "user", "service"):
        text = parameters.get(key, "")
        if "://" in text or re.search(r"\bpassword\s*=", text) or ("@" in text[1:] and key in ("host", "hostaddr")):
            raise UsageError(f"{key} contains a connection string or a password; expected a name")


def _read(db: str) -> dict[str, str]:
    """Return libpq's parameters: explicit values first, then the service's, then the environment's."""
    try:
        explicit = {key: str(value) for key, value in conninfo_to_dict(db).items() if value is not None}
    except psycopg.Error:
        raise UsageError("db is invalid; expected service=NAME, a libpq string or a postgresql:// URI") from None
    if explicit.keys() & _SECRETS:
        raise UsageError("db contains a password; expected no password: use ~/.pgpass, PGPASSFILE or PGPASSWORD")
    service = explicit.get("service") or os.environ.get("PGSERVICE", "")
    _require_plain(explicit | {"service": service})
    with _environment:
        before = os.environ.get("PGSERVICE")
        if service:
            os.environ["PGSERVICE"] = service
        try:
            defaults = pq.Conninfo.get_defaults()
        except psycopg.Error:
            defaults = []
        finally:
            if before is None:
                os.environ.pop("PGSERVICE", None)
            else:
                os.environ["PGSERVICE"] = before
    if service and not _defined(service):
        raise UsageError(f"service={service}: not defined; expected it in ~/.pg_service.conf or PGSERVICEFILE")
    from_outside = {o.keyword.decode(): o.val.decode() for o in defaults if o.val is not None and o.compiled != o.val}
    compiled = {o.keyword.decode(): o.compiled.decode() for o in defaults if o.compiled is not None}
    parameters = {"port": compiled.get("port", "5432")} | from_outside | explicit
    parameters.setdefault("user", next((o.val.decode() for o in defaults if o.keyword == b"user" and o.val), ""))
    if service:
        parameters["service"] = service
    parameters.setdefault("dbname", parameters["user"])
    _require_plain(parameters)
    return parameters


def _defined(service: str) -> bool:
    """Whether libpq finds the service, which it reports only when it starts to connect."""
    try:
        psycopg.connect(f"service={service} host=/nonexistent hostaddr='' port=1", connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return "service" not in str(error)
    return True


def _located(host: str, hostaddr: str, port: int) -> tuple[str, str, tuple[str, ...]]:
    """Return the canonical host, the address to use, and other names of the host."""
    if not host and not hostaddr:
        host = next((p for p in ("/var/run/postgresql", "/tmp") if Path(p).is_dir()), "localhost")
    if host.startswith("@"):
        raise TargetRefused(f"host = {host!r}, an abstract socket; expected a folder or a host name")
    if host.startswith("/"):
        if hostaddr:
            raise TargetRefused(f"hostaddr = {hostaddr!r} with a socket folder as host; expected only one of them")
        return os.path.normpath(host), "", ()
    if not (host or hostaddr).isascii():
        raise TargetRefused(f"host = {host or hostaddr!r}; expected a name in ASCII: other letters can look alike")
    host = canonical(host or hostaddr)
    known, aliases = addresses(host, port)
    chosen = canonical(hostaddr) if hostaddr else known[0]
    if chosen not in known:
        raise TargetRefused(f"hostaddr = {hostaddr!r}, but {host} is {', '.join(known)}; expected one of these")
    require_sensible(host, chosen)
    return host, chosen, aliases


def _mode(parameters: Mapping[str, str], address: str, tls: bool) -> str:
    """Return the sslmode: connections to other machines are encrypted unless the user chose `tls = false`."""
    mode = parameters.get("sslmode", "")
    if not address or ipaddress.ip_address(address).is_loopback or not tls:
        return mode or "prefer"
    if not mode:
        return "verify-full" if parameters.get("sslrootcert") else "require"
    if mode not in _SAFE_MODES:
        raise TargetRefused(
            f"sslmode = {mode!r}; expected {', '.join(_SAFE_MODES)} for another machine, or tls = false"
        )
    return mode


def _numeric(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address from any notation: also 127.1, 2130706433, 0x7f.1 and ::ffff:127.0.0.1."""
    try:
        ip = ipaddress.ip_address(text.split("%")[0] if ":" in text else text)
    except ValueError:
        if not re.fullmatch(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+)){0,3}", text):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except OSError:
            return None
    return (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip


def _translated(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the IPv4 address to which a gateway translates this address; "" if none does."""
    if ip.version == 4 or int(ip) < 2:
        return ""
    return next(
        (str(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)) for net, shift in _TRANSLATED if ip in net), ""
    )


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """One service: its name, and the IP address that every connection to it uses."""

    scheme: str
    host: str
    port: int
    address: str
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """`scheme://host:port`: the name that the user allows and confirms."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def words(self) -> tuple[str, ...]:
        """The names that could contain a word for production."""
        return (self.host, *self.aliases)


def resolve_origin(url: str) -> Origin:
    """Return the origin of a base URL. Raises UsageError for more than an origin, ServerError, TargetRefused."""
    try:
        if not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+/?", url):
            raise ValueError
        parts = urlsplit(url)
        host, port = canonical(parts.hostname or ""), parts.port or _PORTS[parts.scheme]
        if not host:
            raise ValueError
    except ValueError:
        shown = re.sub(r"[?#].*", "?...", re.sub(r"//.*@", "//...@", url))  # without a password or a token
        raise UsageError(f"url = {shown!r}; expected http(s)://host[:port] and nothing more") from None
    known, aliases = addresses(host, port)
    require_sensible(host, known[0])
    return Origin(parts.scheme, host, port, known[0], aliases)


# Admission: a target must be named and confirmed, and confirmed again if it looks like production.

_PRODUCTION = re.compile(
    r"(?<!pre)(?<!non)(production|(prod|prd)(?![a-z]))"  # at the end of a word too: appprod
    r"|(?<![a-z])(my|our|the)?(prod|prd|live|master|primary)(db|sql|pg|app)?(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Permission:
    """The user's consent: `allow` in the configuration, `confirm` on the command line, or typed when asked.

    Each text is the name of a target: `host:port/database` or `https://host:port`.
    """

    allow: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    production: tuple[str, ...] = ()
    ask: Callable[[str], str] | None = None


def admit(target: Address | Origin, permission: Permission) -> None:
    """Raise TargetRefused, naming the option to use, unless perfkit may use this database or service."""
    name, allow = target.name, set(map(normal, permission.allow))
    shown = f"{name} ({target.address})" if target.address not in ("", target.host) else name
    if allow and name not in allow:
        raise TargetRefused(f"{shown} is not in 'allow' ({', '.join(sorted(allow))}); expected \"{name}\" in it")
    suspect = looks_like_production(target.words)
    if suspect and name not in map(normal, permission.production):
        raise TargetRefused(
            f"{shown} looks like production ({suspect!r}); to use it anyway: --production {name}, or "
            "'production' in the configuration"
        )
    if name not in map(normal, permission.confirm):
        if permission.ask is None:
            raise TargetRefused(f"{shown} was not started by perfkit; to use it: --confirm {name}")
        if normal(permission.ask(f"{shown} was not started by perfkit. To use it, type its name")) != name:
            raise TargetRefused(f"{shown}: the typed name differs; nothing was sent to it")
    plain = isinstance(target, Origin) and target.scheme == "http"
    if plain and not ipaddress.ip_address(target.address).is_loopback and name not in allow:
        raise TargetRefused(f"{name}: not encrypted; expected https, or this exact text in 'allow'")


def normal(text: str) -> str:
    """Return a target's name in canonical spelling; return any other text unchanged, which matches no target."""
    if url := re.fullmatch(r"(https?)://(\[[^\]]+\]|[^/:\[\]]+)(?::(\d+))?/?", text.strip(), re.IGNORECASE):
        scheme = url[1].lower()
        return f"{scheme}://{bracketed(canonical(url[2]))}:{int(url[3] or _PORTS[scheme])}"
    if database := re.fullmatch(r"(/.*|\[[^\]]+\]|[^/:\[\]]+):(\d+)/(.+)", text.strip()):
        host = database[1] if database[1].startswith("/") else bracketed(canonical(database[1]))
        return f"{host}:{int(database[2])}/{database[3]}"
    return text


def looks_like_production(names: Iterable[str]) -> str:
    """Return the first name that contains a word for production; "" if none does."""
    return next((name for name in names if _PRODUCTION.search(name.lower())), "")


# The audit: what perfkit sent to a target that it did not start; statements and times, never data.


class Audit:
    """Writer of `audit.jsonl`, one JSON object per line: each statement (`n`) before it is sent, then its end (`done`).

    Without a path, nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._numbers = path, count(1)

    @contextmanager
    def noted(self, target: str, statement: str) -> Iterator[None]:
        """Record a statement without its parameters' values; afterwards its duration and error."""
        number, start, error = next(self._numbers), perf_counter(), ""
        self._write({"n": number, "target": target, "statement": statement})
        try:
            yield
        except BaseException as failure:
            error = getattr(failure, "sqlstate", None) or type(failure).__name__
            raise
        finally:
            self._write({"done": number, "target": target, "seconds": round(perf_counter() - start, 4), "error": error})

    def load(
        self, target: str, scenario: str, arm: str, statements: Sequence[str], requests: int | None, seconds: float
    ) -> None:
        """Record a round of load: its statements, the number of requests, and the duration."""
        load = {"scenario": scenario, "arm": arm, "statements": list(statements), "requests": requests}
        self._write({"target": target, "load": load, "seconds": round(seconds, 4)})

    def _write(self, entry: dict[str, object]) -> None:
        """Append an entry and flush. Raises BundleError, because a run that cannot be audited must stop."""
        if self.path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, **{k: v for k, v in entry.items() if v != ""}}) + "\n")
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be written ({error.strerror}); the run stops here") from None


def audited(audit: Audit, target: str) -> type[psycopg.Cursor[Row]]:
    """Return a cursor class that records every statement; its rows are dictionaries."""

    class Noted(Extended[Row]):
        def __init__(self, connection: Connection, *, row_factory: RowFactory[Row] | None = None) -> None:
            super().__init__(connection, row_factory=row_factory or dict_row)

        def execute(self, query: Any, params: Params | None = None, **options: Any) -> Self:
            with audit.noted(target, _text(query)), limited(self.connection):
                return super().execute(query, params, **options)

        def executemany(self, query: Query, params_seq: Iterable[Params], **options: Any) -> None:
            with audit.noted(target, _text(query)), limited(self.connection):
                super().executemany(query, params_seq, **options)

        def stream(self, query: Query, params: Params | None = None, **options: Any) -> Iterator[Row]:
            with audit.noted(target, _text(query)), limited(self.connection):
                yield from super().stream(query, params, **options)

        @contextmanager
        def copy(self, statement: Query, params: Params | None = None, **options: Any) -> Iterator[psycopg.Copy]:
            with (
                audit.noted(target, _text(statement)),
                limited(self.connection),
                super().copy(statement, params, **options) as copy,
            ):
                yield copy

    return Noted


def _text(query: Query) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string()
    return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)

"""Guards: where a target really is, whether it may be used, and the audit of what was done."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from perfkit.base.errors import BundleError, ServerError, TargetRefused, UsageError
from perfkit.postgres.catalog import limited
from perfkit.postgres.commands import Extended

_SECRETS = {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
_SAFE_MODES = ("require", "verify-ca", "verify-full")
# What belongs to others: settings to the arms, and nobody wants TLS keys in a file or a replication stream.
_UNWANTED = ("options", "replication", "sslkeylogfile")
# Networks whose addresses stand for an IPv4 address in their last bits: IPv4-compatible, NAT64, 6to4.
_TRANSLATED = ((ipaddress.IPv6Network("::/96"), 0), (ipaddress.IPv6Network("64:ff9b::/96"), 0),
               (ipaddress.IPv6Network("2002::/16"), 80))  # fmt: skip
# What libpq may add by itself from the environment or a service file, and must not.
_PINNED = ("host", "hostaddr", "port", "dbname", "user", "sslmode", "options", "target_session_attrs")
_environment = threading.Lock()


@dataclass(frozen=True, slots=True)
class Address:
    """One database: as it was named, and the IP address that every connection to it goes to."""

    host: str
    address: str  # "" for a socket folder
    port: int
    dbname: str
    user: str
    service: str
    aliases: tuple[str, ...]  # other names of the host
    parameters: Mapping[str, str]  # the rest for libpq, without secrets

    @property
    def name(self) -> str:
        """`host:port/dbname`: what the user allows and confirms."""
        return f"{bracketed(self.host)}:{self.port}/{self.dbname}"

    @property
    def words(self) -> tuple[str, ...]:
        """What could say that it is production."""
        return (self.host, *self.aliases, self.dbname, self.service, self.user)

    @property
    def local(self) -> bool:
        """Whether connections do not leave this machine, as far as the address tells."""
        return not self.address or ipaddress.ip_address(self.address).is_loopback

    def conninfo(self, dbname: str = "") -> str:
        """For libpq, with everything given that could lead elsewhere; a password it finds by itself."""
        given = dict(self.parameters) | {"host": self.host, "port": str(self.port), "user": self.user}
        given["dbname"] = dbname or self.dbname
        given |= {"hostaddr": self.address, "options": "", "target_session_attrs": "any"}  # "" outranks PGHOSTADDR
        if self.service:
            given["service"] = self.service  # it may hold the password; what is given here outranks it
        return make_conninfo("", **given)


def resolve(db: str, tls: bool = True) -> Address:
    """The address that a libpq string, URI or `service=NAME` means here, with the environment as libpq reads it.

    `tls=False` is the user's word that the way there needs none.
    Raises UsageError for what cannot be meant, TargetRefused for what could lead astray, ServerError for a
    name that has no address.
    """
    given = _read(db)
    for key in ("host", "hostaddr", "port"):
        if "," in given.get(key, ""):
            raise TargetRefused(f"{key} = {given[key]!r}; expected one host, for load must know where it goes")
    for key in _UNWANTED:
        if given.get(key):
            raise TargetRefused(f"{key} = {given[key]!r}; expected none: it changes what a session is")
    if not given.get("dbname"):
        raise UsageError("no database is named; expected dbname=... or a service that has one")
    port = given.get("port") or "5432"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"port = {port!r}; expected a number from 1 to 65535")
    host, address, aliases = _located(given.get("host", ""), given.get("hostaddr", ""), int(port))
    parameters = {k: v for k, v in given.items() if k not in (*_PINNED, *_SECRETS, "service", "requiressl")}
    parameters["sslmode"] = _mode(given, address, tls)
    return Address(
        host, address, int(port), given["dbname"], given.get("user", ""), given.get("service", ""), aliases,
        parameters,
    )  # fmt: skip


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def canonical(host: str) -> str:
    """A host's one spelling: lower case, no final dot, and an address in its usual form."""
    text = host.strip().lower().rstrip(".").removeprefix("[").removesuffix("]")
    found = _numeric(text)
    return str(found) if found else text


def addresses(host: str, port: int) -> tuple[list[str], tuple[str, ...]]:
    """The addresses of a host, first choice first, and its other names. Raises ServerError."""
    if literal := _numeric(host):
        return [str(literal)], ()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except (OSError, ValueError):
        raise ServerError(f"{host!r} has no address here; expected a host that can be resolved") from None
    if canonical(host) == "localhost":  # many listen on 127.0.0.1 only, and only one address will be used
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    others = {canonical(name) for _, _, _, name, _ in found if name} - {canonical(host)}
    return list(dict.fromkeys(_plain(str(entry[4][0])) for entry in found)), tuple(sorted(others))


def here(address: str) -> bool:
    """Whether an address is one of this machine's: only then can it be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def require_sensible(host: str, address: str) -> None:
    """Raise TargetRefused for addresses that are nobody's, or that only a trick would lead to."""
    ip = ipaddress.ip_address(address)
    if inner := _translated(ip):
        require_sensible(f"{host} ({address})", inner)
    elif ip.is_multicast or (ip.version == 4 and (ip.is_reserved or int(ip) < 1 << 24)) or ip.is_unspecified:
        raise TargetRefused(f"{host} is {address}; expected the address of one machine")
    if ip.is_link_local:
        raise TargetRefused(f"{host} is {address}, a link-local address; expected a database's or a service's")
    if host == "localhost" and not ip.is_loopback:
        raise TargetRefused(f"localhost is {address}, which is not this machine; expected a loopback address")
    if ip.is_loopback and host != "localhost" and not _numeric(host):
        raise TargetRefused(
            f"{host} is {address}, this machine; expected 'localhost' where that is meant (a tunnel, a pooler?)"
        )


def _require_plain(given: Mapping[str, str]) -> None:
    """Raise UsageError for a connection string where a name belongs; it may hold a password and is not repeated."""
    for key in ("host", "hostaddr", "port", "dbname", "user", "service"):
        text = given.get(key, "")
        if "://" in text or re.search(r"\bpassword\s*=", text) or ("@" in text[1:] and key in ("host", "hostaddr")):
            raise UsageError(f"{key} holds a connection string or a password; expected a name")


def _read(db: str) -> dict[str, str]:
    """Explicit values before the service's before the environment's, as in libpq."""
    try:
        explicit = {key: str(value) for key, value in conninfo_to_dict(db).items() if value is not None}
    except psycopg.Error:
        raise UsageError("db cannot be read; expected service=NAME, a libpq string or a postgresql:// URI") from None
    if explicit.keys() & _SECRETS:
        raise UsageError("db holds a password; expected none: use ~/.pgpass, PGPASSFILE or PGPASSWORD")
    service = explicit.get("service") or os.environ.get("PGSERVICE", "")
    _require_plain(explicit | {"service": service})
    with _environment:
        before = os.environ.get("PGSERVICE")
        if service:
            os.environ["PGSERVICE"] = service
        try:
            found = pq.Conninfo.get_defaults()
        except psycopg.Error:
            found = []
        finally:
            if before is None:
                os.environ.pop("PGSERVICE", None)
            else:
                os.environ["PGSERVICE"] = before
    if service and not _defined(service):
        raise UsageError(f"service={service}: not defined; expected it in ~/.pg_service.conf or PGSERVICEFILE")
    usual = {o.keyword.decode(): o.val.decode() for o in found if o.val is not None and o.compiled != o.val}
    default = {o.keyword.decode(): o.compiled.decode() for o in found if o.compiled is not None}
    given = {"port": default.get("port", "5432")} | usual | explicit
    given.setdefault("user", next((o.val.decode() for o in found if o.keyword == b"user" and o.val), ""))
    if service:
        given["service"] = service
    given.setdefault("dbname", given["user"])
    _require_plain(given)
    return given


def _defined(service: str) -> bool:
    """Whether libpq finds the service: it says so only when it begins to connect."""
    try:
        psycopg.connect(f"service={service} host=/nonexistent hostaddr='' port=1", connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return "service" not in str(error)
    return True


def _located(host: str, hostaddr: str, port: int) -> tuple[str, str, tuple[str, ...]]:
    """The host in its one spelling, the address to use, and other names."""
    if not host and not hostaddr:
        host = next((p for p in ("/var/run/postgresql", "/tmp") if Path(p).is_dir()), "localhost")
    if host.startswith("@"):
        raise TargetRefused(f"host = {host!r}, an abstract socket; expected a folder or a host name")
    if host.startswith("/"):
        if hostaddr:
            raise TargetRefused(f"hostaddr = {hostaddr!r} beside a socket folder; expected one of them")
        return os.path.normpath(host), "", ()
    if not (host or hostaddr).isascii():
        raise TargetRefused(f"host = {host or hostaddr!r}; expected it in ASCII: other letters can look alike")
    host = canonical(host or hostaddr)
    found, aliases = addresses(host, port)
    chosen = found[0]
    if hostaddr:
        chosen = canonical(hostaddr)
        if chosen not in found:
            raise TargetRefused(f"hostaddr = {hostaddr!r}, but {host} is {', '.join(found)}; expected one of these")
    require_sensible(host, chosen)
    return host, chosen, aliases


def _mode(given: Mapping[str, str], address: str, tls: bool) -> str:
    """How far TLS is insisted on: beyond this machine it must be, unless the user said otherwise."""
    mode = given.get("sslmode", "")
    if not address or ipaddress.ip_address(address).is_loopback or not tls:
        return mode or "prefer"
    if not mode:
        return "verify-full" if given.get("sslrootcert") else "require"
    if mode not in _SAFE_MODES:
        raise TargetRefused(
            f"sslmode = {mode!r}; expected {', '.join(_SAFE_MODES)} beyond this machine, or tls = false"
        )
    return mode


def _numeric(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address in any of the ways to write one: 127.1, 2130706433, 0x7f.1 and ::ffff:127.0.0.1 too."""
    try:
        found = ipaddress.ip_address(text.split("%")[0] if ":" in text else text)
    except ValueError:
        if not re.fullmatch(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+)){0,3}", text):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except OSError:
            return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _translated(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The IPv4 address to which a gateway would translate this one; "" for most."""
    if ip.version == 4 or int(ip) < 2:
        return ""
    return next(
        (str(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)) for net, shift in _TRANSLATED if ip in net), ""
    )


def _plain(address: str) -> str:
    return str(_numeric(address) or address)


# Where an HTTP service is: scheme, host and port of a URL, resolved once.

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """One service: as it was named, and the IP address that every connection to it goes to."""

    scheme: str
    host: str
    port: int
    address: str
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """`scheme://host:port`: what the user allows and confirms."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def words(self) -> tuple[str, ...]:
        """What could say that it is production."""
        return (self.host, *self.aliases)

    @property
    def local(self) -> bool:
        """Whether connections do not leave this machine, as far as the address tells."""
        return ipaddress.ip_address(self.address).is_loopback


def resolve_origin(url: str) -> Origin:
    """The origin of a base URL. Raises UsageError for more than an origin, ServerError, TargetRefused."""
    try:
        if not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+/?", url):
            raise ValueError
        parts = urlsplit(url)
        host, port = canonical(parts.hostname or ""), parts.port or _PORTS[parts.scheme]
        if not host:
            raise ValueError
    except ValueError:
        raise UsageError(f"url = {_shown(url)!r}; expected http(s)://host[:port] and nothing more") from None
    found, aliases = addresses(host, port)
    require_sensible(host, found[0])
    return Origin(parts.scheme, host, port, found[0], aliases)


def _shown(url: str) -> str:
    """A URL that may be shown: without what may be a password or a token."""
    return re.sub(r"[?#].*", "?...", re.sub(r"//.*@", "//...@", url))


# Who may be loaded: a target that was named and confirmed, and meant even if it looks like production.

_PRODUCTION = re.compile(
    r"(?<!pre)(?<!non)(production|(prod|prd)(?![a-z]))"  # at the end of a word too: appprod
    r"|(?<![a-z])(my|our|the)?(prod|prd|live|master|primary)(db|sql|pg|app)?(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Permission:
    """What the user said: `allow` in the configuration, `confirm` on the command line, or typed when asked.

    Each text is a target's name: `host:port/database` or `https://host:port`.
    """

    allow: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    production: tuple[str, ...] = ()
    ask: Callable[[str], str] | None = None


def admit(target: Address | Origin, permission: Permission) -> None:
    """Raise TargetRefused, saying what to do, unless this database or service may be used."""
    name, allow = target.name, set(map(normal, permission.allow))
    shown = f"{name} ({target.address})" if target.address not in ("", target.host) else name
    if allow and name not in allow:
        raise TargetRefused(f"{shown} is not in 'allow' ({', '.join(sorted(allow))}); expected \"{name}\" in it")
    suspect = looks_like_production(target.words)
    if suspect and name not in map(normal, permission.production):
        raise TargetRefused(
            f"{shown} looks like production ({suspect!r}); if it is meant: --production {name}, or "
            "'production' in the configuration"
        )
    if name not in map(normal, permission.confirm):
        if permission.ask is None:
            raise TargetRefused(f"{shown} was not started by perfkit; if it may be used: --confirm {name}")
        if normal(permission.ask(f"{shown} was not started by perfkit. To use it, type its name")) != name:
            raise TargetRefused(f"{shown}: something else was typed; nothing was sent to it")
    if isinstance(target, Origin) and target.scheme == "http" and not target.local and name not in allow:
        raise TargetRefused(f"{name}: not encrypted; expected https, or this very text in 'allow'")


def normal(text: str) -> str:
    """A target's name in its one spelling; what is none stays as it is and matches nothing."""
    if found := re.fullmatch(r"(https?)://(\[[^\]]+\]|[^/:\[\]]+)(?::(\d+))?/?", text.strip(), re.IGNORECASE):
        scheme = found[1].lower()
        port = int(found[3] or (443 if scheme == "https" else 80))
        return f"{scheme}://{bracketed(canonical(found[2]))}:{port}"
    if found := re.fullmatch(r"(/.*|\[[^\]]+\]|[^/:\[\]]+):(\d+)/(.+)", text.strip()):
        host = found[1] if found[1].startswith("/") else bracketed(canonical(found[1]))
        return f"{host}:{int(found[2])}/{found[3]}"
    return text


def looks_like_production(names: Iterable[str]) -> str:
    """The first of the names that holds a word for production; "" if none does."""
    return next((name for name in names if _PRODUCTION.search(name.lower())), "")


# What was done to a target that perfkit did not start: statements and times, never data.


class Audit:
    """`audit.jsonl`, one JSON object a line: a statement (`n`) before it is sent, and its end (`done`) after.

    Without a path, nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._numbers = path, count(1)

    @contextmanager
    def noted(self, target: str, statement: str) -> Iterator[None]:
        """A statement as it is sent, without its parameters' values; then how long it took, and how it failed."""
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
        """A round of load: what was sent, how often, and how long the round took."""
        what = {"scenario": scenario, "arm": arm, "statements": list(statements), "requests": requests}
        self._write({"target": target, "load": what, "seconds": round(seconds, 4)})

    def _write(self, entry: dict[str, Any]) -> None:
        """Append and flush. Raises BundleError: what cannot be recorded must not go on."""
        if self.path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, **{k: v for k, v in entry.items() if v != ""}}) + "\n")
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be written ({error.strerror}); the run ends here") from None


def audited(audit: Audit, target: str) -> type[psycopg.Cursor[dict[str, Any]]]:
    """A cursor class whose statements are all noted; its rows are dictionaries."""

    class Noted(Extended[dict[str, Any]]):
        def __init__(self, connection: Any, *, row_factory: Any = None) -> None:
            super().__init__(connection, row_factory=row_factory or dict_row)

        def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
            with audit.noted(target, _text(query)), limited(self.connection):
                return super().execute(query, params, **options)

        def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
            with audit.noted(target, _text(query)), limited(self.connection):
                super().executemany(query, params_seq, **options)

        def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[dict[str, Any]]:
            with audit.noted(target, _text(query)), limited(self.connection):
                yield from super().stream(query, params, **options)

        @contextmanager
        def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[psycopg.Copy]:
            with (
                audit.noted(target, _text(statement)),
                limited(self.connection),
                super().copy(statement, params, **options) as copy,
            ):
                yield copy

    return Noted


def _text(query: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string()
    return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)

"""What a server can do for perfkit, and what else happens there during a round.

`checkpoints`, `autovacuums`   1 where the checkpointer, or autovacuum in any database of the server, was at work
`blocks_read`, `blocks_hit`    blocks that the arm's database took from outside shared_buffers, and from inside
`steal`                        share of the processors' time that the hypervisor gave to other machines
`others`                       processes that ran, or waited to, when the round was about to begin: per processor

The first four are of servers that perfkit started (version 16 or later); the last two of Linux. A session publishes
its counts when it ends, or once a second while it goes idle: a pool's last blocks count in the next round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Any, Literal

from psycopg import sql
from psycopg.conninfo import make_conninfo

from perfkit.base.errors import TargetRefused
from perfkit.postgres import catalog, databases
from perfkit.postgres.catalog import Connection
from perfkit.postgres.databases import Database, connected
from perfkit.postgres.servers import External

State = Literal["yes", "partly", "no"]
SPARE = 5  # connections that a burst must leave to others
CLOCK_S = 1.0  # clocks further apart than this make times of both sides hard to compare
DUMPED = 18  # the newest server that the embedded pg_dump reads
_PINGS = 5
_SHOWN = 3  # tables named, of those that something is wrong with


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that perfkit does: whether it can here, why, and what an owner can run to allow it."""

    name: str
    state: State
    detail: str
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Everything that was found out about one database."""

    target: str
    version: str
    found: tuple[Capability, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How the database was reached: TLS, a pooler, ms of the quickest round trip, how far the clocks are apart."""

    address: str
    tls: str
    pooler: bool
    round_trip_ms: float
    clock_s: float  # the server's minus ours
    clock_error_s: float


def probe(external: External) -> Capabilities:
    """Ask the server, on one connection; nothing is changed. Raises ServerError with its words."""
    with connected(external) as connection:
        facts = catalog.row(connection, "capabilities")
        way = _way(external, connection)
        names = {"user": facts["user"], "owned_by": facts["owned_by"], "dbname": external.address.dbname}
        quoted = {name: sql.Identifier(text).as_string(connection) for name, text in names.items()}
    commands = {kind: allowing(external, kind) for kind in ("writes", "ddl")}
    found = judge(facts | {"quoted": quoted, "commands": commands}, way, external.permissions)
    return Capabilities(external.name, str(facts["version"]), tuple(found))


def allowing(external: External, kind: str) -> str:
    """The command with which a database's owner allows "writes" or "ddl" beside what is allowed there already."""
    address = external.address
    if address.service:
        db = make_conninfo("", service=address.service, dbname=address.dbname)
    else:
        db = make_conninfo("", host=address.host, port=address.port, dbname=address.dbname, user=address.user)
    return " ".join(["perfkit allow --db", quote(db), *(f"--{k}" for k in sorted({kind, *external.permissions}))])


def require_allowed(external: External, kind: str, otherwise: str) -> None:
    """Raise TargetRefused, saying what is so otherwise, unless the owner allowed "writes" or "ddl"."""
    if kind not in external.permissions:
        allow = allowing(external, kind)
        raise TargetRefused(f"{external.name}: {otherwise}; its owner can allow that with: {allow}")


def require_direct(external: External, purpose: str) -> None:
    """Raise TargetRefused behind a pooler."""
    if external.pooler:
        raise TargetRefused(f"{external.name}: behind a pooler; expected a direct connection {purpose}")


def headroom(external: External, users: int) -> None:
    """Raise TargetRefused unless `users` more connections leave SPARE; behind a pooler it is the pooler's matter."""
    if external.pooler:
        return
    with connected(external) as connection:
        left = free_connections(catalog.row(connection, "capabilities"))
    if left < users + SPARE:
        raise TargetRefused(
            f"{external.name}: {left} connections are free; expected {users + SPARE} for {users} users and {SPARE} "
            "to spare: fewer users, or a larger limit"
        )


def free_connections(facts: Mapping[str, Any]) -> int:
    """What this role may still open: the least that server, database and role leave."""
    left: list[int] = [facts["connections"] - facts["connected"]]
    for name in ("role", "database"):
        if facts[f"{name}_limit"] >= 0:
            left.append(facts[f"{name}_limit"] - facts[f"{name}_connected"])
    return max(0, min(left))


def judge(facts: Mapping[str, Any], way: Way, permissions: frozenset[str]) -> Iterator[Capability]:
    """What follows from the facts, in the order in which a user needs it. Pure."""
    yield _reached(facts, way)
    yield _connections(facts, way)
    yield _clock(way)
    yield _timeouts(facts)
    yield Capability("plans", "yes", "EXPLAIN, and EXPLAIN ANALYZE in a read-only transaction that is rolled back")
    yield _copy(facts, way)
    yield _clones(facts, way, permissions)
    yield _in_place(facts, way, permissions)
    yield _writes(facts, permissions)
    yield _statements(facts)
    yield _extension(facts, "hypothetical indexes", "hypopg")
    yield _logging(facts)


def _reached(facts: Mapping[str, Any], way: Way) -> Capability:
    said = [f"PostgreSQL {facts['version']} at {way.address} as {facts['user']}", way.tls]
    said += [f"{way.round_trip_ms:.1f} ms a round trip", f"{facts['bytes'] / 1e6:,.0f} MB"]
    said += ["a standby"] if facts["standby"] else []
    return Capability("reach it", "yes", ", ".join(said))


def _connections(facts: Mapping[str, Any], way: Way) -> Capability:
    left = free_connections(facts)
    if way.pooler:
        return Capability(
            "connections",
            "partly",
            "through a pooler: no prepared statements, session settings or session locks; no copies, no indexes",
        )
    state: State = "yes" if left >= 30 + SPARE else "partly" if left > SPARE else "no"
    return Capability("connections", state, f"{left} free, so at most {max(0, left - SPARE)} users at once")


def _clock(way: Way) -> Capability:
    near = abs(way.clock_s) <= CLOCK_S + way.clock_error_s
    told = f"{way.clock_s * 1000:+,.0f} ms from ours, known to {way.clock_error_s * 1000:,.1f} ms"
    return Capability("clock", "yes" if near else "partly", told)


def _timeouts(facts: Mapping[str, Any]) -> Capability:
    names = {"statement": "statement_timeout", "lock": "lock_timeout", "idle transaction": "idle_timeout"}
    said = [f"{name} {_duration(int(facts[key]))}" for name, key in names.items()]
    return Capability("timeouts", "yes", ", ".join(said) + "; perfkit sets its own for what it sends")


def _duration(ms: int) -> str:
    """A time limit as PostgreSQL shows it.

    >>> _duration(0), _duration(90_000), _duration(120_000)
    ('none', '90s', '2min')
    """
    if not ms:
        return "none"
    return f"{ms // 60_000}min" if ms % 60_000 == 0 else f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def _copy(facts: Mapping[str, Any], way: Way) -> Capability:
    name = "private copy"
    if way.pooler:
        return Capability(name, "no", "pg_dump needs a direct connection")
    if facts["major"] > DUMPED:
        return Capability(name, "no", f"the embedded pg_dump reads servers up to version {DUMPED}")
    if hidden := facts["unreadable"]:
        grant = f"GRANT pg_read_all_data TO {facts['quoted']['user']}"
        return Capability(name, "no", f"{some(hidden)} cannot be read", (grant,))
    return Capability(name, "yes", "whole, sample or generated: the database is only read")


def _clones(facts: Mapping[str, Any], way: Way, permissions: frozenset[str]) -> Capability:
    lacking, allow, quoted = [], [], facts["quoted"]
    if not facts["createdb"]:
        lacking.append("may not create databases")
        allow.append(f"ALTER ROLE {quoted['user']} CREATEDB")
    if not facts["owner"]:
        lacking.append(f"is not {facts['owned_by']}, who owns it")
        give = f"ALTER DATABASE {quoted['dbname']} OWNER TO {quoted['user']}"  # never the role of a superuser
        allow.append(give if facts["owner_super"] else f"GRANT {quoted['owned_by']} TO {quoted['user']}")
    able = "while nobody else is connected to it: CREATE DATABASE needs that of its template"
    found = Capability("clones beside it", "no" if lacking else "yes", able, tuple(allow))
    return _with_ddl(facts, way, permissions, found, lacking)


def _in_place(facts: Mapping[str, Any], way: Way, permissions: frozenset[str]) -> Capability:
    others = facts["not_owned"]
    state: State = "yes" if not others else "partly" if len(others) < facts["tables"] else "no"
    allow = tuple(f"GRANT {role} TO {facts['quoted']['user']}" for role in facts["table_owners"])
    found = Capability("indexes in place", state, "built CONCURRENTLY and removed at the end", allow)
    return _with_ddl(facts, way, permissions, found, [f"does not own {some(others)}"] if others else [])


def _with_ddl(
    facts: Mapping[str, Any], way: Way, permissions: frozenset[str], found: Capability, lacking: list[str]
) -> Capability:
    """What also needs a direct connection to a primary and its owner's word; `lacking` takes the detail's place."""
    if way.pooler or facts["standby"]:
        return Capability(found.name, "no", "a standby" if facts["standby"] else "behind a pooler")
    if "ddl" not in permissions:
        lacking = [*lacking, "has no permission for it"]
        found = replace(found, state="no", allow=(*found.allow, facts["commands"]["ddl"]))
    return replace(found, detail=f"{facts['user']} {', '.join(lacking)}") if lacking else found


def _writes(facts: Mapping[str, Any], permissions: frozenset[str]) -> Capability:
    if "writes" in permissions and not facts["standby"]:
        return Capability("writes in place", "yes", "its owner allowed load that changes rows")
    if facts["standby"]:
        return Capability("writes in place", "no", "a standby")
    return Capability("writes in place", "no", "load may only read there", (facts["commands"]["writes"],))


def _statements(facts: Mapping[str, Any]) -> Capability:
    extension, loaded = "pg_stat_statements", facts["statements_loaded"]
    preload = () if loaded else (f"shared_preload_libraries = '{extension}' and a restart",)
    found = _extension(facts, "slow statements", extension, preload)
    if found.state == "no" or facts["reads_stats"]:
        return found
    grant = f"GRANT pg_read_all_stats TO {facts['quoted']['user']}"
    return Capability(found.name, "partly", f"{extension}, of which only one's own texts can be seen", (grant,))


def _extension(facts: Mapping[str, Any], name: str, extension: str, preload: tuple[str, ...] = ()) -> Capability:
    """What needs an extension, and `preload` before it."""
    schema, there = facts["extensions"].get(extension), extension in facts["available"]
    if schema and not preload:
        return Capability(name, "yes", f"{extension} in schema {schema}")
    if not there:
        return Capability(name, "no", f"no {extension} to be had here")
    create = () if schema else (f"CREATE EXTENSION {extension}",)
    return Capability(name, "no", f"no {extension}", (*preload, *create))


def _logging(facts: Mapping[str, Any]) -> Capability:
    shown = facts["log_min_duration"]
    said = "statements are not logged" if shown == "-1" else f"statements over {shown} are logged"
    said += ", with plans (auto_explain)" if facts["auto_explain_loaded"] else ""
    if facts["superuser"] or shown != "-1":
        return Capability("query logging", "yes", said)
    allow = f"ALTER ROLE {facts['quoted']['user']} SET log_min_duration_statement = '100ms'"
    return Capability("query logging", "partly", f"{said}; {facts['user']} cannot change that alone", (allow,))


def some(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _way(external: External, connection: Connection) -> Way:
    """The quickest of a few round trips bounds how far the clocks are apart."""
    trips = []
    for _ in range(_PINGS):
        start, began = perf_counter(), datetime.now(UTC)
        row = connection.execute("SELECT clock_timestamp() AS now").fetchone() or {}
        took = perf_counter() - start
        trips.append((took, (row["now"] - began).total_seconds() - took / 2))
    took, offset = min(trips)
    where = external.address.address or external.address.host
    plain = "not encrypted" if external.address.address else "not encrypted, through a socket"
    tls = "encrypted" if connection.pgconn.ssl_in_use else plain
    return Way(where, tls, external.pooler, took * 1000, offset, took / 2)


# What the server and the machine did beside a round: counters read before and after it, never inside.

_VERSION = 16  # the first that counts what checkpointer and autovacuum did
_STAT = Path("/proc/stat")
_STEAL, _TICKS = 7, 8  # among the columns of `cpu`; what follows them, guests' time, is in the users' already


class Surroundings(ExitStack):
    """Reads the counters over one connection to each server, which leaving it closes."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[int, Connection] = {}

    def read(self, place: Database | None) -> dict[str, float]:
        """The counters as they are now, for `between`; of no database those of the machine alone.

        Raises ServerError where the server is gone.
        """
        text = _STAT.read_text(encoding="ascii") if _STAT.is_file() else ""
        if place is None or place.site.foreign or place.site.version < _VERSION:
            return machine(text)
        key = id(place.site)
        if key not in self._connections:
            self._connections[key] = self.enter_context(databases.connected(place.site, user="postgres"))
        query = catalog.get("surroundings").encode()
        row = self._connections[key].execute(query, {"database": place.name}).fetchone()
        return {**(row or {}), **machine(text)}


def machine(stat: str) -> dict[str, float]:
    """Ticks of all processors together and those stolen, how many processors, and others that ran; of /proc/stat."""
    lines = [line.split() for line in stat.splitlines()]
    total = next((line[1:] for line in lines if line[:1] == ["cpu"]), [])
    running = next((int(line[1]) for line in lines if line[:1] == ["procs_running"]), 1)
    if len(total) < _TICKS:
        return {}
    ticks = [int(text) for text in total[:_TICKS]]
    cores = sum(line[0].startswith("cpu") for line in lines if line) - 1
    return {"ticks": sum(ticks), "stolen": ticks[_STEAL], "cores": max(cores, 1), "running": max(running - 1, 0)}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened between two readings; keys as in the module's first lines, absent where they were not read."""
    grown = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    found: dict[str, float] = {}
    for name in grown.keys() & {"checkpoints", "autovacuums"}:
        found[name] = float(grown[name] > 0)
    for name in grown.keys() & {"blocks_read", "blocks_hit"}:
        found[name] = float(grown[name])
    if "ticks" in grown:
        found["steal"] = grown["stolen"] / grown["ticks"] if grown["ticks"] else 0.0
        found["others"] = before["running"] / before["cores"]
    return found

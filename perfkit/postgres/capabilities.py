"""The capabilities of a server for perfkit, and its other activity during a round.

`checkpoints`, `autovacuums`   1 if the checkpointer, or autovacuum in any database of the server, was active
`blocks_read`, `blocks_hit`    blocks that the arm's database read from outside shared_buffers, and found inside
`steal`                        share of CPU time that the hypervisor gave to other machines
`others`                       other processes that ran or waited for a CPU just before the round, per CPU

The first four come from servers that perfkit started (version 16 or later), the last two from Linux. A session
publishes its counts when it ends, or once a second while it goes idle: a pool's last blocks count in the next round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Literal

from psycopg import sql
from psycopg.conninfo import make_conninfo

from perfkit.base.errors import TargetRefused
from perfkit.postgres import catalog, databases
from perfkit.postgres.catalog import Connection, Row
from perfkit.postgres.databases import Database, connected
from perfkit.postgres.parser import parser_version
from perfkit.postgres.servers import External

State = Literal["yes", "partly", "no"]
SPARE = 5  # connections that perfkit leaves free for others
CLOCK_S = 1.0  # with a larger offset, times of both machines are hard to compare
DUMPED = 18  # the newest server version that the embedded pg_dump reads
_PINGS = 5
_SHOWN = 3  # number of tables that a message names


@dataclass(frozen=True, slots=True)
class Capability:
    """One task of perfkit: whether it is possible here, why, and the SQL or command that enables it."""

    name: str
    state: State
    detail: str
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Everything that perfkit found out about one database."""

    target: str
    version: str
    found: tuple[Capability, ...]


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """The connection to the database: TLS, a pooler, the fastest round trip, and the offset between the clocks."""

    address: str
    tls: str
    pooler: bool
    round_trip_ms: float
    clock_s: float  # the server's clock minus this machine's
    clock_error_s: float


def probe(external: External) -> Capabilities:
    """Query the server over one connection, without changes. Raises ServerError with the server's message."""
    with connected(external) as connection:
        facts = catalog.row(connection, "capabilities")
        link = _link(external, connection)
        names = {"user": facts["user"], "owned_by": facts["owned_by"], "dbname": external.address.dbname}
        quoted = {name: sql.Identifier(text).as_string(connection) for name, text in names.items()}
    commands = {kind: allowing(external, kind) for kind in ("writes", "ddl")}
    found = judge(facts | {"quoted": quoted, "commands": commands}, link, external.permissions)
    return Capabilities(external.name, str(facts["version"]), tuple(found))


def allowing(external: External, kind: str) -> str:
    """Return the command by which the owner allows "writes" or "ddl" in addition to current permissions."""
    address = external.address
    if address.service:
        db = make_conninfo("", service=address.service, dbname=address.dbname)
    else:
        db = make_conninfo("", host=address.host, port=address.port, dbname=address.dbname, user=address.user)
    return " ".join(["perfkit allow --db", quote(db), *(f"--{k}" for k in sorted({kind, *external.permissions}))])


def require_allowed(external: External, kind: str, refusal: str) -> None:
    """Raise TargetRefused with `refusal` and the command that allows it, unless the owner allowed "writes" or "ddl"."""
    if kind not in external.permissions:
        allow = allowing(external, kind)
        raise TargetRefused(f"{external.name}: {refusal}; the owner can allow this with: {allow}")


def require_direct(external: External, purpose: str) -> None:
    """Raise TargetRefused if a pooler is in between."""
    if external.pooler:
        raise TargetRefused(f"{external.name}: behind a pooler; expected a direct connection {purpose}")


def headroom(external: External, users: int) -> None:
    """Raise TargetRefused unless `users` more connections leave SPARE free; a pooler enforces its own limit."""
    if external.pooler:
        return
    with connected(external) as connection:
        left = free_connections(catalog.row(connection, "capabilities"))
    if left < users + SPARE:
        raise TargetRefused(
            f"{external.name}: {left} connections are free; expected {users + SPARE} for {users} users and {SPARE} "
            "in reserve: use fewer users or raise the connection limit"
        )


def free_connections(facts: Row) -> int:
    """Return how many connections this role can still open under the limits of server, database and role."""
    left: list[int] = [facts["connections"] - facts["connected"]]
    for name in ("role", "database"):
        if facts[f"{name}_limit"] >= 0:
            left.append(facts[f"{name}_limit"] - facts[f"{name}_connected"])
    return max(0, min(left))


def judge(facts: Row, link: ConnectionFacts, permissions: frozenset[str]) -> Iterator[Capability]:
    """Yield the capabilities that follow from the facts, the most useful first."""
    yield _reached(facts, link)
    yield _connections(facts, link)
    yield _clock(link)
    yield _timeouts(facts)
    yield Capability("plans", "yes", "EXPLAIN, and EXPLAIN ANALYZE in a read-only transaction that is rolled back")
    yield _reading(facts)
    yield _copy(facts, link)
    yield _clones(facts, link, permissions)
    yield _in_place(facts, link, permissions)
    yield _writes(facts, permissions)
    yield _statements(facts)
    yield _extension(facts, "hypothetical indexes", "hypopg")
    yield _logging(facts)


def _reached(facts: Row, link: ConnectionFacts) -> Capability:
    parts = [f"PostgreSQL {facts['version']} at {link.address} as {facts['user']}", link.tls]
    parts += [f"{link.round_trip_ms:.1f} ms per round trip", f"{facts['bytes'] / 1e6:,.0f} MB"]
    parts += ["standby"] if facts["standby"] else []
    return Capability("reach it", "yes", ", ".join(parts))


def _connections(facts: Row, link: ConnectionFacts) -> Capability:
    left = free_connections(facts)
    if link.pooler:
        return Capability(
            "connections",
            "partly",
            "through a pooler: no prepared statements, session settings, session locks, copies or index builds",
        )
    state: State = "yes" if left >= 30 + SPARE else "partly" if left > SPARE else "no"
    return Capability("connections", state, f"{left} free, enough for {max(0, left - SPARE)} simultaneous users")


def _clock(link: ConnectionFacts) -> Capability:
    near = abs(link.clock_s) <= CLOCK_S + link.clock_error_s
    offset = f"{link.clock_s * 1000:+,.0f} ms from this machine's, ±{link.clock_error_s * 1000:,.1f} ms"
    return Capability("clock", "yes" if near else "partly", offset)


def _timeouts(facts: Row) -> Capability:
    names = {"statement": "statement_timeout", "lock": "lock_timeout", "idle transaction": "idle_timeout"}
    limits = [f"{name} {_duration(int(facts[key]))}" for name, key in names.items()]
    return Capability("timeouts", "yes", ", ".join(limits) + "; perfkit sets its own for its statements")


def _duration(ms: int) -> str:
    """Return a time limit as PostgreSQL shows it.

    >>> _duration(0), _duration(90_000), _duration(120_000)
    ('none', '90s', '2min')
    """
    if not ms:
        return "none"
    return f"{ms // 60_000}min" if ms % 60_000 == 0 else f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def _reading(facts: Row) -> Capability:
    """Return which version's parser reads statements here; it decides nothing about what may run."""
    if not (version := parser_version()):
        detail = "no parser here (brew install libpg_query): no rewrites, fewer example values"
        return Capability("SQL text", "partly", detail)
    newer = int(version.split(".")[0]) < facts["major"]
    words = "; syntax that only this newer server has gets no rewrites" if newer else ""
    return Capability("SQL text", "yes", f"read by the parser of PostgreSQL {version}{words}")


def _copy(facts: Row, link: ConnectionFacts) -> Capability:
    name = "private copy"
    if link.pooler:
        return Capability(name, "no", "pg_dump needs a direct connection")
    if facts["major"] > DUMPED:
        return Capability(name, "no", f"the embedded pg_dump reads servers up to version {DUMPED}")
    if hidden := facts["unreadable"]:
        grant = f"GRANT pg_read_all_data TO {facts['quoted']['user']}"
        return Capability(name, "no", f"{facts['user']} cannot read {some(hidden)}", (grant,))
    return Capability(name, "yes", "whole, sample or generated; perfkit only reads the database")


def _clones(facts: Row, link: ConnectionFacts, permissions: frozenset[str]) -> Capability:
    lacking, allow, quoted = [], [], facts["quoted"]
    if not facts["createdb"]:
        lacking.append("cannot create databases")
        allow.append(f"ALTER ROLE {quoted['user']} CREATEDB")
    if not facts["owner"]:
        lacking.append(f"does not own the database ({facts['owned_by']} does)")
        give = f"ALTER DATABASE {quoted['dbname']} OWNER TO {quoted['user']}"  # a superuser's role is never granted
        allow.append(give if facts["owner_super"] else f"GRANT {quoted['owned_by']} TO {quoted['user']}")
    able = "while no other session is connected: CREATE DATABASE requires that of its template"
    found = Capability("clones beside it", "no" if lacking else "yes", able, tuple(allow))
    return _with_ddl(facts, link, permissions, found, lacking)


def _in_place(facts: Row, link: ConnectionFacts, permissions: frozenset[str]) -> Capability:
    others = facts["not_owned"]
    state: State = "yes" if not others else "partly" if len(others) < facts["tables"] else "no"
    allow = tuple(f"GRANT {role} TO {facts['quoted']['user']}" for role in facts["table_owners"])
    found = Capability("indexes in place", state, "built CONCURRENTLY and removed at the end", allow)
    return _with_ddl(facts, link, permissions, found, [f"does not own {some(others)}"] if others else [])


def _with_ddl(
    facts: Row, link: ConnectionFacts, permissions: frozenset[str], found: Capability, lacking: list[str]
) -> Capability:
    """Return a capability that also needs a direct connection to a primary, and the owner's permission for DDL."""
    if link.pooler or facts["standby"]:
        return Capability(found.name, "no", "the server is a standby" if facts["standby"] else "behind a pooler")
    if "ddl" not in permissions:
        lacking = [*lacking, "has no permission for DDL"]
        found = replace(found, state="no", allow=(*found.allow, facts["commands"]["ddl"]))
    return replace(found, detail=f"{facts['user']} {', '.join(lacking)}") if lacking else found


def _writes(facts: Row, permissions: frozenset[str]) -> Capability:
    if "writes" in permissions and not facts["standby"]:
        return Capability("writes in place", "yes", "the owner allowed load that changes rows")
    if facts["standby"]:
        return Capability("writes in place", "no", "the server is a standby")
    return Capability("writes in place", "no", "load may only read", (facts["commands"]["writes"],))


def _statements(facts: Row) -> Capability:
    extension, loaded = "pg_stat_statements", facts["statements_loaded"]
    preload = () if loaded else (f"shared_preload_libraries = '{extension}' and a restart",)
    found = _extension(facts, "slow statements", extension, preload)
    if found.state == "no" or facts["reads_stats"]:
        return found
    grant = f"GRANT pg_read_all_stats TO {facts['quoted']['user']}"
    return Capability(
        found.name, "partly", f"{extension}, but only statements of {facts['user']} are visible", (grant,)
    )


def _extension(facts: Row, name: str, extension: str, preload: tuple[str, ...] = ()) -> Capability:
    """Return a capability that needs an extension, and `preload` before that."""
    schema, there = facts["extensions"].get(extension), extension in facts["available"]
    if schema and not preload:
        return Capability(name, "yes", f"{extension} in schema {schema}")
    if not there:
        return Capability(name, "no", f"{extension} is not available on this server")
    create = () if schema else (f"CREATE EXTENSION {extension}",)
    return Capability(name, "no", f"{extension} is not set up", (*preload, *create))


def _logging(facts: Row) -> Capability:
    shown = facts["log_min_duration"]
    logged = "statements are not logged" if shown == "-1" else f"statements over {shown} are logged"
    logged += ", with plans (auto_explain)" if facts["auto_explain_loaded"] else ""
    if facts["superuser"] or shown != "-1":
        return Capability("query logging", "yes", logged)
    allow = f"ALTER ROLE {facts['quoted']['user']} SET log_min_duration_statement = '100ms'"
    return Capability("query logging", "partly", f"{logged}; {facts['user']} cannot change this", (allow,))


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _link(external: External, connection: Connection) -> ConnectionFacts:
    """Measure a few round trips; the fastest one bounds the offset between the clocks."""
    trips = []
    for _ in range(_PINGS):
        start, began = perf_counter(), datetime.now(UTC)
        row = connection.execute("SELECT clock_timestamp() AS now").fetchone() or {}
        took = perf_counter() - start
        trips.append((took, (row["now"] - began).total_seconds() - took / 2))
    took, offset = min(trips)
    address = external.address.address or external.address.host
    plain = "not encrypted" if external.address.address else "not encrypted, through a socket"
    tls = "encrypted" if connection.pgconn.ssl_in_use else plain
    return ConnectionFacts(address, tls, external.pooler, took * 1000, offset, took / 2)


# Activity beside a round: counters of the server and the machine, read before and after the round, never inside.

_VERSION = 16  # the first version that counts the activity of checkpointer and autovacuum
_STAT = Path("/proc/stat")
_STEAL, _TICKS = 7, 8  # columns of `cpu`; the columns after these, guest time, are part of user time


class Surroundings(ExitStack):
    """Reader of the counters, with one connection to each server; leaving the context closes the connections."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[int, Connection] = {}

    def read(self, database: Database | None) -> dict[str, float]:
        """Return the current counters, for `between`; without a database, only those of the machine.

        Raises ServerError if the server is gone.
        """
        text = _STAT.read_text(encoding="ascii") if _STAT.is_file() else ""
        if database is None or database.server.foreign or database.server.version < _VERSION:
            return machine(text)
        key = id(database.server)
        if key not in self._connections:
            self._connections[key] = self.enter_context(databases.connected(database.server, user="postgres"))
        query = catalog.get("surroundings").encode()
        row = self._connections[key].execute(query, {"database": database.name}).fetchone()
        return {**(row or {}), **machine(text)}


def machine(stat: str) -> dict[str, float]:
    """Return from /proc/stat: ticks of all CPUs, stolen ticks, the number of CPUs, and other running processes."""
    lines = [line.split() for line in stat.splitlines()]
    total = next((line[1:] for line in lines if line[:1] == ["cpu"]), [])
    running = next((int(line[1]) for line in lines if line[:1] == ["procs_running"]), 1)
    if len(total) < _TICKS:
        return {}
    ticks = [int(text) for text in total[:_TICKS]]
    cores = sum(line[0].startswith("cpu") for line in lines if line) - 1
    return {"ticks": sum(ticks), "stolen": ticks[_STEAL], "cores": max(cores, 1), "running": max(running - 1, 0)}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the activity between two readings, with the keys of the module's docstring if both readings have them."""
    grown = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    activity: dict[str, float] = {}
    for name in grown.keys() & {"checkpoints", "autovacuums"}:
        activity[name] = float(grown[name] > 0)
    for name in grown.keys() & {"blocks_read", "blocks_hit"}:
        activity[name] = float(grown[name])
    if "ticks" in grown:
        activity["steal"] = grown["stolen"] / grown["ticks"] if grown["ticks"] else 0.0
        activity["others"] = before["running"] / before["cores"]
    return activity

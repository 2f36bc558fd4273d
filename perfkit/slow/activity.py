"""What a database does now: its active sessions, and which of them block others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from perfkit.base.errors import ServerError, first_line, visible
from perfkit.base.units import counted
from perfkit.postgres import catalog
from perfkit.postgres.catalog import Connection
from perfkit.slow.statements import GRANT


@dataclass(frozen=True, slots=True)
class Running:
    """An active session, an idle session that blocks others, or a prepared transaction, which has no session."""

    key: str  # the process id; for a prepared transaction, `prepared` and its name
    user: str
    database: str
    application: str
    client: str  # address; "" for a Unix socket
    kind: str  # "client backend", "autovacuum worker", ..., "prepared transaction"
    state: str  # "active", "idle in transaction", ...; "" if hidden from this role
    wait: str  # "Lock: transactionid"; "" if it is not waiting
    id: str  # the server's query id; "" if there is none
    text: str  # the current statement or, of an idle session, the last one; "" if hidden from this role
    seconds: float | None  # since the statement or the current state began
    transaction_s: float | None  # since the transaction began
    hidden: bool = False  # whether the statement is hidden from this role
    blocked_by: tuple[str, ...] = ()  # keys, including sessions ahead in the queue for the same lock


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree of blocked sessions; a session of `depth` 0 waits for none, unless it is in a deadlock."""

    depth: int
    running: Running
    circle: bool = False  # whether it waits for a session below it: a deadlock that is not resolved yet


@dataclass(frozen=True, slots=True)
class Activity:
    """The active sessions, the longest running first, without perfkit's own; and the tree of blocked sessions."""

    source: str
    at: datetime
    running: tuple[Running, ...]
    blocking: tuple[Branch, ...]
    hidden: int = 0  # sessions whose statement is hidden from this role
    notes: tuple[str, ...] = ()


def now(connection: Connection, name: str = "") -> Activity:
    """Return the current activity in the connection's database, which messages call `name`.

    Call it outside a transaction: inside one, the server repeats its first answer. Raises ServerError.
    """
    here = name or connection.info.dbname
    try:
        rows = catalog.rows(connection, "slow_activity")
        prepared = catalog.rows(connection, "slow_prepared")
        clock = catalog.row(connection, "slow_clock")
    except psycopg.Error as error:
        raise ServerError(f"{visible(here)}: {visible(first_line(error))}; expected to read its activity") from None
    sessions = [_session(row) for row in rows]
    blockers = {key for session in sessions for key in session.blocked_by}
    blocking = [transaction for transaction in map(_prepared, prepared) if transaction.key in blockers]
    active = [s for s in sessions if s.database == clock["database"] and s.state not in ("", "idle")]
    hidden = sum(session.hidden for session in sessions)
    notes = (f"{counted(hidden, 'statement')} hidden; {GRANT} {clock['user']} shows them",) if hidden else ()
    running = tuple(sorted(active, key=lambda r: -(r.seconds or 0)))
    return Activity(f"activity in {here}", clock["at"], running, tree([*sessions, *blocking]), hidden, notes)


def tree(everything: Iterable[Running]) -> tuple[Branch, ...]:
    """Return the tree of blocked sessions; each session is once below the blocker that is nearest to a root.

    All sessions in a queue for one lock are blocked by its holder and by the sessions ahead; they come below the
    holder. A deadlock begins with the session that waits longest. Blockers that are gone are ignored. Pure.
    """
    known = {running.key: running for running in everything}
    waiting = {key: [b for b in r.blocked_by if b in known and b != key] for key, r in known.items()}
    behind: dict[str, list[str]] = {}
    for key, blockers in waiting.items():
        for blocker in blockers:
            behind.setdefault(blocker, []).append(key)
    parents: dict[str, str] = {}
    placed: set[str] = set()
    roots = [key for key in behind if not waiting[key]]
    _spread(roots, behind, parents, placed)
    circles = set()
    for key in sorted(behind, key=lambda key: -(known[key].seconds or 0)):
        if key not in placed:
            roots.append(key)
            circles.add(key)
            _spread([key], behind, parents, placed)
    return tuple(_lines(known, roots, parents, circles))


def _spread(level: list[str], behind: Mapping[str, list[str]], parents: dict[str, str], placed: set[str]) -> None:
    """Place all sessions that wait for these, directly or indirectly, level by level."""
    placed.update(level)
    while level:
        following = []
        for blocker in level:
            for key in behind.get(blocker, ()):
                if key not in placed:
                    placed.add(key)
                    parents[key] = blocker
                    following.append(key)
        level = following


def _lines(
    known: Mapping[str, Running], roots: list[str], parents: Mapping[str, str], circles: Collection[str]
) -> Iterable[Branch]:
    """Yield the tree from the top, at every level the longest waiting sessions first."""
    children: dict[str, list[str]] = {}
    for key, parent in parents.items():
        children.setdefault(parent, []).append(key)

    def longest_last(keys: Iterable[str], depth: int) -> list[tuple[str, int]]:
        return [(key, depth) for key in sorted(keys, key=lambda key: known[key].seconds or 0)]

    left = longest_last(roots, 0)
    while left:
        key, depth = left.pop()
        yield Branch(depth, known[key], key in circles)
        left += longest_last(children.get(key, ()), depth + 1)


def _session(row: Mapping[str, Any]) -> Running:
    words = {name: row[name] or "" for name in ("user", "database", "application", "client", "kind", "state", "wait")}
    prepared = [f"prepared {gid}" for gid in row["prepared"]]
    return Running(
        str(row["pid"]),
        **words,
        id=row["id"] or "",
        text=row["text"] or "",
        seconds=row["seconds"],
        transaction_s=row["transaction_seconds"],
        hidden=row["hidden"],
        blocked_by=(*map(str, row["blocked_by"]), *prepared),
    )


def _prepared(row: Mapping[str, Any]) -> Running:
    return Running(
        f"prepared {row['gid']}",
        row["user"] or "",
        row["database"] or "",
        application="",
        client="",
        kind="prepared transaction",
        state="prepared",
        wait="",
        id="",
        text="",
        seconds=row["seconds"],
        transaction_s=row["seconds"],
    )

"""What runs in a database now: since when, what it waits for, and who makes whom wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from perfkit.errors import ServerError
from perfkit.postgres import catalog
from perfkit.postgres.site import Connection
from perfkit.slow.statements import GRANT
from perfkit.text import first_line, visible


@dataclass(frozen=True, slots=True)
class Running:
    """A session that is not idle, or one that others wait for; or a prepared transaction, which has no session."""

    key: str  # the process id; of a prepared transaction `prepared` and its name
    user: str
    database: str
    application: str
    client: str  # its address; "" through a socket
    kind: str  # "client backend", "autovacuum worker", ..., "prepared transaction"
    state: str  # "active", "idle in transaction", ...; "" where it may not be seen
    wait: str  # "Lock: transactionid"; "" while it does not wait
    id: str  # the server's query id; "" where it has none
    text: str  # what runs, or of an idle session its last statement; "" where it may not be seen
    seconds: float | None  # since the statement began, or in the state it is in
    transaction_s: float | None  # since its transaction began
    hidden: bool = False  # whether this role may not see its statement
    blocked_by: tuple[str, ...] = ()  # keys, those before it in a queue for a lock too


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree of who waits for whom: `depth` 0 waits for nobody, unless it is in a circle."""

    depth: int
    running: Running
    circle: bool = False  # whether it waits for one of those below it: a deadlock that is not resolved yet


@dataclass(frozen=True, slots=True)
class Activity:
    """What runs, the longest first, without the session that asked; and the tree of those who wait, line by line."""

    source: str
    at: datetime
    running: tuple[Running, ...]
    blocking: tuple[Branch, ...]
    hidden: int = 0  # sessions whose statement this role may not see
    notes: tuple[str, ...] = ()


def now(connection: Connection, name: str = "") -> Activity:
    """What runs in the connection's database; `name` is what messages call that.

    Outside a transaction, within which the server always gives the same answer. Raises ServerError.
    """
    here = name or connection.info.dbname
    try:
        rows = catalog.rows(connection, "slow_activity")
        prepared = catalog.rows(connection, "slow_prepared")
        said = catalog.row(connection, "slow_clock")
    except psycopg.Error as error:
        raise ServerError(f"{visible(here)}: {visible(first_line(error))}; expected to see what runs there") from None
    sessions = [_session(row) for row in rows]
    blockers = {key for session in sessions for key in session.blocked_by}
    held = [found for row in prepared if (found := _prepared(row)).key in blockers]
    shown = [s for s in sessions if s.database == said["database"] and s.state not in ("", "idle")]
    hidden = sum(session.hidden for session in sessions)
    notes = (f"{hidden} statements cannot be seen; {GRANT} {said['user']} shows them",) if hidden else ()
    running = tuple(sorted(shown, key=lambda r: -(r.seconds or 0)))
    return Activity(f"what runs in {here}", said["at"], running, tree([*sessions, *held]), hidden, notes)


def tree(everything: Iterable[Running]) -> tuple[Branch, ...]:
    """Who blocks whom, each session once: below the blocker that is nearest to the one who waits for nobody.

    Those in a queue for one lock are all blocked by its holder and by those before them; they come below the holder.
    A circle begins with the one in it that waits longest. Blockers that are gone count as none. Pure.
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
    """Place everybody who waits for these, directly or not, level by level."""
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
    """The tree from the top, at every level those who wait longest first."""
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

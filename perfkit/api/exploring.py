"""Databases and plans to look at: connect, what is slow, plans from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perfkit.api.given import Ask, Names, names
from perfkit.display.progress import progress
from perfkit.errors import UsageError

if TYPE_CHECKING:
    from perfkit.query import Explained, Session
    from perfkit.slow_queries import SlowTable


def connect(
    db: str = "",
    confirm: Names = (),
    production: Names = (),
    volatile: Names = (),
    tls: bool = True,
    config: str | Path = "",
    scale: str = "",
    arm: str = "",
    postgres: int = 0,
    ask: Ask | None = None,
) -> Session:
    """A database to explain statements in: `connect("service=staging", confirm=...).explain("SELECT ...")`.

    Without `db` it is the data of a configuration, the booking system's by default, as its `arm` has it, on a
    server that perfkit starts. Raises PerfkitError as `run` does.
    """
    from perfkit import query
    from perfkit.guards.admission import Permission

    if db:
        permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
        return query.connect(db, permission, tls=tls, volatile=names(volatile))
    with progress() as say:
        return query.made(config, scale, arm, postgres, say=say)


def slow(
    source: str | Path = "",
    seconds: float = 0.0,
    db: str = "",
    confirm: Names = (),
    production: Names = (),
    volatile: Names = (),
    tls: bool = True,
    ask: Ask | None = None,
) -> SlowTable:
    """What is slow on the server of a database: `slow(db="service=staging", confirm=...)[1].explain()`.

    `source`, `seconds`: see `Session.slow`; without a database the name of a log file, which is only shown.
    `perfkit.connect(...).slow()` is the same with a session of your own, the booking system's too. Raises PerfkitError.
    """
    from perfkit.slow_queries import in_file

    if not db:
        return in_file(source)
    session = connect(db, confirm, production, volatile, tls, ask=ask)
    try:
        return session.slow(source, seconds)
    except BaseException:
        session.close()
        raise


def demo(scale: str = "small", seconds: float = 8.0, seed: int = 1) -> Session:
    """The booking system's data after a clinic has worked on it for a while: `demo().slow()` shows what is slow.

    Raises PerfkitError as `run` does.
    """
    from perfkit.clinic import clinic_session

    with progress() as say:
        return clinic_session(scale, seconds, seed, say=say)


def plans(text: str | Path) -> list[Explained]:
    """Plans from elsewhere, judged and ready to be shown: JSON, psql's output or auto_explain's, or a file of these.

    Raises PlanError for what holds none, UsageError for a file that cannot be read.
    """
    from perfkit.explain.capture import Capture
    from perfkit.explain.document import read
    from perfkit.query import Explained

    if isinstance(text, Path):
        try:
            text = text.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise UsageError(f"{text}: cannot be read ({error.strerror}); expected a file with plans") from None
    return [Explained(Capture((document,), ())) for document in read(text)]

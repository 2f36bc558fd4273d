"""A statement measured before and after an index: on clones of the database in which it was found to be slow."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from perfkit.api.given import new_folder
from perfkit.api.runs import compare
from perfkit.arms.beside import ExistingDatabaseArms
from perfkit.arms.stage import RelaySpec
from perfkit.bundle import write_atomically
from perfkit.comparison import scenario
from perfkit.config import Config
from perfkit.config.document import show
from perfkit.config.fields import FOLDER
from perfkit.errors import PerfkitError, UsageError
from perfkit.experiment import measure
from perfkit.indexes.statements import read_set
from perfkit.indexes.trial import one_index
from perfkit.process import alone
from perfkit.report.run import Run
from perfkit.selection import RunSpec, Selection
from perfkit.slow.examples import Value

if TYPE_CHECKING:
    from perfkit.query import Session

Say = Callable[[str], None]


def measured(
    session: Session,
    text: str,
    rows: Sequence[Sequence[Value]],
    index: Sequence[str],
    *,
    profile: str,
    way: str,
    users: int,
    seed: int,
    reports: str | Path,
    say: Say,
) -> Run:
    """Paired rounds of a statement, its parameters `%(p1)s`, ..., without and with indexes, into a new bundle.

    On a server that perfkit started the arms are clones of the session's database; a database of the user's is
    measured as `perfkit.compare` does it, in that `way`. The values of the parameters stay in the run's folder.
    Raises PerfkitError.
    """
    if not index:
        raise UsageError("measure: no index; expected one CREATE INDEX, or several")
    wanted = [one_index(statement) for statement in index]
    if session.place.site.foreign:
        opened = session.opened
        return compare(
            opened.db,
            text,
            wanted,
            parameters=_source(rows) if rows else None,
            way=way or "whole",
            users=users,
            volatile=tuple(session.volatile),
            tls=opened.tls,
            profile=profile,
            seed=seed,
            reports=reports,
            confirm=(session.name, *opened.permission.confirm),
            production=opened.permission.production,
            ask=opened.permission.ask,
        )
    if way:
        raise UsageError(f"way = {way!r}; expected none, for this database is cloned on the server that it is on")
    folder = new_folder(reports, "measure")
    try:
        config = _config(session, folder, text, rows, wanted, users)
        chosen = Selection(config, RunSpec(profile, session.opened.scale, seed, config=str(folder / "perfkit.toml")))
    except PerfkitError:
        shutil.rmtree(folder)
        raise
    place = session.place
    with (
        alone(say),
        ExistingDatabaseArms(
            config, secrets.token_hex(3), RelaySpec(), {}, {}, say, place.site.version, place
        ) as stage,
    ):
        return Run(measure(chosen, folder, say, stage=stage))


def _config(
    session: Session, folder: Path, text: str, rows: Sequence[Sequence[Value]], index: Sequence[str], users: int
) -> Config:
    """The run as a configuration, written into its folder, with which it can be made again from files."""
    files = {"query.sql": f"{text}\n", "index.sql": "".join(f"{one};\n" for one in index)}
    parameters = {"parameters": "rows"} if rows else {}
    if rows:
        files["parameters.sql"] = _source(rows)
    database, files["present.sql"] = _database(session)
    for name, content in files.items():
        write_atomically(folder / name, content)
    arms: list[dict[str, object]] = [{"name": role, "role": role} for role in ("before", "control")]
    together = [scenario("together", ["query"], users, 5)] if users > 1 else []
    config = Config.model_validate(
        {
            "title": "A slow statement before and after",
            "database": database,
            **({"parameters": {"rows": "parameters.sql"}} if rows else {}),
            "query": [{"name": "query", "file": "query.sql", **parameters}],
            "scenario": [scenario("alone", ["query"], 1, 20), *together],
            "arm": [*arms, {"name": "after", "role": "after", "title": "with the index", "indexes": "index.sql"}],
        },
        context={FOLDER: folder},
    )
    write_atomically(folder / "perfkit.toml", show(config))
    return config


def _database(session: Session) -> tuple[dict[str, Any], str]:
    """Where the data is from, and the indexes that it has beyond that."""
    opened, version = session.opened, session.place.site.version
    made = opened.config.database if opened.config else None
    if opened.config is None or made is None or not made.prepare:
        return {"prepare": ["present.sql"], "postgres": version}, "-- The data was in a server that is gone.\n"
    arm = next(arm for arm in opened.config.arm if arm.name == opened.arm)
    present = read_set(arm.indexes).indexes if arm.indexes and not arm.rolled_back else ()
    given = made.model_dump() | {"prepare": [*made.prepare, *arm.prepare, "present.sql"], "postgres": version}
    return given, "".join(f"{one.sql(concurrently=False)};\n" for one in present) or "-- No index beyond the keys.\n"


def _source(rows: Sequence[Sequence[Value]]) -> str:
    """A SELECT that gives these values, as text."""
    names = ", ".join(f"p{value.number}" for value in rows[0])
    lines = (", ".join(f"{sql.Literal(value.text).as_string()}::text" for value in row) for row in rows)
    given = ",\n".join(f"({line})" for line in lines)
    return f"SELECT * FROM (VALUES\n{given}\n) AS examples ({names})\n"

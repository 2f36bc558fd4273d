"""Evidence on one slow statement, measured and shown."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from perfkit.analysis.report import Run
from perfkit.app.runs import compare, new_folder
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.base.process import alone
from perfkit.config import Config
from perfkit.config.model import show
from perfkit.config.workload import FOLDER
from perfkit.explain.html import PlanView, WhatIfView
from perfkit.indexes.advice import Advice, advice_block
from perfkit.indexes.trial import one_index
from perfkit.postgres.index_sets import read_set
from perfkit.runs.arms import ExistingDatabaseArms
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.service import RelaySpec
from perfkit.runs.targets import scenario
from perfkit.show.html import Cell, Table, code, escape, page
from perfkit.slow.examples import Value
from perfkit.slow.statements import SlowQueries
from perfkit.slow.tables import SlowView, one_line

if TYPE_CHECKING:
    from perfkit.app.session import Session


def figures(found: SlowQueries, position: int) -> Table:
    """A statement's own row of the table of all."""
    table = SlowView(found, position).table()
    return replace(table, caption="What it costs", rows=table.rows[position - 1 :])


def examples(sets: Sequence[Sequence[Value]]) -> Table:
    """One row for each value."""
    rows = tuple(
        (
            Cell(str(at)),
            Cell(f"${value.number}"),
            Cell(value.type),
            Cell("NULL" if value.text is None else value.text, code=True),
            Cell(value.origin),
        )
        for at, own in enumerate(sets, 1)
        for value in own
    )
    columns = ("set", "parameter", "type", "value", "from")
    return Table("Example parameters", columns, rows, headers=2, note="" if rows else "the statement has none")


@dataclass(frozen=True, slots=True)
class StatementEvidence:
    """A statement, by its position in what was found, with what was made of it; in the order of the page."""

    found: SlowQueries
    position: int
    sql: str
    plans: Sequence[PlanView] = ()
    advice: Sequence[Advice] = ()
    trials: Sequence[tuple[str, WhatIfView]] = ()  # each with its CREATE INDEX
    runs: Sequence[Run] = ()

    def page(self) -> str:
        """A page of its own, which requests nothing."""
        return page(f"Slow statement: {one_line(self.sql, 60)}", "".join(self._parts()))

    def _parts(self) -> Iterator[str]:
        yield f"<h1>Slow statement {self.position}</h1><p>{escape(self.found.source)}</p>{code(self.sql, name='SQL')}"
        yield figures(self.found, self.position).to_html()
        for plan in self.plans:
            yield f"<h2>Plan</h2>{plan.html()}"
        for made in self.advice:
            yield f"<h2>Advice</h2>{advice_block(made).html}"
        for index, trial in self.trials:
            yield f"<h2>What if</h2>{code(index, name='SQL')}{trial.html()}"
        for run in self.runs:
            yield f"<h2>Measured</h2>{run.decision.html}{run.levels.to_html()}{run.index_costs.to_html()}"
            yield run.weaknesses.html


# A statement measured before and after an index: on clones of the database in which it was found to be slow.

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
        return Run(measure(chosen, folder, say, workbench=stage))


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

"""Sessions in a database: explain, try an index, list slow and running statements; the clinic of the demo."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Self

from psycopg import sql

from perfkit import app
from perfkit import config as configuration
from perfkit.app.evidence import Explained, SlowQuery, WhatIf
from perfkit.app.specs import CompareSpec, ConnectSpec, StatementSpec
from perfkit.base import process, resources
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import ServerError, UsageError
from perfkit.base.options import names, narrowed, texts
from perfkit.base.process import progress
from perfkit.config.model import as_toml
from perfkit.explain.capture import ExplainSpec, Parameters, guarded
from perfkit.indexes.trial import one_index, trying
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.schedule import Arrivals, Draw, Message
from perfkit.postgres.databases import Database, connected
from perfkit.postgres.guards import Audit, resolve
from perfkit.postgres.index_sets import read_set
from perfkit.postgres.servers import open_external
from perfkit.postgres.sqltext import read, split
from perfkit.runs import experiment
from perfkit.runs.arms import ExistingDatabaseArms
from perfkit.runs.experiment import workbench
from perfkit.runs.selection import RunSpec, Selection, rows
from perfkit.runs.service import RelaySpec
from perfkit.runs.targets import ComparisonSpec, admitted
from perfkit.slow import log_sources, statements
from perfkit.slow.activity import now
from perfkit.slow.query_logging import LoggingSpec, Where, logging_on
from perfkit.slow.statements import SlowQueries
from perfkit.slow.tables import ActivityView, SlowView, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from perfkit.analysis.report import Run
    from perfkit.slow.examples import Value
    from perfkit.slow.query_logging import Logging


Say = Callable[[str], None]


@dataclass(slots=True)
class Session:
    """A database in which statements are explained; a context manager that stops whatever it started."""

    database: Database
    volatile: frozenset[str] = frozenset()
    opened: ConnectSpec = field(default_factory=ConnectSpec, repr=False)  # to reach the database again
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def name(self) -> str:
        """Return the name of the server in messages."""
        return self.database.server.name

    def explain(
        self,
        sql: str,
        parameters: Parameters = None,
        *,
        analyze: bool = False,
        generic: bool = False,
        repeats: int = 2,
        timeout_s: float = 60.0,
        serialize: bool = False,
    ) -> Explained:
        """Return a statement's plan; with `analyze`, perfkit executes it `repeats` times and rolls back.

        `parameters` is a mapping for `%(name)s`, a sequence for `$1` or `%s`, and None with `generic`. Raises
        PlanError, UsageError, and TargetRefused if the execution could change something.
        """
        options = ExplainSpec(analyze, generic, repeats, timeout_s, serialize=serialize)
        return Explained(guarded(self.database.server, self.database.session, sql, parameters, options, self.volatile))

    def whatif(
        self,
        sql: str,
        index: str,
        parameters: Parameters = None,
        *,
        analyze: bool | None = None,
        timeout_s: float = 60.0,
    ) -> WhatIf:
        """Return a statement's plans without and with an index that is not kept: `index` is one CREATE INDEX.

        On a server that perfkit started, perfkit builds the index, executes the statement unless `analyze` is false,
        and rolls back. On any other server it builds and executes nothing: HypoPG shows a hypothetical index to the
        planner of this connection. Raises UsageError if neither way is possible, and PlanError.
        """
        statement = one_index(index)
        if analyze and self.database.server.foreign:
            raise UsageError(f"{self.name}: HypoPG's index is hypothetical and cannot be executed; expected no analyze")
        with trying(self.database, [statement], timeout_s, executed=analyze is not False) as trial:
            if trial is None:
                raise UsageError(
                    f"{self.name}: perfkit builds no index on a server that it did not start; expected HypoPG there "
                    "(CREATE EXTENSION hypopg, and USAGE on its schema), or a copy: perfkit compare --way whole"
                )
            if statement in trial.failed:
                raise UsageError(f"{' '.join(statement.split())[:60]!r}: {trial.failed[statement]}")
            if fault := trial.avoided(sql, statement):
                raise UsageError(f"{self.name}: {fault}; expected a copy: perfkit compare --way whole")
            before = Explained(trial.explain(sql, parameters, ()))
            after = Explained(trial.explain(sql, parameters, (statement,)))
            return WhatIf(statement, before, after, trial.evidence, trial.made[statement])

    def slow(self, source: str | Path = "", seconds: float = 0.0) -> SlowTable:
        """List the statements that take most of the server's time: `session.slow()[1].explain()`.

        `source` is "statements" (pg_stat_statements), "log" (the server's), the name of a log file, or by default the
        better one that is available. `seconds` counts only statements that end in the next seconds; an interrupt
        shows the result up to then. Raises UsageError, and ServerError with the setting or grant that is missing.
        """
        if seconds < 0:
            raise UsageError(f"seconds = {seconds:g}; expected 0 or more")
        known = {"statements": _statements, "log": _log}
        if source and source not in known:
            return in_file(source, self)
        with progress() as say:
            if source:
                return SlowTable(known[str(source)](self, seconds, say), self)
            try:
                return SlowTable(_statements(self, seconds, say), self)
            except ServerError as absent:
                try:
                    queries = _log(self, seconds, say)
                except ServerError as error:
                    raise ServerError(f"{absent}; {error}") from None
                note = f"Read from the log, because pg_stat_statements cannot be used: {absent}."
                return SlowTable(replace(queries, notes=(note, *queries.notes)), self)

    def activity(self) -> ActivityView:
        """List what runs in the database now, what it waits for, and which session blocks which. Raises ServerError."""
        with connected(self.database.server, self.database.name, user="postgres") as connection:
            return ActivityView(now(connection, self.name))

    def query_logging(
        self, ms: float = 100.0, rate: float = 1.0, *, plans: bool = True, analyze: bool = False, keep: bool = False
    ) -> Logging:
        """Log statements of new sessions that take `ms` or longer, or a `rate` of them, in a `with` block.

        The previous settings return at the end; with `keep`, when `perfkit slow logging --restore` runs. Plans are
        logged if auto_explain is available. Raises TargetRefused if the owner has not permitted it, with the SQL for
        the owner if the server refuses it; UsageError, ServerError.
        """
        options = LoggingSpec(ms, rate, plans, analyze)
        return logging_on(self.database.server, self.database.name, options, keep=keep)

    def close(self) -> None:
        """Stop what the session started."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self.close()


def connect(spec: ConnectSpec) -> Session:
    """Open a session in a database of the user's. Raises TargetRefused, ServerError, UsageError."""
    external = open_external(resolve(spec.db, spec.tls), spec.permission, Audit(None))
    return Session(Database(external, external.address.dbname), frozenset(names(spec.volatile)), spec)


def open_generated(spec: ConnectSpec, say: Say) -> Session:
    """Open a session in generated data, by default the booking system's, on a server that perfkit starts.

    The data gets the indexes of the `arm`, by default of the first arm. Raises UsageError, ServerError, TargetRefused.
    """
    settings = configuration.load(Path(spec.config) if spec.config else None)
    first = settings.baseline().name
    name = spec.arm or first
    options = narrowed(RunSpec, spec, config=str(spec.config), arms=tuple({first, name}))
    selection = Selection(settings, options)
    if not selection.on_own_server:
        raise UsageError(f"{spec.config}: the data is in a database of yours; expected --db with that database")
    targets = admitted(settings, selection.arms, spec.permission)
    with ExitStack() as stack:
        bench = stack.enter_context(workbench(selection, targets, Audit(None), say, shared=True))
        bench.base(selection.scale)
        database, _ = bench.prepare(next(arm for arm in selection.arms if arm.name == name))
        assert database
        opened = replace(spec, scale=selection.scale, arm=name)
        return Session(database, opened=opened, _stack=stack.pop_all())


def measure_statement(
    session: Session, text: str, rows: Sequence[Sequence[Value]], spec: StatementSpec, say: Say
) -> Run:
    """Measure paired rounds of a statement without and with indexes, into a new bundle.

    The statement's parameters are `%(p1)s`, `%(p2)s`, ...; their values stay in the run's folder. On a server that
    perfkit started, the arms are clones of the session's database. A database of the user's is measured as
    `perfkit.compare` does, in its `way`. Raises PerfkitError.
    """
    if not spec.index:
        raise UsageError("measure: no index; expected one CREATE INDEX, or several")
    indexes = [one_index(str(statement)) for statement in texts(spec.index)]
    if session.database.server.foreign:
        values = {name: getattr(session.opened, name) for name in ("db", "tls", "production", "ask")}
        values |= {"query": text, "index": indexes, "parameters": _source(rows) if rows else None}
        values |= {"way": spec.way or "whole", "volatile": tuple(session.volatile)}
        asked = narrowed(CompareSpec, spec, confirm=(session.name, *names(session.opened.confirm)), **values)
        return app.api.compare(asked)
    if spec.way:
        raise UsageError(f"way = {spec.way!r}; expected none: this database is measured in clones on its own server")
    folder = app.starter.new_folder(spec.reports, "measure")
    with app.starter.discarded(folder):
        made, present = _made(session)
        write_atomically(folder / "present.sql", present)
        parameters = _source(rows) if rows else None
        values = {"query": (text,), "index": indexes, "parameters": parameters, "way": "made", "made": made}
        path = narrowed(ComparisonSpec, spec, db="", **values).write(folder)
        options = narrowed(RunSpec, spec, scale=session.opened.scale, config=str(path))
        selection = Selection(configuration.load(path), options)
    database = session.database
    with (
        process.alone(say),
        ExistingDatabaseArms(
            selection.config, secrets.token_hex(3), RelaySpec(), {}, {}, say, database.server.version, database
        ) as bench,
    ):
        experiment.measure(selection, folder, say, bench=bench)
    return app.api.run(bundle=folder)


def _made(session: Session) -> tuple[dict[str, object], str]:
    """Return the origin of the data as a `[database]`, and SQL for the indexes that the data has in addition."""
    opened, version = session.opened, session.database.server.version
    config = configuration.load(opened.config)
    made = config.database
    if not opened.arm or made is None or not made.prepare:
        return {"prepare": ["present.sql"], "postgres": version}, "-- The data was on a server that no longer exists.\n"
    arm = next(arm for arm in config.arm if arm.name == opened.arm)
    present = read_set(arm.indexes).indexes if arm.indexes and not arm.rolled_back else ()
    origin = made.model_dump() | {"prepare": [*made.prepare, *arm.prepare, "present.sql"], "postgres": version}
    statements = "".join(f"{one.sql(concurrently=False)};\n" for one in present)
    return as_toml(origin), statements or "-- No index beyond the keys.\n"


def _source(rows: Sequence[Sequence[Value]]) -> str:
    """Return a SELECT that returns these values, as text."""
    names = ", ".join(f"p{value.number}" for value in rows[0])
    lines = (", ".join(f"{sql.Literal(value.text).as_string()}::text" for value in row) for row in rows)
    values = ",\n".join(f"({line})" for line in lines)
    return f"SELECT * FROM (VALUES\n{values}\n) AS examples ({names})\n"


# The demo clinic: statements per second, and the most in flight.
RATE, USERS = 60.0, 4
TIMEOUT_S = 30.0
# How often each statement runs: patients look most, the front desk often, few book and fewer cancel.
SHARES = {
    "upcoming_for_contact": 45,
    "clinic_day": 18,
    "book": 14,
    "conflict_check": 12,
    "cancel": 6,
    "status_counts": 5,
}
EVENTS = 1000
Work = Callable[[float], Counter[str]]


@contextmanager
def clinic(session: Session, seed: int = 1) -> Iterator[Work]:
    """Yield a function that runs a clinic for a number of seconds and counts its statements, all of them logged.

    The `session` is in the booking system's data. Raises ServerError; the function raises LoadError.
    """
    target = sql_target(session.database.conninfo(), TIMEOUT_S, TIMEOUT_S)
    messages, turn = tuple(_day(session, seed)), count()

    def work(seconds: float) -> Counter[str]:
        arrivals = Arrivals(messages, ((RATE, RATE, seconds),), USERS, f"{seed}/{next(turn)}")
        return Counter({item: n for (item, _), n in pool.run(target, [arrivals]).counts().items()})

    server, database = session.database.server, session.database.name
    # Only the role that sends the load is logged: a superuser who reads the log adds nothing to it.
    role = Where("perfkit", database)
    with logging_on(server, database, LoggingSpec(ms=0.0, plans=False), role), WorkerPool(1) as pool:
        yield work


def _day(session: Session, seed: int) -> Iterator[Message]:
    """Yield the statements of a clinic's day in random order, with the parameters of the booking system's workload."""
    settings, random = configuration.load(), Random(seed)
    files = {query.name: (query.file, query.parameters or "") for query in settings.query}
    files |= {path.stem: (path, "bookings") for path in resources.path("sql/demo").glob("*.sql")}
    kinds = {name: (split(read(path))[0].text, source) for name, (path, source) in files.items()}
    sources = settings.parameters.items()
    draw = Draw({name: rows(name, source, session.database, str(seed)) for name, source in sources}, str(seed))
    booked = draw("bookings")
    for name in random.choices(list(SHARES), list(SHARES.values()), k=EVENTS):
        row = booked if name == "cancel" else draw(kinds[name][1])
        if name == "book":  # a booking follows a look whether the slot is free
            booked = row
            yield {"item": "conflict_check", "sql": kinds["conflict_check"][0], "params": row}
        yield {"item": name, "sql": kinds[name][0], "params": row}


_COLUMNS = ("id", "text", "calls", "mean_ms", "p95_ms", "total_ms", "rows", "buffers", "temp_bytes", "wal_bytes",
            "first", "last")  # fmt: skip


@dataclass(frozen=True, repr=False)
class SlowTable:
    """Slow statements; displays as a table. `table[1]`, `table["part of the text"]` and an id return one statement.

    Without a session, after reading a log file, the statements can only be shown.
    """

    found: SlowQueries
    session: Session | None = None

    @cached_property
    def queries(self) -> tuple[SlowQuery, ...]:
        """Return all statements, the largest total time first."""
        return tuple(SlowQuery(n, s, self.found, self.session) for n, s in enumerate(self.found.statements, 1))

    def __len__(self) -> int:
        return len(self.found.statements)

    def __iter__(self) -> Iterator[SlowQuery]:
        return iter(self.queries)

    def __getitem__(self, key: int | str) -> SlowQuery:
        """Return a statement by position (from 1), id, or part of its text. Raises UsageError with the choices."""
        if isinstance(key, int):
            chosen = [q for q in self.queries if q.position == key]
        else:
            part, texts = _plain(key), {q: _plain(q.statement.text) for q in self.queries}
            exact = [q for q in self.queries if key == q.statement.id or part == texts[q]]
            chosen = exact or [q for q in self.queries if part in texts[q]]
        if len(chosen) != 1:
            raise UsageError(f"{key!r}: {len(chosen) or 'no'} statements match; expected one of {self._listed(chosen)}")
        return chosen[0]

    @property
    def frame(self) -> DataFrame:
        """One row per statement, by its position; times in ms, sizes in bytes, `share` of all time from 0 to 1."""
        from pandas import DataFrame, Index  # late: pandas takes 0.5 s to import, and a table needs none

        rows = [{name: getattr(s, name) for name in _COLUMNS} | {"share": self.found.share(s)}
                for s in self.found.statements]  # fmt: skip
        positions = Index(range(1, len(rows) + 1), name="position")
        return DataFrame(rows, index=positions, columns=[*_COLUMNS, "share"])

    def _listed(self, chosen: Sequence[SlowQuery]) -> str:
        many = chosen or self.queries
        shown = [f"{q.position} ({one_line(q.statement.text, 40)})" for q in many[:5]]
        return ", ".join([*shown, f"... {many[-1].position}"] if len(many) > 5 else shown) or "none"

    def _repr_html_(self) -> str:
        return SlowView(self.found)._repr_html_()

    def __repr__(self) -> str:
        return repr(SlowView(self.found))


def in_file(source: str | Path, session: Session | None = None) -> SlowTable:
    """Return the slow statements in a log file. Raises UsageError if there is no such file."""
    if not Path(source).is_file():
        raise UsageError(f"source = {str(source)!r}; expected 'statements', 'log', or the name of a log file")
    return SlowTable(log_sources.read(Path(source)), session)


def _statements(session: Session, seconds: float, say: Say) -> SlowQueries:
    with connected(session.database.server, session.database.name, user="postgres") as connection:
        before = statements.snapshot(connection, session.name) if seconds else None
        stopped = _wait(seconds, say)
        queries = statements.between(before, statements.snapshot(connection, session.name))
    return replace(queries, notes=(*queries.notes, *stopped))


def _log(session: Session, seconds: float, say: Say) -> SlowQueries:
    database, notes = session.database, tuple[str, ...]()
    if not seconds:
        queries = log_sources.read_server_log(database.server, database.name)
    else:
        additions = log_sources.follow_server_log(database.server, database.name, every_s=0.0)
        next(additions)  # skips what the log holds so far
        notes = _wait(seconds, say)
        queries = next(additions)
    if not queries.statements:
        notes += ("The server logs statements while session.query_logging(ms=100) is on.",)
    return replace(queries, notes=(*queries.notes, *notes))


def _wait(seconds: float, say: Say) -> tuple[str, ...]:
    """Wait; an interrupt ends the wait early, and the returned note says so."""
    began = time.monotonic()
    try:
        while (left := began + seconds - time.monotonic()) > 0:
            say(f"collecting statements: {left:.0f} s more; an interrupt shows the result so far")
            time.sleep(min(left, 0.5))
    except KeyboardInterrupt:
        return (f"Interrupted after {time.monotonic() - began:.1f} of {seconds:g} s.",)
    finally:
        say("")
    return ()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())

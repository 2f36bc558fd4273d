"""Sessions in a database: statements explained, what is slow, and one slow statement up to its report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perfkit import config as configuration
from perfkit.app.evidence import StatementEvidence, examples, figures, measured
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import PlanError, ServerError, UsageError
from perfkit.base.process import progress
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, guarded, single
from perfkit.explain.comparison import PLANNED, Diff, typical_parameters
from perfkit.explain.findings import Finding, findings
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.html import DiffView, PlanView, WhatIfView
from perfkit.explain.plan import Plan
from perfkit.indexes.advice import Advice
from perfkit.indexes.search import analyze_first, index_advice
from perfkit.indexes.trial import Made, one_index, trying
from perfkit.postgres.databases import Database, connected
from perfkit.postgres.guards import Audit, Permission, resolve
from perfkit.postgres.servers import open_external
from perfkit.postgres.sqltext import aligned, named_placeholders, placed, placeholders
from perfkit.runs.arms import Clones
from perfkit.runs.selection import RunSpec as Chosen
from perfkit.runs.selection import Selection
from perfkit.runs.service import RelaySpec
from perfkit.runs.targets import admitted
from perfkit.show.html import Table, code, style
from perfkit.slow import logs, statements
from perfkit.slow.examples import Value, example_rows, preparable, prepared
from perfkit.slow.query_logging import LoggingSpec, logging_on
from perfkit.slow.statements import SlowQueries, SlowStatement, now
from perfkit.slow.tables import ActivityView, SlowView, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from perfkit.analysis.report import Run
    from perfkit.slow.query_logging import Logging


Say = Callable[[str], None]


@dataclass(frozen=True)
class Explained:
    """A plan with what the rules found in it; it shows itself as a drawing, or as text."""

    capture: Capture
    note: str = ""  # with which values it was made, where that was chosen for the user

    @cached_property
    def plan(self) -> Plan:
        """The plan of the last execution."""
        return self.capture.plan

    @cached_property
    def findings(self) -> list[Finding]:
        """What is wrong with it, gravest first."""
        return findings(self.plan, self.capture.facts)

    @property
    def view(self) -> PlanView:
        """How it is shown."""
        first = self.capture.first if len(self.capture.documents) > 1 else None
        return PlanView(self.plan, self.findings, self.note, first)

    def _repr_html_(self) -> str:
        return self.view._repr_html_()

    def __repr__(self) -> str:
        return repr(self.view)


@dataclass(frozen=True)
class WhatIf:
    """A statement without and with an index that was not kept; it shows itself as what changed."""

    index: str  # the CREATE INDEX
    before: Explained
    after: Explained
    evidence: str
    made: Made

    @property
    def diff(self) -> Diff:
        """Both plans aligned."""
        return self.view.plans.diff

    @property
    def bytes(self) -> int:
        """The index's size: as built, or HypoPG's estimate, which is on the large side."""
        return self.made.bytes

    @property
    def used(self) -> bool:
        """Whether the planner takes the index."""
        return any(node.text("Index Name") in self.made.names for node in self.after.plan.nodes)

    @cached_property
    def view(self) -> WhatIfView:
        """How it is shown."""
        before = PlanView(self.before.plan, self.before.findings, "without the index")
        after = PlanView(self.after.plan, self.after.findings, "with the index")
        estimated = not self.before.plan.analyzed
        limitation = analyze_first(FindingContext(self.before.plan, self.before.capture.facts)) if estimated else ""
        plans, built = DiffView(before, after), bool(self.made.quoted)
        return WhatIfView(plans, self.used, self.bytes, self.evidence, built, limitation)

    def _repr_html_(self) -> str:
        return self.view._repr_html_()

    def __repr__(self) -> str:
        return repr(self.view)


@dataclass(frozen=True, slots=True)
class SessionOrigin:
    """How a session came to its database, so that a run can come to it again."""

    db: str = ""  # of the user's
    tls: bool = True
    permission: Permission = field(default_factory=Permission)
    config: configuration.Config | None = None  # whose data was made
    scale: str = ""
    arm: str = ""


@dataclass(slots=True)
class Session:
    """A database in which statements are explained; a context manager that leaves nothing behind."""

    place: Database
    volatile: frozenset[str] = frozenset()
    opened: SessionOrigin = field(default_factory=SessionOrigin, repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place.site.name

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
        """A statement's plan; with `analyze` it is executed, `repeats` times, and rolled back.

        Parameters: a mapping for `%(name)s`, a sequence for `$1` or `%s`; none with `generic`. Raises PlanError,
        UsageError, and TargetRefused where executing it could change something.
        """
        options = ExplainSpec(analyze, generic, repeats, timeout_s, serialize=serialize)
        return Explained(guarded(self.place.site, self.place.session, sql, parameters, options, self.volatile))

    def whatif(
        self,
        sql: str,
        index: str,
        parameters: Parameters = None,
        *,
        analyze: bool | None = None,
        timeout_s: float = 60.0,
    ) -> WhatIf:
        """A statement's plans without and with an index, which is not kept: `index` is one CREATE INDEX.

        On a server that perfkit started it is built and rolled back, and the statement executed unless `analyze` is
        false. On any other nothing is built or executed: HypoPG imagines the index for this connection's planner.
        Raises UsageError where the index cannot be had either way, and PlanError.
        """
        wanted = one_index(index)
        if analyze and self.place.site.foreign:
            raise UsageError(f"{self.name}: analyze with an index that is only imagined; expected a plan alone there")
        with trying(self.place, [wanted], timeout_s, executed=analyze is not False) as trial:
            if trial is None:
                raise UsageError(
                    f"{self.name}: no index is built on a server that perfkit did not start; expected HypoPG there "
                    "(CREATE EXTENSION hypopg, and USAGE on its schema), or a copy: perfkit compare --way whole"
                )
            if wanted in trial.failed:
                raise UsageError(f"{' '.join(wanted.split())[:60]!r}: {trial.failed[wanted]}")
            if fault := trial.avoided(sql, wanted):
                raise UsageError(f"{self.name}: {fault}; expected a copy: perfkit compare --way whole")
            before = Explained(trial.explain(sql, parameters, ()))
            after = Explained(trial.explain(sql, parameters, (wanted,)))
            return WhatIf(wanted, before, after, trial.evidence, trial.made[wanted])

    def slow(self, source: str | Path = "", seconds: float = 0.0) -> SlowTable:
        """The statements that take most of the server's time: `session.slow()[1].explain()`.

        `source`: "statements" (pg_stat_statements), "log" (the server's), the name of a log file, or by default the
        best there is. With `seconds` only what ends from now on in so long; an interrupt ends that earlier.
        Raises ServerError with what would have to be set or granted, UsageError.
        """
        return look(self, source, seconds)

    def activity(self) -> ActivityView:
        """What runs in the database now, what it waits for, and who makes whom wait. Raises ServerError."""
        with connected(self.place.site, self.place.name, user="postgres") as connection:
            return ActivityView(now(connection, self.name))

    def query_logging(
        self, ms: float = 100.0, rate: float = 1.0, *, plans: bool = True, analyze: bool = False, keep: bool = False
    ) -> Logging:
        """Log statements of new sessions that take `ms` or longer, or a part of them: `with session.query_logging():`.

        What was set before comes back at the end, with `keep` at `perfkit slow logging --restore`. Plans come with
        auto_explain where that is there. Raises TargetRefused where nobody allowed it, with the SQL for the owner
        where the server refuses it, UsageError, ServerError.
        """
        wanted = LoggingSpec(ms, rate, plans, analyze)
        return logging_on(self.place.site, self.place.name, wanted, keep=keep)

    def close(self) -> None:
        """Give back what was started."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self.close()


def connect(
    db: str,
    permission: Permission,
    *,
    tls: bool = True,
    volatile: Collection[str] = (),
) -> Session:
    """A session in a database of the user's. Raises TargetRefused, ServerError, UsageError."""
    external = open_external(resolve(db, tls), permission, Audit(None))
    opened = SessionOrigin(db, tls, permission)
    return Session(Database(external, external.address.dbname), frozenset(volatile), opened)


def made(
    config: str | Path = "",
    scale: str = "",
    arm: str = "",
    postgres: int = 0,
    *,
    say: Say,
    permission: Permission | None = None,
) -> Session:
    """A session in the data of a configuration, the booking system's by default, on a server that perfkit starts.

    `arm` is one of the configuration's, with its indexes; by default the first. Raises UsageError, ServerError,
    TargetRefused.
    """
    settings = configuration.load(Path(config) if config else None)
    first = settings.baseline().name
    chosen = Selection(settings, Chosen(scale=scale, postgres=postgres, arms=tuple({first, arm or first})))
    if not chosen.on_own_server:
        raise UsageError(f"{config}: its data is not on a server that perfkit starts; expected --db with the database")
    targets = admitted(settings, chosen.arms, permission or Permission())
    with ExitStack() as stack:
        where = (RelaySpec(), targets.origins, targets.open(Audit(None)))
        stage = stack.enter_context(Clones(settings, secrets.token_hex(3), *where, say, chosen.postgres))
        say(f"making the data{f' ({chosen.scale})' if chosen.scale else ''}")
        stage.base(chosen.scale)
        place, _ = stage.prepare(next(own for own in chosen.arms if own.name == (arm or first)))
        opened = SessionOrigin(config=settings, scale=chosen.scale, arm=arm or first)
        return Session(place, opened=opened, _stack=stack.pop_all())


# One slow statement, from its text to evidence: explained, advised, tried with an index, measured, reported.

Given = Mapping[int, Any] | Sequence[Any]
ROWS = 200  # sets of values that a measurement sends in turn
LOGGED = "with the values of its slowest logged execution"
SAMPLED, ANY, GIVEN = "with sampled values", "for any values: the generic plan", "with the values given"


@dataclass(frozen=True, repr=False)
class Examples:
    """Sets of values for a statement's parameters, each value with where it came from; they show themselves."""

    sets: tuple[tuple[Value, ...], ...]

    @property
    def rows(self) -> list[dict[int, str | None]]:
        """By the number of a parameter its value as text, as `explain` and `example_parameters` take them."""
        return [{value.number: value.text for value in own} for own in self.sets]

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style>{examples(self.sets)._repr_html_()}"

    def __repr__(self) -> str:
        return repr(examples(self.sets))


@dataclass(frozen=True, slots=True)
class Filled:
    """A statement as psycopg takes it, with values for it, and in words which these are; "" for one without any."""

    text: str
    parameters: dict[str, Any] | None = None
    origin: str = ""


@dataclass(eq=False, repr=False)
class SlowQuery:
    """One of the statements. It remembers what was found out about it, for `report`."""

    position: int
    statement: SlowStatement
    found: SlowQueries
    within: Session | None
    plans: list[Explained] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    trials: list[WhatIf] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What messages and advice call it."""
        return f"statement {self.position}"

    @property
    def sql(self) -> str:
        """It as a client sent it, where that was logged and has parameters apart; else as the source tells it."""
        example = self.statement.example
        return example.sql if example and placeholders(example.sql) else self.statement.text

    @cached_property
    def text(self) -> str:
        """`sql` fit to be prepared, with `$1`, `$2`, ...; raises PlanError for a statement that has no plan."""
        place, text = self.session.place, preparable(self.sql)
        try:
            single(named_placeholders(text))
            return prepared(place, text) if placeholders(text) else text
        except (PlanError, UsageError) as error:
            raise PlanError(f"{self.name}: {error}") from None

    @property
    def session(self) -> Session:
        """The database that it was found in. Raises UsageError where there is none."""
        if self.within is None:
            raise UsageError(f"{self.name}: found in a file; expected a session: perfkit.connect(...).slow(FILE)")
        return self.within

    def explain(
        self, parameters: Given | None = None, *, analyze: bool = False, generic: bool = False, timeout_s: float = 60.0
    ) -> Explained:
        """Its plan, with `parameters` (`{1: ...}` or a list for `$1`, `$2`, ...) or the best values that there are.

        These are those of its slowest logged execution, else sampled ones, else none: the generic plan. The result's
        `note` says which. Raises PlanError, and UsageError or TargetRefused as `Session.explain` does.
        """
        if generic:
            filled = Filled(named_placeholders(self.text), None, ANY)
        else:
            filled = self._given(parameters) if parameters is not None else self._filled(none=not analyze)
        options = {"analyze": analyze, "generic": filled.origin == ANY}
        with progress() as say:
            say(f"explaining {self.name}")
            found = self.session.explain(filled.text, filled.parameters, **options, timeout_s=timeout_s)
        self.plans.append(replace(found, note=filled.origin))
        return self.plans[-1]

    @property
    def logged_plan(self) -> Explained | None:
        """The plan of its slowest execution whose plan was logged, by auto_explain; None where there is none."""
        plan = self.statement.plan
        return Explained(Capture((plan,), ()), "as it was logged") if plan is not None else None

    def example_parameters(self, n: int = 1, given: Mapping[int, Any] | None = None, seed: int = 1) -> Examples:
        """`n` sets of values: the first that of the slowest logged execution where there is one; the rest is sampled.

        What is `given` by number is in all of them. Raises PlanError.
        """
        if n < 1:
            raise UsageError(f"n = {n}; expected 1 or more")
        if not placeholders(self.text):
            return Examples(())
        sampled = example_rows(self.session.place, self.text, n, seed)
        if (logged := self._logged()) is not None:
            first = tuple(replace(v, text=logged[v.number], origin="its slowest logged execution") for v in sampled[0])
            sampled = [first, *sampled[: n - 1]]
        own = dict(given or {})
        if wrong := sorted(own.keys() - set(placeholders(self.text))):
            raise UsageError(f"{self.name}: no ${wrong[0]}; expected {self._numbers}")
        return Examples(tuple(
            tuple(replace(v, text=_text(own[v.number]), origin="given") if v.number in own else v for v in row)
            for row in sampled
        ))  # fmt: skip

    def findings(self) -> list[Finding]:
        """What is wrong with its plan, gravest first: of the last one that was made, or of a new one."""
        return (self.plans[-1] if self.plans else self.explain()).findings

    def advise(self, *, analyze: bool | None = None) -> Advice:
        """Which index it needs, or why none would help; see `perfkit.advise`. Raises PlanError, TargetRefused."""
        filled = self._filled()
        with progress() as say:
            queries = {self.name: (filled.text, filled.parameters)}
            self.advice.append(index_advice(self.session, queries, analyze=analyze, say=say))
        return self.advice[-1]

    def whatif(self, index: str, parameters: Given | None = None, *, analyze: bool | None = None) -> WhatIf:
        """Its plans without and with an index that is not kept; see `Session.whatif`. Raises UsageError, PlanError."""
        filled = self._given(parameters) if parameters is not None else self._filled()
        with progress() as say:
            say(f"trying an index for {self.name}")
            self.trials.append(self.session.whatif(filled.text, index, filled.parameters, analyze=analyze))
        return self.trials[-1]

    def measure(
        self,
        index: str | Sequence[str] = (),
        *,
        profile: str = "quick",
        way: str = "",
        users: int = 10,
        seed: int = 1,
        reports: str | Path = "",
    ) -> Run:
        """Paired rounds without and with an index; by default what `advise` last proposed.

        On a server that perfkit started it is on clones of this database; a database of yours is measured as
        `perfkit.compare` does it, in that `way` ("whole": in a private copy). Raises PerfkitError as `run` does.
        """
        proposed = [proposal.statement for made in self.advice[-1:] for proposal in made.proposals]
        wanted = [index] if isinstance(index, str) else list(index or proposed)
        options: dict[str, Any] = {"profile": profile, "way": way, "users": users, "seed": seed, "reports": reports}
        rows, text = self.example_parameters(ROWS, seed=seed).sets, named_placeholders(self.text)
        with progress() as say:
            self.runs.append(measured(self.session, text, rows, wanted, say=say, **options))
        return self.runs[-1]

    def report(self, path: str | Path) -> Path:
        """Write what was found out about it in this session as one page that requests nothing; returns where.

        Raises BundleError where it cannot be written, PlanError where it has no plan.
        """
        if not self.plans:
            self.explain()
        plans = [self.plans[-1].view, *([plan.view] if (plan := self.logged_plan) else [])]
        trials = [(trial.index, trial.view) for trial in self.trials]
        made = StatementEvidence(self.found, self.position, self.sql, plans, self.advice[-1:], trials, self.runs)
        write_atomically(Path(path), made.page())
        return Path(path)

    @property
    def _table(self) -> Table:
        return figures(self.found, self.position)

    @property
    def _numbers(self) -> str:
        return ", ".join(f"${number}" for number in placeholders(self.text)) or "no parameters"

    def _logged(self) -> dict[int, str | None] | None:
        """The values of its slowest logged execution, by number; None where these cannot be told."""
        example = self.statement.example
        values = aligned(self.sql, example.sql, example.parameters) if example else None
        if values is None:
            return None
        return {number: values[old] for old, number in zip(placed(self.sql), placed(self.text), strict=True)}

    def _given(self, parameters: Given) -> Filled:
        if not isinstance(parameters, Mapping):
            parameters = dict(enumerate(parameters, 1))
        if set(parameters) != set(placeholders(self.text)):
            given = ", ".join(f"${number}" for number in sorted(parameters)) or "none"
            raise UsageError(f"{self.name}: parameters {given}; expected {self._numbers}")
        return Filled(named_placeholders(self.text), _named(parameters), GIVEN)

    def _filled(self, *, none: bool = False) -> Filled:
        """The statement with the best values there are; with `none` it may be without any."""
        example, whole = self.statement.example, None
        if example and not placeholders(example.sql):  # its values are in its text
            whole = Filled(example.sql, None, LOGGED)
        try:
            text = named_placeholders(self.text)
        except PlanError:
            if whole is None:
                raise
            return whole
        if not placeholders(self.text):
            return Filled(text)
        if (logged := self._logged()) is not None:
            return Filled(text, _named(logged), LOGGED)
        return whole or self._sampled(none)  # the text in other words, such as a list of another length

    def _sampled(self, none: bool) -> Filled:
        """Of several sets of values the first with the plan that most of them get."""
        text, place = named_placeholders(self.text), self.session.place
        try:
            rows = [_named({v.number: v.text for v in row}) for row in example_rows(place, self.text, PLANNED)]
            return Filled(text, dict(typical_parameters(place.session, text, rows) or {}), SAMPLED)
        except PlanError as error:
            if none:
                return Filled(text, None, ANY)
            raise PlanError(f"{self.name}: {error}; expected explain(parameters=...)") from None

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style><div class='pk'>{code(self.sql, name='SQL')}{self._table.to_html()}</div>"

    def __repr__(self) -> str:
        return repr(self._table)


def _named(values: Mapping[int, Any]) -> dict[str, Any]:
    return {f"p{number}": value for number, value in values.items()}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# What is slow: where to look for it, and the table of what was found, through which each statement is reached.

_COLUMNS = ("id", "text", "calls", "mean_ms", "p95_ms", "total_ms", "rows", "buffers", "temp_bytes", "wal_bytes",
            "first", "last")  # fmt: skip


@dataclass(frozen=True, repr=False)
class SlowTable:
    """What was found to be slow; it shows itself. `table[1]`, `table["part of the text"]` and an id give a statement.

    Without a session, from a file alone, statements are only shown.
    """

    found: SlowQueries
    session: Session | None = None

    @cached_property
    def queries(self) -> tuple[SlowQuery, ...]:
        """All of them, the largest total time first."""
        return tuple(SlowQuery(n, s, self.found, self.session) for n, s in enumerate(self.found.statements, 1))

    def __len__(self) -> int:
        return len(self.found.statements)

    def __iter__(self) -> Iterator[SlowQuery]:
        return iter(self.queries)

    def __getitem__(self, key: int | str) -> SlowQuery:
        """By position from 1, by id, or by its text or a part of that. Raises UsageError, saying what there is."""
        if isinstance(key, int):
            chosen = [q for q in self.queries if q.position == key]
        else:
            part, texts = _plain(key), {q: _plain(q.statement.text) for q in self.queries}
            exact = [q for q in self.queries if key == q.statement.id or part == texts[q]]
            chosen = exact or [q for q in self.queries if part in texts[q]]
        if len(chosen) != 1:
            raise UsageError(f"{key!r}: {len(chosen) or 'no'} such statements; expected one of {self._listed(chosen)}")
        return chosen[0]

    def frame(self) -> DataFrame:
        """One row for each statement, by its position; times in ms, `share` of the total time from 0 to 1."""
        from pandas import DataFrame, Index

        rows = [{name: getattr(s, name) for name in _COLUMNS} | {"share": self.found.share(s)}
                for s in self.found.statements]  # fmt: skip
        positions = Index(range(1, len(rows) + 1), name="position")
        return DataFrame(rows, index=positions, columns=[*_COLUMNS, "share"])

    def _listed(self, chosen: Sequence[SlowQuery]) -> str:
        many = chosen or self.queries
        shown = [f"{q.position} ({one_line(q.statement.text, 40)})" for q in many[:5]]
        return ", ".join([*shown, f"... {many[-1].position}"] if len(many) > 5 else shown) or "none: nothing was found"

    def _repr_html_(self) -> str:
        return SlowView(self.found)._repr_html_()

    def __repr__(self) -> str:
        return repr(SlowView(self.found))


def look(session: Session, source: str | Path = "", seconds: float = 0.0) -> SlowTable:
    """The slow statements of a session's server; see `Session.slow`."""
    if seconds < 0:
        raise UsageError(f"seconds = {seconds:g}; expected 0 or more")
    known = {"statements": _statements, "log": _log}
    if source and source not in known:
        return in_file(source, session)
    with progress() as say:
        if source:
            return SlowTable(known[str(source)](session, seconds, say), session)
        try:
            return SlowTable(_statements(session, seconds, say), session)
        except ServerError as absent:
            try:
                found = _log(session, seconds, say)
            except ServerError as error:
                raise ServerError(f"{absent}; {error}") from None
            return SlowTable(replace(found, notes=(f"The log, because: {absent}.", *found.notes)), session)


def in_file(source: str | Path, session: Session | None = None) -> SlowTable:
    """The slow statements in a log file. Raises UsageError for what is no file."""
    if not Path(source).is_file():
        raise UsageError(f"source = {str(source)!r}; expected 'statements', 'log', or the name of a log file")
    return SlowTable(logs.read(Path(source)), session)


def _statements(session: Session, seconds: float, say: Say) -> SlowQueries:
    with connected(session.place.site, session.place.name, user="postgres") as connection:
        before = statements.snapshot(connection, session.name) if seconds else None
        stopped = _wait(seconds, say)
        found = statements.between(before, statements.snapshot(connection, session.name))
    return replace(found, notes=(*found.notes, *stopped))


def _log(session: Session, seconds: float, say: Say) -> SlowQueries:
    place, stopped = session.place, tuple[str, ...]()
    if not seconds:
        found = logs.read_server_log(place.site, place.name)
    else:
        looks = logs.follow_server_log(place.site, place.name, every_s=0.0)
        next(looks)  # where it ends now
        stopped = _wait(seconds, say)
        found = next(looks)
    if not found.statements:
        stopped += ("Statements get into the log while session.query_logging(ms=100) is on.",)
    return replace(found, notes=(*found.notes, *stopped))


def _wait(seconds: float, say: Say) -> tuple[str, ...]:
    """Let time pass; an interrupt ends that, and what there is by then is shown with a note."""
    began = time.monotonic()
    try:
        while (left := began + seconds - time.monotonic()) > 0:
            say(f"looking: {left:.0f} s more; an interrupt shows what there is by then")
            time.sleep(min(left, 0.5))
    except KeyboardInterrupt:
        return (f"Interrupted after {time.monotonic() - began:.1f} of {seconds:g} s.",)
    finally:
        say("")
    return ()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())

"""One slow statement up to its evidence: explained, advised, tried with an index, measured, reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import app
from perfkit.app.specs import StatementSpec
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import PlanError, UsageError
from perfkit.base.options import Texts, narrowed
from perfkit.base.process import progress
from perfkit.base.units import count, significant, size
from perfkit.explain.capture import Capture, single
from perfkit.explain.comparison import PLANNED, Diff, typical_parameters
from perfkit.explain.findings import Finding, findings
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.html import DiffView, PlanView
from perfkit.explain.plan import Plan, read_plan
from perfkit.indexes.advice import Advice, analyze_first
from perfkit.indexes.search import index_advice
from perfkit.indexes.trial import Made
from perfkit.postgres.commands import aligned, named_placeholders, placed, placeholders
from perfkit.show.html import Cell, Code, Column, Inline, Paragraph, Part, Section, Sheet, Table, View, page, stacked
from perfkit.slow.examples import Value, example_rows, preparable, prepared
from perfkit.slow.statements import SlowQueries, SlowStatement
from perfkit.slow.tables import SlowView, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from perfkit.analysis.report import Run
    from perfkit.app.session import Session


@dataclass(frozen=True)
class Explained:
    """A plan with its findings; displays as a drawing, or as text."""

    capture: Capture
    note: str = ""  # which values the plan is for, if perfkit chose them

    @cached_property
    def plan(self) -> Plan:
        """Return the plan of the last execution."""
        return self.capture.plan

    @cached_property
    def findings(self) -> list[Finding]:
        """Return what is wrong with the plan, gravest first."""
        return findings(self.plan, self.capture.facts)

    @property
    def view(self) -> PlanView:
        """Return what displays it."""
        return PlanView(self.plan, self.findings, self.note, self.capture.first)

    @property
    def frame(self) -> DataFrame:
        """One row per step of the plan: see `PlanView.frame`."""
        return self.view.frame

    def _repr_html_(self) -> str:
        return self.view._repr_html_()

    def __repr__(self) -> str:
        return repr(self.view)


@dataclass(frozen=True, repr=False)
class WhatIf(View):
    """A statement without and with an index that was not kept; displays as the change of its plan."""

    index: str  # the CREATE INDEX
    before: Explained
    after: Explained
    evidence: str
    made: Made  # built and rolled back, or hypothetical (HypoPG)

    @cached_property
    def plans(self) -> DiffView:
        """Return both plans, side by side."""
        before = PlanView(self.before.plan, self.before.findings, "without the index")
        return DiffView(before, PlanView(self.after.plan, self.after.findings, "with the index"))

    @property
    def diff(self) -> Diff:
        """Return both plans, aligned."""
        return self.plans.diff

    @property
    def bytes(self) -> int:
        """Return the size of the index: as built, or as HypoPG estimates it (rather too large)."""
        return self.made.bytes

    @property
    def used(self) -> bool:
        """Return whether the planner uses the index."""
        return any(node.index in self.made.names for node in self.after.plan.nodes)

    @property
    def sentence(self) -> str:
        """`would be used: 9,091 -> 3 pages, measured once on a rolled-back build; 22 MB`."""
        verb = "would be used" if self.used else "would not be used"
        how, about = ("on a rolled-back build", "") if self.made.quoted else ("by HypoPG", "about ")
        before, after = self.before.plan, self.after.plan
        figures = f"cost {' -> '.join(significant(plan.root.cost) for plan in (before, after))}"
        if before.analyzed and after.analyzed:
            figures = f"{count(before.buffers)} -> {count(after.buffers)} pages"
        return f"{verb}: {figures}, {self.evidence} {how}; {about}{size(self.bytes)}"

    @cached_property
    def limitation(self) -> str:
        """Return that the tables need ANALYZE first, if the plans are estimates and statistics are out of date."""
        facts = self.before.capture.facts
        return "" if self.before.plan.analyzed else analyze_first(FindingContext(self.before.plan, facts))

    def html(self) -> str:
        """Return the sentence and the plans, for a page with the style sheet."""
        limitation = Paragraph(self.limitation) if self.limitation else None
        return stacked(Paragraph(Inline(self.sentence)), limitation, self.plans).html()

    def text(self, width: int | None = None) -> str:
        """Return the sentence and the plans as text."""
        return "\n\n".join(part for part in (self.sentence, self.limitation, self.plans.text(width)) if part)


Values = Mapping[int, object] | Sequence[object]  # of a statement's parameters
ROWS = 200  # sets of values that a measurement sends in turn
# Where the values of a plan come from, as its note says.
LOGGED = "using the parameters of the slowest logged execution"
SAMPLED, ANY, USER = "using sampled values", "generic plan, for any values", "using your values"


@dataclass(frozen=True, repr=False)
class Examples(View):
    """Sets of values for a statement's parameters, each value with its origin; displays as a table."""

    sets: tuple[tuple[Value, ...], ...]

    @property
    def rows(self) -> list[dict[int, str | None]]:
        """Return each set as `explain` takes it: the value, as text, by the number of its parameter."""
        return [{value.number: value.text for value in values} for values in self.sets]

    def table(self) -> Table:
        """Return a table with a row for each value."""
        return Table.of(
            "Example parameters",
            (Column("set"), Column("parameter"), Column("type"), Column("value"), Column("from")),
            [
                (
                    str(at),
                    f"${value.number}",
                    value.type,
                    Cell("NULL" if value.text is None else value.text, code=True),
                    value.origin,
                )
                for at, values in enumerate(self.sets, 1)
                for value in values
            ],
            headers=2,
            note="" if self.rows else "the statement has no parameters",
        )

    def html(self) -> str:
        """Return the table as HTML."""
        return self.table().html()

    def text(self) -> str:
        """Return the table as text."""
        return self.table().text()


@dataclass(frozen=True, slots=True)
class Filled:
    """A statement as psycopg takes it, its values, and a note on their origin ("" if it has no parameters)."""

    text: str
    parameters: dict[str, object] | None = None
    origin: str = ""


@dataclass(eq=False, repr=False)
class SlowQuery:
    """One slow statement; keeps its plans, advice, trials and runs for `report`."""

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
        """Return the name of the statement in messages and advice."""
        return f"statement {self.position}"

    @property
    def sql(self) -> str:
        """Return the text as a client sent it, if it was logged with separate parameters; else the source's text."""
        example = self.statement.example
        return example.sql if example and placeholders(example.sql) else self.statement.text

    @cached_property
    def text(self) -> str:
        """Return `sql` fit to be prepared, with `$1`, `$2`, .... Raises PlanError if it cannot be explained."""
        database, text = self.session.database, preparable(self.sql)
        try:
            single(named_placeholders(text))
            return prepared(database, text) if placeholders(text) else text
        except (PlanError, UsageError) as error:
            raise PlanError(f"{self.name}: {error}") from None

    @property
    def session(self) -> Session:
        """Return the session that the statement was found in. Raises UsageError for a statement of a log file."""
        if self.within is None:
            raise UsageError(
                f"{self.name}: from a log file; connect to a database to explain it: perfkit.connect(...).slow(FILE)"
            )
        return self.within

    def explain(
        self, parameters: Values | None = None, *, analyze: bool = False, generic: bool = False, timeout_s: float = 60.0
    ) -> Explained:
        """Return the plan for `parameters` (`{1: ...}`, or a list for `$1`, `$2`, ...) or for the best known values.

        The best values are those of the slowest logged execution, else sampled ones, else none: the generic plan. The
        `note` of the result says which. Raises PlanError, and UsageError or TargetRefused as `Session.explain` does.
        """
        if generic:
            filled = Filled(named_placeholders(self.text), None, ANY)
        else:
            filled = self._with_values(parameters) if parameters is not None else self._filled(optional=not analyze)
        options = {"analyze": analyze, "generic": filled.origin == ANY}
        with progress() as say:
            say(f"explaining {self.name}")
            explained = self.session.explain(filled.text, filled.parameters, **options, timeout_s=timeout_s)
        self.plans.append(replace(explained, note=filled.origin))
        return self.plans[-1]

    @property
    def logged_plan(self) -> Explained | None:
        """Return the plan that auto_explain logged for the slowest execution; None if it logged none."""
        plan = self.statement.plan
        return Explained(Capture((read_plan(plan),)), "as logged") if plan is not None else None

    def example_parameters(self, n: int = 1, given: Mapping[int, object] | None = None, seed: int = 1) -> Examples:
        """Return `n` sets of values: first those of the slowest logged execution, if known; the others are sampled.

        A value that is `given` by its number is in every set. Raises PlanError, UsageError.
        """
        if n < 1:
            raise UsageError(f"n = {n}; expected 1 or more")
        if not placeholders(self.text):
            return Examples(())
        sampled = example_rows(self.session.database, self.text, n, seed)
        if (logged := self._logged()) is not None:
            first = tuple(replace(v, text=logged[v.number], origin="the slowest logged execution") for v in sampled[0])
            sampled = [first, *sampled[: n - 1]]
        fixed = dict(given or {})
        if wrong := sorted(fixed.keys() - set(placeholders(self.text))):
            raise UsageError(f"{self.name}: no ${wrong[0]}; expected {self._numbers}")
        return Examples(tuple(
            tuple(replace(v, text=_text(fixed[v.number]), origin="given") if v.number in fixed else v for v in row)
            for row in sampled
        ))  # fmt: skip

    def findings(self) -> list[Finding]:
        """Return what is wrong with the last plan, gravest first; makes a plan if there is none."""
        return (self.plans[-1] if self.plans else self.explain()).findings

    def advise(self, *, analyze: bool | None = None) -> Advice:
        """Propose an index, or say why no index helps; see `perfkit.advise`. Raises PlanError, TargetRefused."""
        filled = self._filled()
        with progress() as say:
            queries = {self.name: (filled.text, filled.parameters)}
            self.advice.append(index_advice(self.session, queries, analyze=analyze, say=say))
        return self.advice[-1]

    def whatif(self, index: str, parameters: Values | None = None, *, analyze: bool | None = None) -> WhatIf:
        """Return its plans without and with an index; see `Session.whatif`. Raises UsageError, PlanError."""
        filled = self._with_values(parameters) if parameters is not None else self._filled()
        with progress() as say:
            say(f"trying an index for {self.name}")
            self.trials.append(self.session.whatif(filled.text, index, filled.parameters, analyze=analyze))
        return self.trials[-1]

    def measure(self, index: Texts = (), **options: object) -> Run:
        """Measure paired rounds without and with an index; by default, with what `advise` last proposed.

        The options are `profile`, `way`, `users`, `seed` and `reports`. On a server that perfkit started, the rounds
        run on clones of this database. A database of yours is measured as `perfkit.compare` does, in its `way`
        ("whole": a private copy). Raises PerfkitError as `perfkit.run` does.
        """
        proposed = [proposal.statement for advised in self.advice[-1:] for proposal in advised.proposals]
        spec = narrowed(StatementSpec, None, index=index or proposed, **options)
        rows, text = self.example_parameters(ROWS, seed=spec.seed).sets, named_placeholders(self.text)
        with progress() as say:
            self.runs.append(app.session.measure_statement(self.session, text, rows, spec, say))
        return self.runs[-1]

    def report(self, path: str | Path) -> Path:
        """Write the statement's plans, advice, trials and runs as one page that requests nothing; return its path.

        Raises BundleError if the page cannot be written, PlanError if the statement has no plan.
        """
        if not self.plans:
            self.explain()
        plans = [self.plans[-1].view, *([plan.view] if (plan := self.logged_plan) else [])]
        evidence = StatementEvidence(
            self.found, self.position, self.sql, plans, self.advice[-1:], self.trials, self.runs
        )
        write_atomically(Path(path), evidence.page())
        return Path(path)

    @property
    def _table(self) -> Table:
        return figures(self.found, self.position)

    @property
    def _numbers(self) -> str:
        return ", ".join(f"${number}" for number in placeholders(self.text)) or "no parameters"

    def _logged(self) -> dict[int, str | None] | None:
        """Return the values of the slowest logged execution, by number; None if they are not known."""
        example = self.statement.example
        values = aligned(self.sql, example.sql, example.parameters) if example else None
        if values is None:
            return None
        return {number: values[old] for old, number in zip(placed(self.sql), placed(self.text), strict=True)}

    def _with_values(self, parameters: Values) -> Filled:
        if not isinstance(parameters, Mapping):
            parameters = dict(enumerate(parameters, 1))
        if set(parameters) != set(placeholders(self.text)):
            numbers = ", ".join(f"${number}" for number in sorted(parameters)) or "none"
            raise UsageError(f"{self.name}: parameters {numbers}; expected {self._numbers}")
        return Filled(named_placeholders(self.text), _named(parameters), USER)

    def _filled(self, *, optional: bool = False) -> Filled:
        """Return the statement with the best known values; without values only if these are `optional`."""
        example, whole = self.statement.example, None
        if example and not placeholders(example.sql):  # the text itself holds the values
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
        return whole or self._sampled(optional)  # e.g. a list of another length: no parameter matches a logged value

    def _sampled(self, optional: bool) -> Filled:
        """Return the statement with sampled values: of several sets, the first with the plan that most sets get."""
        text, database = named_placeholders(self.text), self.session.database
        try:
            rows = [_named({v.number: v.text for v in row}) for row in example_rows(database, self.text, PLANNED)]
            return Filled(text, dict(typical_parameters(database.session, text, rows) or {}), SAMPLED)
        except PlanError as error:
            if optional:
                return Filled(text, None, ANY)
            raise PlanError(f"{self.name}: {error}; expected explain(parameters=...)") from None

    def _repr_html_(self) -> str:
        return Sheet([Code(self.sql, "SQL"), self._table])._repr_html_()

    def __repr__(self) -> str:
        return repr(self._table)


def _named(values: Mapping[int, object]) -> dict[str, object]:
    return {f"p{number}": value for number, value in values.items()}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def figures(queries: SlowQueries, position: int) -> Table:
    """Return the table of one statement: its row of the table of all."""
    table = SlowView(queries, position).table()
    return replace(table, caption="What it costs", rows=table.rows[position - 1 :])


@dataclass(frozen=True, slots=True)
class StatementEvidence:
    """What is known of one statement, in the order of its page."""

    found: SlowQueries
    position: int
    sql: str
    plans: Sequence[PlanView] = ()
    advice: Sequence[Advice] = ()
    trials: Sequence[WhatIf] = ()
    runs: Sequence[Run] = ()

    def page(self) -> str:
        """Return the evidence as one page that requests nothing."""
        title = f"Slow statement: {one_line(self.sql, 60)}"
        return page(title, *(Section(parts, heading, level) for heading, level, parts in self._sections()))

    def _sections(self) -> Iterator[tuple[str, int, list[Part]]]:
        """Yield title, level and parts of each section."""
        head = [Paragraph(self.found.source), Code(self.sql, "SQL"), figures(self.found, self.position)]
        yield f"Slow statement {self.position}", 1, head
        for plan in self.plans:
            yield "Plan", 2, [plan]
        for advised in self.advice:
            yield "Advice", 2, [advised]
        for trial in self.trials:
            yield "What if", 2, [Code(trial.index, "SQL"), trial]
        for run in self.runs:
            yield "Measured", 2, [run.decision, run.levels, run.index_costs, run.weaknesses]

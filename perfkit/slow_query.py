"""One slow statement, from its text to evidence: explained, advised, tried with an index, measured, reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.bundle import write_atomically
from perfkit.display.evidence import StatementEvidence, examples, figures
from perfkit.display.html import code, style
from perfkit.display.progress import progress
from perfkit.display.table import Table
from perfkit.errors import PlanError, UsageError
from perfkit.explain.capture import PLANNED, Capture, single, typical_parameters
from perfkit.explain.findings import Finding
from perfkit.indexes.advice import Advice
from perfkit.indexes.advise import advise
from perfkit.query import Explained, Session, WhatIf
from perfkit.slow.examples import Value, example_rows
from perfkit.slow.mending import preparable
from perfkit.slow.model import SlowQueries, SlowStatement
from perfkit.slow.placing import aligned, named_placeholders, placed, placeholders
from perfkit.slow.preparing import prepared

if TYPE_CHECKING:
    from perfkit.report.run import Run

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
            self.advice.append(advise(self.session, queries, analyze=analyze, say=say))
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
        from perfkit.proof import measured

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

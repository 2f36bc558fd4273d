"""Explaining statements in a database that was let through the guards: a session, and what it gives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from perfkit import config as configuration
from perfkit.arms.clones import Clones
from perfkit.arms.stage import RelaySpec
from perfkit.display.plans import DiffView, PlanView
from perfkit.display.whatif import WhatIfView
from perfkit.errors import UsageError
from perfkit.explain.capture import Capture, ExplainSpec, Parameters
from perfkit.explain.diff import Diff
from perfkit.explain.findings import Finding, findings
from perfkit.explain.findings.model import FindingContext
from perfkit.explain.plan import Plan
from perfkit.explain.safety import guarded
from perfkit.guards.address import resolve
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.indexes.fresh import analyze_first
from perfkit.indexes.trial import Made, one_index, trying
from perfkit.postgres.databases import connected
from perfkit.postgres.external import open_external
from perfkit.postgres.place import Database
from perfkit.selection import RunSpec as Chosen
from perfkit.selection import Selection
from perfkit.targets import admitted

if TYPE_CHECKING:
    from perfkit.display.activity import ActivityView
    from perfkit.slow.query_logging import Logging
    from perfkit.slow_queries import SlowTable

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
        from perfkit.slow_queries import look

        return look(self, source, seconds)

    def activity(self) -> ActivityView:
        """What runs in the database now, what it waits for, and who makes whom wait. Raises ServerError."""
        from perfkit.display.activity import ActivityView
        from perfkit.slow.activity import now

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
        from perfkit.slow.query_logging import LoggingSpec, logging_on

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

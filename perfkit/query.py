"""Explaining statements in a database that was let through the guards: a session, and what it gives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from perfkit import config as configuration
from perfkit.arms.clones import Clones
from perfkit.arms.stage import Place, Relay
from perfkit.display.plans import PlanView
from perfkit.errors import UsageError
from perfkit.explain.capture import Capture, Options, Parameters
from perfkit.explain.findings import Finding, findings
from perfkit.explain.plan import Plan
from perfkit.explain.safety import guarded
from perfkit.guards.address import resolve
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.postgres.external import open_external
from perfkit.selection import Options as Chosen
from perfkit.selection import Selection

Say = Callable[[str], None]


@dataclass(frozen=True)
class Explained:
    """A plan with what the rules found in it; it shows itself as a drawing, or as text."""

    capture: Capture

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
        return PlanView(self.plan, self.findings, first=self.capture.first if len(self.capture.documents) > 1 else None)

    def _repr_html_(self) -> str:
        return self.view._repr_html_()

    def __repr__(self) -> str:
        return repr(self.view)


@dataclass(slots=True)
class Session:
    """A database in which statements are explained; a context manager that leaves nothing behind."""

    place: Place
    volatile: frozenset[str] = frozenset()
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
        options = Options(analyze, generic, repeats, timeout_s, serialize=serialize)
        return Explained(guarded(self.place.site, self.place.session, sql, parameters, options, self.volatile))

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
    return Session(Place(external, external.address.dbname), frozenset(volatile))


def made(config: str | Path = "", scale: str = "", arm: str = "", postgres: int = 0, *, say: Say) -> Session:
    """A session in the data of a configuration, the booking system's by default, on a server that perfkit starts.

    `arm` is one of the configuration's, with its indexes; by default the first. Raises UsageError, ServerError.
    """
    settings = configuration.load(Path(config) if config else None)
    first = settings.baseline().name
    chosen = Selection(settings, Chosen(scale=scale, postgres=postgres, arms=tuple({first, arm or first})))
    if settings.database is None or not settings.database.prepare:
        raise UsageError(f"{config}: its data is not made by SQL files; expected --db with the database itself")
    with ExitStack() as stack:
        stage = stack.enter_context(Clones(settings, secrets.token_hex(3), Relay(), {}, {}, say, chosen.postgres))
        say(f"making the data{f' ({chosen.scale})' if chosen.scale else ''}")
        stage.base(chosen.scale)
        place, _ = stage.prepare(next(own for own in chosen.arms if own.name == (arm or first)))
        return Session(place, _stack=stack.pop_all())

"""A rollback in a database in use: looked at, dropped, looked at again.

Before anything is dropped the queries are planned, never executed for that, and those that only read are sent a few
times a second for some seconds; afterwards the same again. The indexes are dropped as `perfkit indexes rollback` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from perfkit import config as configuration
from perfkit import sources
from perfkit.analysis import analyse
from perfkit.bundle import Bundle, reading, write_atomically
from perfkit.comparison import ComparisonSpec, Text
from perfkit.errors import Interrupted, PerfkitError, ServerError, UsageError
from perfkit.experiment import measure
from perfkit.explain.capture import PLANNED, named
from perfkit.explain.facts import NO_FACTS, PlanFacts
from perfkit.explain.plan import Plan
from perfkit.guards.address import resolve
from perfkit.guards.admission import Permission
from perfkit.guards.audit import Audit
from perfkit.indexes.apply import Dropped, look, rollback, rollback_script
from perfkit.indexes.examine import Found
from perfkit.indexes.statements import IndexSet, read_set
from perfkit.numbers import significant
from perfkit.postgres.external import External, open_external
from perfkit.postgres.place import Database
from perfkit.release.queries import JudgedQuery, asked_for, captured, looked_at, planned_in
from perfkit.release.rollback import FILE, Rollback, RollbackItem, RollbackPlan, index_items, plan_item
from perfkit.selection import RunSpec as Chosen
from perfkit.selection import alone
from perfkit.targets import admitted

Say = Callable[[str], None]
RATE, SECONDS = 2.0, 5.0  # a query's executions per second, and how long a round lasts
USERS = 4  # in flight at most
Medians = Mapping[str, str]  # in words, by query
WITH, WITHOUT = "with", "without"


@dataclass(frozen=True, slots=True)
class RollbackSpec:
    """What is taken back, and what is looked at: `against` is the folder of a run from before the release."""

    db: str
    indexes: Path
    query: Sequence[Text] = ()
    parameters: Path | None = None
    against: Path | None = None
    rounds: int = 3  # before and after; 0 sends nothing
    tls: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= 100:
            raise UsageError(f"rounds = {self.rounds}; expected 0 to 100")


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that is known before anything is dropped."""

    asked: RollbackSpec
    external: External
    permission: Permission
    wanted: IndexSet
    found: Sequence[Found]
    queries: Sequence[JudgedQuery]
    against: Bundle | None

    @property
    def place(self) -> Database:
        """The database."""
        return Database(self.external, self.external.address.dbname)

    @property
    def sent(self) -> list[JudgedQuery]:
        """The queries that rounds send."""
        return [query for query in self.queries if not query.unsent] if self.asked.rounds else []

    def script(self) -> str:
        """The SQL that would run, and as comments what would be looked at before it and after it."""
        lines = [f"-- planned before and after, not executed for it: {query.name}" for query in self.queries]
        each = f"{self.asked.rounds} rounds of {SECONDS:g} s, {RATE:g} a second, read-only"
        lines += [f"-- sent before and after, {each}: {query.name}" for query in self.sent]
        lines += [f"-- not sent: {query.name}: {query.unsent}" for query in self.queries if query.unsent]
        return rollback_script(self.wanted, self.found) + "".join(f"{' '.join(line.split())}\n" for line in lines)

    def take_back(self, folder: Path, say: Say) -> Rollback:
        """Look, drop and look again, into a folder. Whatever ends it early can be run again.

        Rounds that fail stop nothing: an ailing system is why indexes are taken back. Raises ServerError and
        Interrupted saying what was dropped and what is left; PlanError.
        """
        missing: list[str] = []
        before = self._measured(folder, WITH, say, missing)
        gone = self._dropped(say)
        say("looking at what is left")
        found = look(self.external, self.place.name, self.wanted)
        names = tuple(index.name for index in self.wanted.indexes)
        items = [*index_items(found, gone), *(plan_item(planned, names) for planned in self._planned())]
        self._kept(folder, Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing))))
        after = self._measured(folder, WITHOUT, say, missing)
        items += self._latencies(before, after)
        result = Rollback(self.external.name, names, tuple(items), tuple(self._unseen(missing)))
        self._kept(folder, result)
        return result

    def _kept(self, folder: Path, result: Rollback) -> None:
        write_atomically(folder / FILE, json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def _dropped(self, say: Say) -> list[Dropped]:
        try:
            return rollback(self.external, self.place.name, self.wanted, say)
        except (Interrupted, ServerError) as error:
            left = ""
            with suppress(PerfkitError, KeyboardInterrupt):
                there = look(self.external, self.place.name, self.wanted)
                invalid = {True: " (invalid)", False: ""}
                names = [own.index.name + invalid[own.state == "invalid"] for own in there if own.state != "missing"]
                left = f"; left: {', '.join(names) or 'none'}"
            raise type(error)(f"{error}{left}") from None

    def _planned(self) -> Iterator[RollbackPlan]:
        """Every query's plan as it is now, beside that from before the release."""
        before = _before(self.against) if self.against else ""
        no_plan: tuple[Plan | None, PlanFacts] = (None, NO_FACTS)
        for query in self.queries:
            now = captured(self.place, query)
            then, facts = no_plan
            if self.against and query.known and self.against.plan(before, query.known) is not None:
                then, facts = planned_in(self.against, before, query.known)
            unlike = "planned for any values, and before for given ones (--parameters)" if query.generic else ""
            yield RollbackPlan(query.name, now.plan, now.facts, then, facts, query.plan, unlike)

    def _measured(self, folder: Path, name: str, say: Say, missing: list[str]) -> Medians:
        """A few rounds of what only reads; where they fail, why is added to what is `missing`."""
        try:
            return self._rounds(folder, name, say) if self.sent else {}
        except Interrupted:
            raise
        except PerfkitError as error:
            missing.append(f"Not measured {name} the indexes: {error}.")
            return {}

    def _rounds(self, folder: Path, name: str, say: Say) -> Medians:
        """Medians by query, through the guards of any load on somebody's server."""
        asked, texts = self.asked, [query.sql for query in self.sent]
        values = asked.parameters if any(named(text) for text in texts) else None
        load = ComparisonSpec(
            asked.db,
            texts,
            parameters=values,
            way="in-place",
            users=USERS,
            tls=asked.tls,
            bare=True,
            rate=RATE * len(texts),
            seconds=SECONDS,
        )
        given = folder / f"{name}-load"
        given.mkdir()
        settings = configuration.load(load.write(given))
        chosen = alone(settings, Chosen("quick", blocks=asked.rounds, config=str(given / "perfkit.toml")))
        targets = admitted(chosen.config, chosen.arms, self.permission)
        run = measure(chosen, folder / name, lambda text: say(text and f"{name} the indexes, {text}"), targets)
        medians = _medians(run)
        return {
            query.name: medians.get(own.name, "") for query, own in zip(self.sent, chosen.config.query, strict=True)
        }

    def _latencies(self, before: Medians, after: Medians) -> Iterator[RollbackItem]:
        """A query's medians with and without the indexes, beside that from before the release: no verdict."""
        then = _medians(self.against) if self.against and before and after else {}
        for query in self.sent:
            if (own := before.get(query.name)) and (now := after.get(query.name)):
                said = f"{query.name}: median {own} with the indexes, {now} without"
                if query.known in then:
                    said += f"; {then[query.known]} before the release, on another machine or under other load"
                yield RollbackItem("latency", query.name, None, f"{said}.")

    def _unseen(self, missing: Sequence[str]) -> Iterator[str]:
        yield from missing
        if not self.queries:
            yield "No plan was looked at: expected --query, or --against with a run from before the release."
        elif not self.against:
            yield "What the plans were before the indexes is not known: expected --against with a run from then."
        yield from (f"Not sent: {query.name}: {query.unsent}." for query in self.queries if query.unsent)
        if self.sent:
            each = f"{self.asked.rounds} rounds of {SECONDS:g} s, {RATE:g} a second"
            yield f"Medians are of {each}, one after the other beside other load: shown, not judged."
        else:
            yield "No query was sent, so that no latency is known; without --db it is rehearsed with rounds."


def ready(asked: RollbackSpec, permission: Permission, say: Say) -> Ready:
    """Connect, and find out how things are; nothing is changed.

    Raises TargetRefused, ServerError, UsageError, PlanError.
    """
    wanted = read_set(asked.indexes)
    against = Bundle.open(asked.against) if asked.against else None
    say("connecting")
    external = open_external(resolve(asked.db, asked.tls), permission, Audit(None))
    permission = replace(permission, confirm=(*permission.confirm, external.name))  # asked once
    found = look(external, external.address.dbname, wanted)
    place = Database(external, external.address.dbname)
    rows = sources.rows("parameters", asked.parameters, place, "1")[:PLANNED] if asked.parameters else []
    with reading(asked.against or Path()):
        wants = list(asked_for(asked.query, against))
        _ = _before(against) if against else ""
    queries = [looked_at(place, *own, rows) for own in wants]
    return Ready(asked, external, permission, wanted, found, queries, against)


def _before(run: Bundle) -> str:
    return next(str(arm) for arm, role in run.run["roles"].items() if role == "before")


def _medians(run: Bundle) -> Medians:
    """By query, its median on the arm `before` in the first load level that sent it."""
    found: dict[str, str] = {}
    for level in analyse(run).levels:
        if level.arm == _before(run) and level.p50:
            found.setdefault(level.item, f"{significant(level.p50.value)} ms")
    return found

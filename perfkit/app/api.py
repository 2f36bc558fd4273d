"""The Python API: calls behind the command line, papermill and interactive cells."""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.app import session as sessions
from perfkit.app.runs import Ask, Names, compare, measure, names, new_folder, run, texts
from perfkit.app.session import Explained, Session, in_file, made
from perfkit.base import resources
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.base.process import progress
from perfkit.explain.capture import Capture, read_documents
from perfkit.indexes.designs import workload
from perfkit.indexes.lab import AUTO, LabSpec, run_lab
from perfkit.indexes.lab_tables import IndexLab
from perfkit.indexes.search import index_advice
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.schedule import Arrivals, Draw, Message
from perfkit.monitor import loop as watching
from perfkit.monitor.incidents import parse_duration
from perfkit.postgres.guards import Permission
from perfkit.postgres.sqltext import read, split
from perfkit.release import report
from perfkit.release import rollback as live
from perfkit.release import rollback as rehearsal
from perfkit.release.gate import parse
from perfkit.release.report import RolledBack
from perfkit.runs import selection
from perfkit.runs.selection import RunSpec
from perfkit.runs.targets import ComparisonSpec, index_set, sql_of
from perfkit.slow.query_logging import LoggingSpec, Where, logging_on

if TYPE_CHECKING:
    from perfkit.app.session import SlowTable
    from perfkit.indexes.advice import Advice
    from perfkit.monitor.notifications import WatchSummary
    from perfkit.monitor.review_report import Review
    from perfkit.release.report import GoNoGo
    from perfkit.runs.targets import Text


RATE, USERS = 60.0, 4  # statements a second, and how many of them may be in flight
TIMEOUT_S = 30.0
#: What happens how often: patients look most, the front desk often, few book and fewer cancel.
SHARES = {
    "upcoming_for_contact": 45,
    "clinic_day": 18,
    "book": 14,
    "conflict_check": 12,
    "cancel": 6,
    "status_counts": 5,
}
EVENTS = 1000
Say = Callable[[str], None]
Work = Callable[[float], Counter[str]]


def clinic_session(scale: str = "small", seconds: float = 8.0, seed: int = 1, *, say: Say) -> Session:
    """A session in the booking system's data, without its indexes, in which a clinic has worked for so long.

    What it did is in the server's log: `session.slow()` shows it. Raises UsageError, ServerError, LoadError.
    """
    session = made(scale=scale, arm="before", say=say)
    try:
        say(f"a clinic works for {seconds:g} s")
        with clinic(session, seed) as work:
            work(seconds)
    except BaseException:
        session.close()
        raise
    return session


@contextmanager
def clinic(session: Session, seed: int = 1) -> Iterator[Work]:
    """A function that lets a clinic work for so many seconds and counts its statements; all of them are logged.

    `session` is one in the booking system's data. Raises ServerError, and the function LoadError.
    """
    target = sql_target(session.place.conninfo(), TIMEOUT_S, TIMEOUT_S)
    messages, turn = tuple(_day(session, seed)), count()

    def work(seconds: float) -> Counter[str]:
        arrivals = Arrivals(messages, ((RATE, RATE, seconds),), USERS, f"{seed}/{next(turn)}")
        return Counter({item: n for (item, _), n in crew.run(target, [arrivals]).counts().items()})

    site, database = session.place.site, session.place.name
    who = Where("perfkit", database)  # as whom the load comes; those who look at the log come as the superuser
    with logging_on(site, database, LoggingSpec(ms=0.0, plans=False), who), WorkerPool(1) as crew:
        yield work


def _day(session: Session, seed: int) -> Iterator[Message]:
    """What happens, in a random order and in its shares, with parameters as the booking system's workload has them."""
    settings, random = configuration.load(), Random(seed)
    files = {query.name: (query.file, query.parameters or "") for query in settings.query}
    files |= {path.stem: (path, "bookings") for path in resources.path("sql/demo").glob("*.sql")}
    kinds = {name: (split(read(path))[0].text, source) for name, (path, source) in files.items()}  # an application's
    rows = {
        name: selection.rows(name, source, session.place, str(seed)) for name, source in settings.parameters.items()
    }
    draw = Draw(rows, str(seed))
    booked = draw("bookings")
    for name in random.choices(list(SHARES), list(SHARES.values()), k=EVENTS):
        row = booked if name == "cancel" else draw(kinds[name][1])
        if name == "book":  # nobody books without looking whether the slot is free
            booked = row
            yield {"item": "conflict_check", "sql": kinds["conflict_check"][0], "params": row}
        yield {"item": name, "sql": kinds[name][0], "params": row}


# Databases and plans to look at: connect, what is slow, plans from elsewhere.


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
    if db:
        permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
        return sessions.connect(db, permission, tls=tls, volatile=names(volatile))
    with progress() as say:
        return sessions.made(config, scale, arm, postgres, say=say)


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
    with progress() as say:
        return clinic_session(scale, seconds, seed, say=say)


def plans(text: str | Path) -> list[Explained]:
    """Plans from elsewhere, judged and ready to be shown: JSON, psql's output or auto_explain's, or a file of these.

    Raises PlanError for what holds none, UsageError for a file that cannot be read.
    """
    if isinstance(text, Path):
        try:
            text = text.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise UsageError(f"{text}: cannot be read ({error.strerror}); expected a file with plans") from None
    return [Explained(Capture((document,), ())) for document in read_documents(text)]


# Index sets: what each index is worth, which would help, and taking a set back.


def ablate(
    profile: str = "standard",
    scale: str = "",
    seed: int = 1,
    postgres: int = 0,
    config: str | Path = "",
    indexes: Text = "",
    margin: float = 0.0,
    budget_mb: float = 0.0,
    advised: Text = "",
    reads: bool = True,
    db: str = "",
    query: Text | Sequence[Text] = (),
    parameters: Text | None = None,
    way: str = "whole",
    tls: bool = True,
    command: str = "",
    bundle: str | Path = "",
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> IndexLab:
    """Measure what each index of a set is worth, into a new folder; or open the folder of a lab.

    `indexes` is SQL or a file; without it, the first arm of the configuration that has some. With `db` the workload
    is `query` on a database of yours, as for `compare`. `advised` is another set that is compared with all of them,
    or "auto": what perfkit itself would advise.
    Without `reads` only what they cost is measured. Raises PerfkitError as `run` does.
    """
    if bundle:
        return IndexLab(Path(bundle))

    folder = new_folder(reports, f"lab-{profile}" if reads else "index-costs")
    try:
        if db:
            config = ComparisonSpec(db, texts(query), (indexes,), None, None, parameters, way, tls=tls).write(folder)
        settings = configuration.load(Path(config) if config else None)
        options = RunSpec(profile, scale, seed, postgres=postgres, config=str(config))
        asked = LabSpec(
            settings,
            index_set(settings, "" if db else indexes, folder),
            options,
            margin or settings.margin,
            budget_mb * 1024 * 1024 or math.inf,
            advised if advised in ("", AUTO) else sql_of(advised),
            reads,
            command,
        )
    except BaseException as error:
        shutil.rmtree(folder)  # nothing was measured
        if isinstance(error, PerfkitError):  # names of files that are gone would only puzzle
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
        raise
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    try:
        with progress() as say:
            run_lab(
                asked,
                folder,
                permission,
                lambda base, queries, say: index_advice(Session(base), queries, say=say),
                say,
            )
    except PerfkitError:
        if not any((folder / name).exists() for name in ("ablation", "audit.jsonl")):  # nothing was measured or done
            shutil.rmtree(folder)
        raise
    return IndexLab(folder)


def advise(
    config: str | Path = "",
    scale: str = "",
    seed: int = 1,
    postgres: int = 0,
    db: str = "",
    query: Text | Sequence[Text] = (),
    parameters: Text | None = None,
    way: str = "",
    analyze: bool | None = None,
    tls: bool = True,
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> Advice:
    """Which indexes a workload needs, and why none would help the rest of it.

    The workload is that of a configuration, on data that perfkit makes, or with `db` the `query` on a database of
    yours: as it is (HypoPG, or the plans alone), or with a `way` in a private copy, where indexes are built and
    rolled back. Raises PerfkitError.
    """
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    with progress() as say, tempfile.TemporaryDirectory() as folder:
        if db:
            wanted = ComparisonSpec(db, texts(query), parameters=parameters, way=way or "whole", tls=tls, bare=True)
            config = wanted.write(Path(folder))
        settings = configuration.load(Path(config) if config else None)
        if db and not way:
            session = sessions.connect(db, permission, tls=tls)
        else:
            session = sessions.made(config, scale, postgres=postgres, say=say, permission=permission)
        with session:
            queries = workload(settings, session.place, seed)
            return index_advice(session, queries, analyze=analyze, say=say)


def rollback(
    indexes: Text = "",
    config: str | Path = "",
    scale: str = "",
    profile: str = "quick",
    seed: int = 1,
    postgres: int = 0,
    db: str = "",
    query: Text | Sequence[Text] = (),
    parameters: str | Path | None = None,
    against: str | Path | None = None,
    rounds: int = 3,
    tls: bool = True,
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> RolledBack:
    """Drop an index set and prove that all is as before: rehearsed on a server that perfkit starts, or with `db`, done.

    A rehearsal measures the indexes of a file, or those of the configuration, built and dropped again, beside a
    system that never had them. With `db` the file's indexes are dropped CONCURRENTLY there; plans of `query`, or of
    the queries of the run `against`, are looked at before and after, and what only reads is sent for `rounds`
    of 5 s. Raises PerfkitError as `run` does; Interrupted says what is dropped and what is left.
    """
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    with progress() as say:
        if db:
            given, run = (Path(name) if name else None for name in (parameters, against))
            found = live.ready(
                live.RollbackSpec(db, Path(indexes), texts(query), given, run, rounds, tls), permission, say
            )
            folder = new_folder(reports, "rollback")
            try:
                found.take_back(folder, say)
            except BaseException:
                if not any(folder.iterdir()):  # nothing was measured
                    folder.rmdir()
                raise
            return RolledBack(folder)

        settings = configuration.load(Path(config) if config else None)
        options = RunSpec(profile, scale, seed, postgres=postgres, config=str(config))
        folder = new_folder(reports, f"rollback-{profile}")
        try:
            rehearsal.rehearse(rehearsal.RehearsalSpec(settings, options, indexes), folder, permission, say)
        except BaseException:
            if not (folder / "run.json").exists():  # nothing was measured
                shutil.rmtree(folder)
            raise
    return RolledBack(folder)


# A release: the decision to ship, the watch of what was shipped, and its review.


def decide(
    run: str | Path = "",
    arm: str = "",
    watch: str | Path = "",
    answers: Names = (),
    by: str = "",
    bundle: str | Path = "",
    junit: str | Path = "",
    json: str | Path = "",
) -> GoNoGo:
    """Decide whether to ship what a run measured, seal its folder with the decision; or open the `bundle` of one.

    Judged are the run's rules for `arm`, else for every arm after the change, its checks and its database, a `watch`
    by its folder, and `answers` ("Team ready for launch=yes"), which are kept in the run's folder as said `by`
    somebody. `junit` and `json` are files that hold the decision too. Raises PerfkitError.
    """
    if bool(run) == bool(bundle):
        raise UsageError("run or bundle; expected one of the two: the folder to decide on, or of a decision to show")
    if run:
        report.decide(Path(run), arm, str(watch), parse(names(answers)), by, junit=str(junit), json=str(json))
    return report.GoNoGo(Path(run or bundle))


def watch(
    lasts: str = "24h",
    every: str = "",
    config: str | Path = "",
    folder: str | Path = "",
    arm: str = "",
    scale: str = "",
    rate: float = 0.0,
    metrics: str = "",
    notify: str = "",
    quiet: bool = False,
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> WatchSummary:
    """Watch a live service and its database for so long (`90s`, `24h`), into a new folder, or on in the one given.

    A service and a database of yours, as the configuration names them, need not answer yet; otherwise perfkit starts
    both, on data of a `scale`. Empty values and 0 mean the configuration's own. With `metrics` Prometheus may ask at
    that `PORT` of this machine, 0 for a free one, or at `ADDRESS:PORT`. Raises PerfkitError as `run` does.
    """
    settings = configuration.load(Path(config) if config else None)
    try:
        command = shlex.split(notify)
    except ValueError as error:
        raise UsageError(f"notify = {notify!r}: {error}; expected a command and its arguments") from None
    changed = watching.with_overrides(settings.watch, parse_duration(every, "every") if every else 0.0, rate, command)
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    seconds = parse_duration(lasts, "for")
    where = Path(folder) if folder else new_folder(reports, "watch")
    options = watching.WatchSpec(where, seconds, arm, scale, metrics)
    try:
        with progress() as say:
            shown = (lambda _: None) if quiet else say
            told = (lambda _: None) if quiet else watching.print_line
            return watching.watch(settings.model_copy(update={"watch": changed}), permission, options, shown, told)
    except BaseException:
        if not folder and not (where / "audit.jsonl").exists() and not watching.has_record(where):
            shutil.rmtree(where)  # nothing was watched
        raise


def review(
    folder: str | Path,
    against: str | Path = "",
    arm: str = "",
    values: str | Mapping[str, float] = "",
    by: str = "",
    since: str = "",
    until: str = "",
    last: str = "",
    config: str | Path = "",
) -> Review:
    """A watch of the live system held against the targets that were set for its first day; nothing is measured.

    `values` are what people say of rows that nothing measures, by name, and `by` who says it. `against` is the run
    before the release, `arm` what of it was shipped. From `since` to `until` (ISO 8601, UTC), or the `last` "24h".
    Raises PerfkitError.
    """
    from perfkit.monitor.review_report import open_review  # notebook execution and matplotlib

    if not isinstance(values, str):
        values = "\n".join(f"{name}={value}" for name, value in values.items())
    return open_review(
        Path(folder),
        against=str(against),
        arm=arm,
        values=values,
        by=by,
        config=str(config),
        since=since,
        until=until,
        last=last,
    )


# The calls behind the command line, papermill and an interactive cell.

__all__ = [
    "ablate",
    "advise",
    "compare",
    "connect",
    "decide",
    "demo",
    "measure",
    "new_folder",
    "plans",
    "review",
    "rollback",
    "run",
    "slow",
    "watch",
]

"""The Python API: calls behind the command line, papermill and interactive cells."""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.app import session as sessions
from perfkit.app.evidence import Explained
from perfkit.app.runs import Ask, Names, compare, measure, names, new_folder, run, texts
from perfkit.app.session import Session, in_file
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.base.process import progress
from perfkit.explain.capture import Capture, read_documents
from perfkit.indexes.designs import workload
from perfkit.indexes.lab import AUTO, LabSpec, run_lab
from perfkit.indexes.lab_tables import IndexLab
from perfkit.indexes.search import index_advice
from perfkit.monitor import loop as watching
from perfkit.monitor.incidents import parse_duration
from perfkit.postgres.guards import Permission
from perfkit.release import report
from perfkit.release import rollback as rollbacks
from perfkit.release.decision import parse_answers
from perfkit.release.report import RolledBack
from perfkit.runs.selection import RunSpec
from perfkit.runs.targets import ComparisonSpec, index_set, sql_of

if TYPE_CHECKING:
    from perfkit.app.session import SlowTable
    from perfkit.indexes.advice import Advice
    from perfkit.monitor.notifications import WatchSummary
    from perfkit.monitor.review_report import Review
    from perfkit.release.report import GoNoGo
    from perfkit.runs.targets import Text


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
    """Open a database to explain statements in: `connect("service=staging", confirm=...).explain("SELECT ...")`.

    Without `db`, perfkit starts a server and generates the data of a configuration (by default, the booking system's)
    with the indexes of its `arm`. Raises PerfkitError as `run` does.
    """
    if db:
        permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
        return sessions.connect(db, permission, tls=tls, volatile=names(volatile))
    with progress() as say:
        return sessions.open_generated(config, scale, arm, postgres, say=say)


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
    """List the slow statements of a database's server: `slow(db="service=staging", confirm=...)[1].explain()`.

    For `source` and `seconds` see `Session.slow`. Without `db`, `source` is a log file, whose statements can only be
    shown. `perfkit.connect(...).slow()` does the same in a session that you keep. Raises PerfkitError.
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
    """Open the booking system's data, without its indexes, after a clinic has worked on it: `demo().slow()`.

    The server's log has the clinic's statements. Raises PerfkitError as `run` does.
    """
    with progress() as say:
        session = sessions.open_generated(scale=scale, arm="before", say=say)
        try:
            say(f"a clinic works for {seconds:g} s")
            with sessions.clinic(session, seed) as work:
                work(seconds)
        except BaseException:
            session.close()
            raise
        return session


def plans(text: str | Path) -> list[Explained]:
    """Read plans with their findings from JSON, psql's output, auto_explain's log, or a file with one of these.

    Raises PlanError for a text without a plan, UsageError for a file that cannot be read.
    """
    if isinstance(text, Path):
        try:
            text = text.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise UsageError(f"{text}: cannot be read ({error.strerror}); expected a file with plans") from None
    return [Explained(Capture((document,), ())) for document in read_documents(text)]


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
    """Measure which indexes of a set the workload needs, into a new folder; or open the folder of a lab.

    `indexes` is SQL or a file; by default, the set of the first arm that has one. With `db`, the workload is `query` on
    a database of yours, as for `compare`. `advised` is another set to compare, or "auto": the set that perfkit advises.
    Without `reads`, only the cost of the indexes is measured. Raises PerfkitError as `run` does.
    """
    if bundle:
        return IndexLab(Path(bundle))
    folder = new_folder(reports, f"lab-{profile}" if reads else "index-costs")
    try:
        if db:
            config = ComparisonSpec(db, texts(query), (indexes,), None, None, parameters, way, tls=tls).write(folder)
        settings = configuration.load(Path(config) if config else None)
        options = RunSpec(profile, scale, seed, postgres=postgres, config=str(config))
        spec = LabSpec(
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
        if isinstance(error, PerfkitError):  # the folder is gone, so the message must not name files in it
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
        raise
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    try:
        with progress() as say:
            lab = run_lab(
                spec,
                folder,
                permission,
                lambda database, queries, say: index_advice(Session(database), queries, say=say),
                say,
            )
    except PerfkitError:
        if not any((folder / name).exists() for name in ("ablation", "audit.jsonl")):  # nothing was measured or done
            shutil.rmtree(folder)
        raise
    return IndexLab(lab)


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
    """Propose indexes for a workload, and say why no index helps the rest of it.

    The workload is that of a configuration on generated data; or, with `db`, the `query` on a database of yours. There,
    candidates are tried with HypoPG or judged by the plans alone; with a `way`, they are built and rolled back in a
    private copy. Raises PerfkitError.
    """
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    with progress() as say, tempfile.TemporaryDirectory() as folder:
        if db:
            spec = ComparisonSpec(db, texts(query), parameters=parameters, way=way or "whole", tls=tls, bare=True)
            config = spec.write(Path(folder))
        settings = configuration.load(Path(config) if config else None)
        if db and not way:
            session = sessions.connect(db, permission, tls=tls)
        else:
            session = sessions.open_generated(config, scale, postgres=postgres, say=say, permission=permission)
        with session:
            queries = workload(settings, session.database, seed)
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
    """Drop an index set and prove that the system is as it was before; without `db`, rehearse this.

    A rehearsal runs on a server that perfkit starts: it builds and drops the indexes of a file, or of the
    configuration, and compares the result with a system that never had them. With `db`, perfkit drops the file's
    indexes CONCURRENTLY there, compares the plans of `query` (or of the queries of the run `against`) before and after,
    and sends the queries that only read for `rounds` of 5 s. Raises PerfkitError as `run` does; Interrupted says which
    indexes are dropped and which remain.
    """
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    with progress() as say:
        if db:
            values, run = (Path(name) if name else None for name in (parameters, against))
            spec = rollbacks.RollbackSpec(db, Path(indexes), texts(query), values, run, rounds, tls)
            prepared = rollbacks.prepare(spec, permission, say)
            folder = new_folder(reports, "rollback")
            try:
                prepared.run(folder, say)
            except BaseException:
                if not any(folder.iterdir()):  # nothing was measured
                    folder.rmdir()
                raise
            return RolledBack(folder)

        settings = configuration.load(Path(config) if config else None)
        options = RunSpec(profile, scale, seed, postgres=postgres, config=str(config))
        folder = new_folder(reports, f"rollback-{profile}")
        try:
            rollbacks.rehearse(rollbacks.RehearsalSpec(settings, options, indexes), folder, permission, say)
        except BaseException:
            if not (folder / "run.json").exists():  # nothing was measured
                shutil.rmtree(folder)
            raise
    return RolledBack(folder)


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
    """Decide whether to ship what a run measured, and seal its folder; or open the `bundle` of a decision.

    The decision rests on the run's rules for `arm` (by default, for every `after` arm), its checks and its database,
    on the folder of a `watch`, and on `answers` ("Team ready for launch=yes") given `by` a person, which the run's
    folder keeps. `junit` and `json` name files that also get the decision. Raises PerfkitError.
    """
    if bool(run) == bool(bundle):
        raise UsageError("expected either run, the folder to decide on, or bundle, the folder of a decision to show")
    if run:
        report.decide(Path(run), arm, str(watch), parse_answers(names(answers)), by, junit=str(junit), json=str(json))
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
    """Watch a live service and its database for a time (`90s`, `24h`), into a new folder or an existing `folder`.

    The configuration names the service and the database, which need not answer yet; otherwise perfkit starts both, on
    data of a `scale`. An empty value or 0 means the configuration's own. `metrics` serves Prometheus at a `PORT` of
    this machine (0: a free one) or at `ADDRESS:PORT`. Raises PerfkitError as `run` does.
    """
    settings = configuration.load(Path(config) if config else None)
    try:
        command = shlex.split(notify)
    except ValueError as error:
        raise UsageError(f"notify = {notify!r}: {error}; expected a command and its arguments") from None
    changed = watching.with_overrides(settings.watch, parse_duration(every, "every") if every else 0.0, rate, command)
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    seconds = parse_duration(lasts, "for")
    path = Path(folder) if folder else new_folder(reports, "watch")
    options = watching.WatchSpec(path, seconds, arm, scale, metrics)
    try:
        with progress() as say:
            settings = settings.model_copy(update={"watch": changed})
            show, note = (_silent, _silent) if quiet else (say, watching.print_line)
            return watching.watch(settings, permission, options, show, note)
    except BaseException:
        if not folder and not (path / "audit.jsonl").exists() and not watching.has_record(path):
            shutil.rmtree(path)  # nothing was watched
        raise


def _silent(_: str) -> None:
    """Print nothing."""


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
    """Compare a watch of the live system with the targets for its first day; measure nothing.

    `values` holds, by name, values of rows that nothing measures, reported `by` a person. `against` is a run from
    before the release, `arm` the shipped arm. The period is `since` to `until` (ISO 8601, UTC), or the `last` "24h".
    Raises PerfkitError.
    """
    from perfkit.monitor.review_report import open_review  # late: matplotlib, which it imports, takes 0.5 s

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

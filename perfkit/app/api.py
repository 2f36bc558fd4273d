"""The Python API: calls behind the command line, papermill and interactive cells.

Sessions and watches take long to import; the calls that need them import them.
"""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import app
from perfkit import config as configuration
from perfkit.app.runs import compare, measure, run
from perfkit.app.specs import (
    AblateSpec,
    AdviseSpec,
    ConnectSpec,
    DemoSpec,
    DropSpec,
    GateSpec,
    LiveSpec,
    ReviewSpec,
    SlowSpec,
)
from perfkit.app.starter import discarded, new_folder
from perfkit.base.errors import UsageError
from perfkit.base.options import Text, command, names, narrowed, takes, texts
from perfkit.base.process import progress
from perfkit.base.units import parse_duration
from perfkit.explain.capture import Capture
from perfkit.explain.plan import read_plans
from perfkit.indexes.designs import workload
from perfkit.indexes.lab import AUTO, LabSpec, run_lab
from perfkit.indexes.lab_tables import IndexLab
from perfkit.indexes.search import index_advice
from perfkit.release import gate, live, report
from perfkit.release import rollback as rollbacks
from perfkit.release.decision import parse_answers
from perfkit.release.report import RolledBack
from perfkit.runs.selection import RunSpec
from perfkit.runs.targets import ComparisonSpec, index_set, sql_of

if TYPE_CHECKING:
    from perfkit.app.evidence import Explained
    from perfkit.app.session import Session, SlowTable
    from perfkit.indexes.advice import Advice
    from perfkit.monitor.loop import WatchSummary
    from perfkit.monitor.review_report import Review
    from perfkit.release.report import GoNoGo


# Options that a command to repeat something leaves out: a new folder, and a consent that is asked for again.
UNREPEATED = ("reports", "production", "dry_run")


@takes(ConnectSpec)
def connect(spec: ConnectSpec) -> Session:
    """Open a database to explain statements in: `connect("service=staging", confirm=...).explain("SELECT ...")`.

    Without `db`, perfkit starts a server and generates the data of a configuration (by default, the booking system's)
    with the indexes of its `arm`.

    Returns
    -------
    Session
        The open database; a context manager. Close it to stop a server that perfkit started.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> with perfkit.connect(scale="seed") as database:  # doctest: +SKIP
    ...     database.slow()[1].explain().frame
    """
    if spec.db:
        return app.session.connect(spec)
    with progress() as say:
        return app.session.open_generated(spec, say)


@takes(SlowSpec)
def slow(spec: SlowSpec) -> SlowTable:
    """List the slow statements of a database's server: `slow(db="service=staging", confirm=...)[1].explain()`.

    For `source` and `seconds` see `Session.slow`. Without `db`, `source` is a log file, whose statements can only be
    shown. `perfkit.connect(...).slow()` does the same in a session that you keep.

    Returns
    -------
    SlowTable
        The statements, the largest total time first; `frame` is their DataFrame.

    Raises
    ------
    PerfkitError
        If the database or the file cannot be read.
    """
    if not spec.db:
        return app.session.in_file(spec.source)
    session = connect(narrowed(ConnectSpec, spec))
    try:
        return session.slow(spec.source, spec.seconds)
    except BaseException:
        session.close()
        raise


@takes(DemoSpec)
def demo(spec: DemoSpec) -> Session:
    """Open the booking system's data, without its indexes, after a clinic has worked on it: `demo().slow()`.

    The server's log has the clinic's statements.

    Returns
    -------
    Session
        The open database.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> perfkit.demo(seconds=2).slow().frame.total_ms.sum()  # doctest: +SKIP
    412.7
    """
    with progress() as say:
        session = app.session.open_generated(ConnectSpec(scale=spec.scale, arm="before"), say)
        try:
            say(f"a clinic works for {spec.seconds:g} s")
            with app.session.clinic(session, spec.seed) as work:
                work(spec.seconds)
        except BaseException:
            session.close()
            raise
        return session


def plans(text: Text) -> list[Explained]:
    """Read plans with their findings from JSON, psql's output, auto_explain's log, or a file with one of these.

    Parameters
    ----------
    text : str or pathlib.Path
        The text with plans, or a file with it.

    Returns
    -------
    list of Explained
        The plans; `frame` of each has a row per step.

    Raises
    ------
    PlanError
        If the text has no plan.
    UsageError
        If the file cannot be read.

    Examples
    --------
    >>> (plan,) = perfkit.plans('[{"Plan": {"Node Type": "Seq Scan", "Relation Name": "visits", "Plan Rows": 9}}]')
    >>> plan.frame.table.tolist()
    ['visits']
    """
    if isinstance(text, Path):
        try:
            text = text.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise UsageError(f"{text}: cannot be read ({error.strerror}); expected a file with plans") from None
    return [app.evidence.Explained(Capture((plan,))) for plan in read_plans(text)]


@takes(AblateSpec)
def ablate(spec: AblateSpec) -> IndexLab:
    """Measure which indexes of a set the workload needs, into a new folder; or open the folder of a lab.

    `indexes` is SQL or a file; by default, the set of the first arm that has one. With `db`, the workload is `query` on
    a database of yours, as for `compare`. `advised` is another set to compare, or "auto": the set that perfkit advises.
    Without `reads`, only the cost of the indexes is measured.

    Returns
    -------
    IndexLab
        The lab; `indexes.frame` has a row per index, `plot.gain_cost()` draws them.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> lab = perfkit.ablate(bundle=lab_folder)
    >>> sorted(lab.indexes.frame.verdict)
    ['keep', 'keep', 'remove']
    """
    if spec.bundle:
        return IndexLab(Path(spec.bundle))
    folder = new_folder(spec.reports, f"lab-{spec.profile}" if spec.reads else "index-costs")
    with discarded(folder):
        config = spec.config
        if spec.db:
            queries, indexes = texts(spec.query), (spec.indexes,)
            config = narrowed(ComparisonSpec, spec, query=queries, index=indexes).write(folder)
        settings = configuration.load(config)
        unrepeated = UNREPEATED if spec.reads else (*UNREPEATED, "margin", "budget_mb", "advised")  # no options of cost
        asked = LabSpec(
            settings,
            index_set(settings, "" if spec.db else spec.indexes, folder),
            narrowed(RunSpec, spec, config=str(config)),
            spec.margin or settings.margin,
            spec.budget_mb * 1024 * 1024 or math.inf,
            spec.advised if spec.advised in ("", AUTO) else sql_of(spec.advised),
            spec.reads,
            command(("perfkit", "indexes", "ablate" if spec.reads else "cost"), spec, without=unrepeated),
        )
    with discarded(folder, "ablation", "audit.jsonl"), progress() as say:
        lab = run_lab(
            asked,
            folder,
            spec.permission,
            lambda database, queries, say: index_advice(app.session.Session(database), queries, say=say),
            say,
        )
    return IndexLab(lab)


@takes(AdviseSpec)
def advise(spec: AdviseSpec) -> Advice:
    """Propose indexes for a workload, and say why no index helps the rest of it.

    The workload is that of a configuration on generated data; or, with `db`, the `query` on a database of yours. There,
    candidates are tried with HypoPG or judged by the plans alone; with a `way`, they are built and rolled back in a
    private copy.

    Returns
    -------
    Advice
        The indexes to create, and the queries that get none with the reason.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> print(perfkit.advise(scale="seed").sql)  # doctest: +SKIP
    -- Indexes advised for ...
    """
    with progress() as say, tempfile.TemporaryDirectory() as folder:
        config = spec.config
        if spec.db:
            values = {"query": texts(spec.query), "way": spec.way or "whole", "bare": True}
            config = narrowed(ComparisonSpec, spec, **values).write(Path(folder))
        settings = configuration.load(config)
        target = narrowed(ConnectSpec, spec, config=config)
        session = app.session.connect(target) if spec.db and not spec.way else app.session.open_generated(target, say)
        with session:
            queries = workload(settings, session.database, spec.seed)
            return index_advice(session, queries, analyze=spec.analyze, say=say)


@takes(DropSpec)
def rollback(spec: DropSpec) -> RolledBack:
    """Drop an index set and prove that the system is as it was before; without `db`, rehearse this.

    A rehearsal runs on a server that perfkit starts: it builds and drops the indexes of a file, or of the
    configuration, and compares the result with a system that never had them. With `db`, perfkit drops the file's
    indexes CONCURRENTLY there, compares the plans of `query` (or of the queries of the run `against`) before and after,
    and sends the queries that only read for `rounds` of 5 s.

    Returns
    -------
    RolledBack
        Whether everything is as before, item by item.

    Raises
    ------
    PerfkitError
        As `run` does.
    Interrupted
        With the indexes that are dropped and those that remain.

    Examples
    --------
    >>> perfkit.rollback(scale="seed").found.word  # doctest: +SKIP
    'as before'
    """
    with progress() as say:
        if spec.db:
            prepared = live.prepare(_live_rollback(spec), spec.permission, say)
            folder = new_folder(spec.reports, "rollback")
            with discarded(folder, "*"):
                prepared.run(folder, say)
            return RolledBack(folder)

        planned = rollbacks.RehearsalSpec(
            configuration.load(spec.config), narrowed(RunSpec, spec, config=str(spec.config)), spec.indexes
        )
        folder = new_folder(spec.reports, f"rollback-{spec.profile}")
        with discarded(folder, "run.json"):
            rollbacks.rehearse(planned, folder, spec.permission, say)
    return RolledBack(folder)


def rollback_script(spec: DropSpec) -> str:
    """Return the SQL of a rollback in a database of the user's, and what it will compare; change nothing."""
    with progress() as say:
        return live.prepare(_live_rollback(spec), spec.permission, say).script()


def _live_rollback(spec: DropSpec) -> live.RollbackSpec:
    parameters, against = (Path(name) if name else None for name in (spec.parameters, spec.against))
    values = {"indexes": Path(spec.indexes), "query": texts(spec.query), "parameters": parameters, "against": against}
    return narrowed(live.RollbackSpec, spec, **values)


@takes(GateSpec)
def decide(spec: GateSpec) -> GoNoGo:
    """Decide whether to ship what a run measured, and seal its folder; or open the `bundle` of a decision.

    The decision rests on the run's rules for `arm` (by default, for every `after` arm), its checks and its database,
    on the folder of a `watch`, and on `answers` ("Team ready for launch=yes") given `by` a person, which the run's
    folder keeps. `junit` and `json` name files that also get the decision.

    Returns
    -------
    GoNoGo
        The decision with its items; `items.frame` has a row per item.

    Raises
    ------
    PerfkitError
        If the folder has no finished run of several arms, or an answer fits no question.

    Examples
    --------
    >>> decision = perfkit.decide(run_folder, answers="Team ready for launch=yes", by="Ops")
    >>> decision.items.frame.result.value_counts().to_dict()
    {'holds': 10, 'unproven': 2}
    """
    if bool(spec.run) == bool(spec.bundle):
        raise UsageError("expected either run, the folder to decide on, or bundle, the folder of a decision to show")
    if spec.run:
        answers, files = parse_answers(names(spec.answers)), {"junit": str(spec.junit), "json": str(spec.json)}
        gate.decide(Path(spec.run), spec.arm, str(spec.watch), answers, spec.by, **files)
    return report.GoNoGo(Path(spec.run or spec.bundle))


@takes(LiveSpec)
def watch(spec: LiveSpec) -> WatchSummary:
    """Watch a live service and its database for a time (`90s`, `24h`), into a new folder or an existing `folder`.

    The configuration names the service and the database, which need not answer yet; otherwise perfkit starts both, on
    data of a `scale`. An empty value or 0 means the configuration's own. `metrics` serves Prometheus at a `PORT` of
    this machine (0: a free one) or at `ADDRESS:PORT`.

    Returns
    -------
    WatchSummary
        How the watch ended; `frame` has a row per interval and request, `plot.latency()` draws them.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> perfkit.watch("30s", scale="seed").plot.latency()  # doctest: +SKIP
    """
    from perfkit.monitor import loop as watching  # late: aiohttp takes 0.2 s

    settings = configuration.load(spec.config)
    try:
        notify = shlex.split(spec.notify)
    except ValueError as error:
        raise UsageError(f"notify = {spec.notify!r}: {error}; expected a command and its arguments") from None
    every = parse_duration(spec.every, "every") if spec.every else 0.0
    settings = settings.model_copy(update={"watch": watching.with_overrides(settings.watch, every, spec.rate, notify)})
    seconds = parse_duration(spec.lasts, "for")
    path = Path(spec.folder) if spec.folder else new_folder(spec.reports, "watch")
    options = watching.WatchSpec(path, seconds, spec.arm, spec.scale, spec.metrics)
    try:
        with progress() as say:
            show, note = (_silent, _silent) if spec.quiet else (say, watching.print_line)
            return watching.watch(settings, spec.permission, options, show, note)
    except BaseException:
        if not spec.folder and not (path / "audit.jsonl").exists() and not watching.has_record(path):
            shutil.rmtree(path)  # nothing was watched
        raise


def _silent(_: str) -> None:
    """Print nothing."""


@takes(ReviewSpec)
def review(spec: ReviewSpec) -> Review:
    """Compare a watch of the live system with the targets for its first day; measure nothing.

    `values` holds, by name, values of rows that nothing measures, reported `by` a person. `against` is a run from
    before the release, `arm` the shipped arm. The period is `since` to `until` (ISO 8601, UTC), or the `last` "24h".

    Returns
    -------
    Review
        The targets with their actual values; `table.frame` has a row per target.

    Raises
    ------
    PerfkitError
        If the folder is not that of a watch, or an option is wrong.

    Examples
    --------
    >>> review = perfkit.review(watch_folder)
    >>> review.table.frame.status.value_counts().to_dict()
    {'unproven': 6, 'met': 3}
    """
    from perfkit.monitor.review_report import (  # late: matplotlib, which it imports, takes 0.5 s
        ReviewOptions,
        open_review,
    )

    values = spec.values
    if not isinstance(values, str):
        values = (
            "\n".join(f"{name}={value}" for name, value in values.items())
            if isinstance(values, Mapping)
            else "\n".join(values)
        )
    options = narrowed(ReviewOptions, spec, values=values, against=str(spec.against), config=str(spec.config))
    return open_review(Path(spec.folder), options)


__all__ = ["ablate", "advise", "compare", "connect", "decide", "demo", "measure",
           "new_folder", "plans", "review", "rollback", "run", "slow", "watch"]  # fmt: skip

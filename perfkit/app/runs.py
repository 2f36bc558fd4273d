"""Calls that measure or open a run: run, compare, measure, check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.analysis.report import LoadRun, Run
from perfkit.app.specs import CheckSpec, CompareSpec, MeasureSpec, ReportSpec
from perfkit.app.starter import discarded, new_folder
from perfkit.base.errors import UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.options import Text, names, narrowed, pairs, takes, texts
from perfkit.base.process import progress
from perfkit.config import Config
from perfkit.indexes.lab_tables import IndexLab
from perfkit.postgres.guards import Permission
from perfkit.release.report import RehearsedRun
from perfkit.runs import experiment
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection, alone
from perfkit.runs.targets import ComparisonSpec, admitted

if TYPE_CHECKING:
    from perfkit.runs.records import CheckResult
    from perfkit.runs.targets import Targets


def settled(spec: CheckSpec, settings: Config) -> RunSpec:
    """Return the options of a run, with the values of the preset. Raises UsageError for an unknown preset."""
    values = {name: getattr(spec, name, None) for name in ("profile", "scale", "rtt_ms", "connect_rtts")}
    preset = configuration.preset(settings.presets, getattr(spec, "preset", ""), **values)
    return narrowed(RunSpec, spec, config=str(spec.config), **preset)


@takes(ReportSpec)
def run(spec: ReportSpec) -> Run:
    """Measure before and after a change into a new bundle, or open an existing `bundle`.

    An empty value means the configuration's own. A `preset` of the configuration sets profile, scale, rtt_ms and
    connect_rtts unless these are given; without a preset they are standard, the data's own, 0 and 6.

    With `plan_for`, a percentage, a pilot sets the number of blocks instead of the profile: enough to detect a change
    of that size four times in five, in at most `max_minutes`.

    The run keeps the summary of an index `lab`. `confirm` names the targets that perfkit did not start and may use
    (`host:port/database`, `https://host:port`), `production` those whose name suggests production.

    Returns
    -------
    Run
        The analysed run; `levels.frame`, `samples` and `plot` are for pandas and matplotlib.

    Raises
    ------
    UsageError
        If a parameter is wrong.
    TargetRefused
        If nobody confirmed a target.
    Interrupted
        If the user stopped the run; the bundle keeps what was measured.

    Examples
    --------
    >>> run = perfkit.run(bundle=run_folder)
    >>> run.levels.frame.query("scenario == 'burst'")[["arm", "p50_ms"]].round(1).values.tolist()[0]
    ['before', 337.2]
    """
    if spec.bundle:
        return _with_lab(opened(Path(spec.bundle)), spec.lab)
    settings = configuration.load(spec.config)
    selection = Selection(settings, settled(spec, settings))
    targets = admitted(settings, selection.arms, spec.permission)
    return _with_lab(Run(_measure(selection, targets, new_folder(spec.reports, selection.options.profile))), spec.lab)


@takes(CompareSpec)
def compare(spec: CompareSpec) -> Run:
    """Measure queries before and after an index, settings or a rewrite, on a database of yours.

    `db` is a libpq service name (`service=staging`) or a connection string without a password. `query`, `index` and
    `rewrite` are SQL, or names of `.sql` files. The ways `whole`, `sample` and `generated` measure a private copy on a
    server that perfkit starts; `clone` measures beside the database, `in-place` in it. A GO needs a benefit; with
    `need="none"`, for a setting that changes for another reason, nothing may get worse.

    Returns
    -------
    Run
        The analysed run.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> run = perfkit.compare("service=staging", "orders.sql", "CREATE INDEX ON orders (day)")  # doctest: +SKIP
    >>> run.plot.ecdf()  # doctest: +SKIP
    """
    values = {"query": texts(spec.query), "index": texts(spec.index), "settings": pairs(spec.settings, "--set")}
    comparison = narrowed(ComparisonSpec, spec, **values)

    def select(path: Path) -> Selection:
        return Selection(configuration.load(path), RunSpec(profile=spec.profile, seed=spec.seed, config=str(path)))

    return Run(_measure_database(comparison, select, new_folder(spec.reports, "compare"), spec.permission))


@takes(MeasureSpec)
def measure(spec: MeasureSpec) -> LoadRun:
    """Measure one arm under load, without a comparison, into a new bundle; or open an existing `bundle`.

    The default arm is the last `after` arm, which would be deployed. `blocks`, at least 1, overrides the profile.
    `p95_ms` above 0 and `error_rate` from 0 replace the configuration's thresholds. With `db`, the load is `query` on
    a database of yours, as for `compare`: on one connection and on `users` connections; or, with a `rate`, that number
    of requests per second for `seconds`, at most `users` in flight.

    Returns
    -------
    LoadRun
        The analysed run of one arm.

    Raises
    ------
    PerfkitError
        As `run` does.

    Examples
    --------
    >>> perfkit.measure("quick", scale="seed").levels.frame.p95_ms.max()  # doctest: +SKIP
    14.2
    """
    if spec.bundle:
        return LoadRun(Bundle.open(Path(spec.bundle)))
    p95_ms = spec.p95_ms or None

    def select(path: Text) -> Selection:
        error_rate = None if spec.error_rate < 0 else spec.error_rate
        limits = {"p95_ms": p95_ms, "error_rate": error_rate}
        options = narrowed(RunSpec, spec, arms=names(spec.arm), config=str(path), **limits)
        return alone(configuration.load(path), options)

    if spec.db:
        load = narrowed(ComparisonSpec, spec, query=texts(spec.query), p95_ms=p95_ms, bare=True)
        return LoadRun(_measure_database(load, select, new_folder(spec.reports, "load"), spec.permission))
    if spec.query or spec.rate:
        raise UsageError("query and rate need db, a database of yours; expected db with them, or neither of them")
    selection = select(spec.config)
    targets = admitted(selection.config, selection.arms, spec.permission)
    return LoadRun(_measure(selection, targets, new_folder(spec.reports, "load")))


def check(spec: CheckSpec) -> list[tuple[str, CheckResult]]:
    """Run the functional checks and return each with its arm. Raises PerfkitError as `run` does."""
    settings = configuration.load(spec.config)
    selection = Selection(settings, settled(spec, settings))
    targets = admitted(selection.config, selection.arms, spec.permission)
    with progress() as say:
        results = experiment.Experiment(selection, targets, say).check()
    return [(arm, result) for arm, of_arm in results.items() for result in of_arm]


def exit_code(run: Run | LoadRun) -> int:
    """Return the exit code of a decision; invalid outranks inconclusive."""
    analysis = run.analysis
    invalid = any(comparison.verdict is Verdict.INVALID for comparison in analysis.comparisons)
    slow = run.subject.run.alone and not all(level.healthy for level in analysis.levels)
    return analysis.decision.outcome.exit_code(invalid=invalid or slow)


def opened(folder: Path) -> Run:
    """Open a run from its folder, as a rehearsed rollback if it is one. Raises BundleError."""
    bundle = Bundle.open(folder)
    return RehearsedRun(bundle) if bundle.run.rollback is not None else Run(bundle)


def _with_lab(run: Run, lab: Text) -> Run:
    """Keep the summary of an index lab in the run. Raises BundleError."""
    if lab:
        run.bundle.update(lab=IndexLab(Path(lab)).summary)
    return run


def _measure_database(
    spec: ComparisonSpec,
    select: Callable[[Path], Selection],
    folder: Path,
    permission: Permission,
) -> Bundle:
    """Measure a database of the user's; the run's folder gets a configuration made of the spec. Raises PerfkitError."""
    with discarded(folder):
        selection = select(spec.write(folder))
        targets = admitted(selection.config, selection.arms, permission)
    with discarded(folder, "audit.jsonl"):  # without one, the database was not touched
        return _measure(selection, targets, folder)


def _measure(selection: Selection, targets: Targets, folder: Path) -> Bundle:
    with progress() as say:
        return experiment.measure(selection, folder, say, targets)

"""Calls that measure or open a run: run, compare, measure, and one statement of a session."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from perfkit import config as configuration
from perfkit.analysis.report import LoadRun, Run
from perfkit.app.specs import CheckSpec, CompareSpec, MeasureSpec, ReportSpec, StatementSpec
from perfkit.base import process, resources
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import BundleError, PerfkitError, UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.options import Text, names, narrowed, pairs, takes, texts
from perfkit.base.process import progress
from perfkit.config import Config
from perfkit.config.model import as_toml
from perfkit.indexes.lab_tables import IndexLab
from perfkit.indexes.trial import one_index
from perfkit.postgres.guards import Permission
from perfkit.postgres.index_sets import read_set
from perfkit.release.report import RehearsedRun
from perfkit.runs import experiment
from perfkit.runs.arms import ExistingDatabaseArms
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection, alone
from perfkit.runs.service import RelaySpec
from perfkit.runs.targets import ComparisonSpec, admitted

if TYPE_CHECKING:
    from perfkit.app.session import Session
    from perfkit.runs.records import CheckResult
    from perfkit.runs.targets import Targets
    from perfkit.slow.examples import Value


Say = Callable[[str], None]


def reports_folder() -> Path:
    """Return the folder for runs if none is named: `reports/` of the project that the working folder is in.

    A project is the nearest folder, from the working folder upward, with a `perfkit.toml` or a checkout of perfkit;
    without one it is the working folder itself. Raises BundleError if the working folder no longer exists.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise BundleError("reports: the working folder no longer exists; expected --reports FOLDER") from None
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), here) / "reports"


def _is_project(folder: Path) -> bool:
    """Whether a folder has a configuration or is a checkout; a folder that cannot be searched is neither."""
    try:
        return any((folder / name).is_file() for name in ("perfkit.toml", resources.IN_CHECKOUT))
    except OSError:
        return False


def new_folder(reports: Text, profile: str) -> Path:
    """Create a folder for a run, named by UTC time and profile, in `reports` or else `reports_folder()`.

    Raises BundleError.
    """
    parent = Path(reports) if reports else reports_folder()
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{profile}"
    for path in [parent / name, *(parent / f"{name}-{n}" for n in range(2, 100))]:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise BundleError(f"{path}: cannot be created ({error.strerror}); expected a writable folder") from None
        return path
    raise BundleError(f"{parent}: a hundred runs began this second; expected fewer")


def settled(spec: CheckSpec, settings: Config) -> RunSpec:
    """Return the options of a run, with the values of the preset. Raises UsageError for an unknown preset."""
    values = {name: getattr(spec, name, None) for name in ("profile", "scale", "rtt_ms", "connect_rtts")}
    preset = configuration.preset(settings.presets, getattr(spec, "preset", ""), **values)
    return narrowed(RunSpec, spec, config=str(spec.config), **preset)


def loaded(path: Text | None) -> Config:
    """Return a configuration; by default, the booking system's. Raises UsageError."""
    return configuration.load(Path(path) if path else None)


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
    settings = loaded(spec.config)
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

    def select(path: Path | None) -> Selection:
        error_rate = None if spec.error_rate < 0 else spec.error_rate
        limits = {"p95_ms": p95_ms, "error_rate": error_rate}
        options = narrowed(RunSpec, spec, arms=names(spec.arm), config=str(path or ""), **limits)
        return alone(configuration.load(path), options)

    if spec.db:
        load = narrowed(ComparisonSpec, spec, query=texts(spec.query), p95_ms=p95_ms, bare=True)
        return LoadRun(_measure_database(load, select, new_folder(spec.reports, "load"), spec.permission))
    if spec.query or spec.rate:
        raise UsageError("query and rate need db, a database of yours; expected db with them, or neither of them")
    selection = select(Path(spec.config) if spec.config else None)
    targets = admitted(selection.config, selection.arms, spec.permission)
    return LoadRun(_measure(selection, targets, new_folder(spec.reports, "load")))


def check(spec: CheckSpec) -> list[tuple[str, CheckResult]]:
    """Run the functional checks and return each with its arm. Raises PerfkitError as `run` does."""
    settings = loaded(spec.config)
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


@contextmanager
def discarded(folder: Path, *patterns: str) -> Iterator[None]:
    """Remove a new folder if the block fails before a file with one of these names is in it: nothing was measured."""
    try:
        yield
    except BaseException as error:
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            raise
        shutil.rmtree(folder)
        if isinstance(error, PerfkitError) and f"{folder}/" in str(error):  # the message must not name a lost file
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
        raise


def _measure(selection: Selection, targets: Targets, folder: Path) -> Bundle:
    with progress() as say:
        return experiment.measure(selection, folder, say, targets)


def measure_statement(
    session: Session, text: str, rows: Sequence[Sequence[Value]], spec: StatementSpec, say: Say
) -> Run:
    """Measure paired rounds of a statement without and with indexes, into a new bundle.

    The statement's parameters are `%(p1)s`, `%(p2)s`, ...; their values stay in the run's folder. On a server that
    perfkit started, the arms are clones of the session's database. A database of the user's is measured as
    `perfkit.compare` does, in its `way`. Raises PerfkitError.
    """
    if not spec.index:
        raise UsageError("measure: no index; expected one CREATE INDEX, or several")
    indexes = [one_index(str(statement)) for statement in texts(spec.index)]
    if session.database.server.foreign:
        values = {name: getattr(session.opened, name) for name in ("db", "tls", "production", "ask")}
        values |= {"query": text, "index": indexes, "parameters": _source(rows) if rows else None}
        values |= {"way": spec.way or "whole", "volatile": tuple(session.volatile)}
        asked = narrowed(CompareSpec, spec, confirm=(session.name, *names(session.opened.confirm)), **values)
        return compare(asked)
    if spec.way:
        raise UsageError(f"way = {spec.way!r}; expected none: this database is measured in clones on its own server")
    folder = new_folder(spec.reports, "measure")
    with discarded(folder):
        made, present = _made(session)
        write_atomically(folder / "present.sql", present)
        parameters = _source(rows) if rows else None
        values = {"query": (text,), "index": indexes, "parameters": parameters, "way": "made", "made": made}
        path = narrowed(ComparisonSpec, spec, db="", **values).write(folder)
        selection = Selection(loaded(path), narrowed(RunSpec, spec, scale=session.opened.scale, config=str(path)))
    database = session.database
    with (
        process.alone(say),
        ExistingDatabaseArms(
            selection.config, secrets.token_hex(3), RelaySpec(), {}, {}, say, database.server.version, database
        ) as workbench,
    ):
        return Run(experiment.measure(selection, folder, say, bench=workbench))


def _made(session: Session) -> tuple[dict[str, object], str]:
    """Return the origin of the data as a `[database]`, and SQL for the indexes that the data has in addition."""
    opened, version = session.opened, session.database.server.version
    config = loaded(opened.config)
    made = config.database
    if not opened.arm or made is None or not made.prepare:
        return {"prepare": ["present.sql"], "postgres": version}, "-- The data was on a server that no longer exists.\n"
    arm = next(arm for arm in config.arm if arm.name == opened.arm)
    present = read_set(arm.indexes).indexes if arm.indexes and not arm.rolled_back else ()
    origin = made.model_dump() | {"prepare": [*made.prepare, *arm.prepare, "present.sql"], "postgres": version}
    statements = "".join(f"{one.sql(concurrently=False)};\n" for one in present)
    return as_toml(origin), statements or "-- No index beyond the keys.\n"


def _source(rows: Sequence[Sequence[Value]]) -> str:
    """Return a SELECT that returns these values, as text."""
    names = ", ".join(f"p{value.number}" for value in rows[0])
    lines = (", ".join(f"{sql.Literal(value.text).as_string()}::text" for value in row) for row in rows)
    values = ",\n".join(f"({line})" for line in lines)
    return f"SELECT * FROM (VALUES\n{values}\n) AS examples ({names})\n"

"""Calls that measure or open a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.analysis.report import LoadRun, Run
from perfkit.base import resources
from perfkit.base.bundle import Bundle
from perfkit.base.errors import BundleError, PerfkitError, UsageError
from perfkit.base.process import progress
from perfkit.indexes.lab_results import read
from perfkit.indexes.lab_tables import summary
from perfkit.postgres.guards import Permission
from perfkit.release.report import RehearsedRun
from perfkit.runs.experiment import measure as experiment_measure
from perfkit.runs.selection import RunSpec, Selection, alone
from perfkit.runs.targets import ComparisonSpec, admitted

if TYPE_CHECKING:
    from perfkit.runs.targets import Targets, Text


Names = str | Sequence[str]
Ask = Callable[[str], str]


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


def new_folder(reports: str | Path, profile: str) -> Path:
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


def names(given: Names) -> tuple[str, ...]:
    """One name or several; papermill can pass a text only, with commas."""
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(part.strip() for part in parts if part.strip())


def texts(given: Text | Sequence[Text]) -> tuple[Text, ...]:
    """One text or several, as several."""
    return (given,) if isinstance(given, str | Path) else tuple(given)


def admitted_by(chosen: Selection, confirm: Names, production: Names, ask: Ask | None) -> Targets:
    """The targets of a selection, let through the guards. Raises TargetRefused, UsageError."""
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    return admitted(chosen.config, chosen.arms, permission)


# Runs: before and after, a query of yours, one arm alone.


def run(
    profile: str = "",
    scale: str = "",
    seed: int = 1,
    rtt_ms: float | None = None,
    postgres: int = 0,
    bundle: str | Path = "",
    lab: str | Path = "",
    reports: str | Path = "",
    config: str | Path = "",
    arms: Names = (),
    scenarios: Names = (),
    connect_rtts: int | None = None,
    plan_for: float = 0.0,
    max_minutes: float = 15.0,
    preset: str = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> Run:
    """Measure before and after into a new bundle, or open the one given.

    A `preset` of the configuration gives profile, scale, rtt_ms and connect_rtts where these are left empty or None;
    without one they are standard, the data's own, 0 and 6.

    With `plan_for`, a percentage, a pilot decides the number of blocks in place of the profile: as many as its spread
    asks for to find a change by so much four times in five, in at most `max_minutes`.

    Empty values mean the configuration's own. The summary of an index `lab` is taken into the run. `confirm` names
    the targets that perfkit did not start and may use (`host:port/database`, `https://host:port`), `production` those
    whose name looks like production.

    Raises PerfkitError: UsageError for a parameter, TargetRefused for a target that nobody confirmed,
    Interrupted when the user stopped it.
    """
    if bundle:
        return _with_lab(_opened(Path(bundle)), lab)

    settings = configuration.load(Path(config) if config else None)
    given = {"profile": profile, "scale": scale, "rtt_ms": rtt_ms, "connect_rtts": connect_rtts}
    options = RunSpec(
        **configuration.preset(settings.presets, preset, **given),
        seed=seed,
        postgres=postgres,
        arms=names(arms),
        scenarios=names(scenarios),
        config=str(config),
        plan_for=plan_for,
        max_minutes=max_minutes,
    )
    chosen = Selection(settings, options)
    targets = admitted_by(chosen, confirm, production, ask)
    return _with_lab(Run(_measured(chosen, targets, new_folder(reports, options.profile))), lab)


def compare(
    db: str,
    query: Text | Sequence[Text],
    index: Text | Sequence[Text] = (),
    settings: Mapping[str, str] | None = None,
    rewrite: Text | None = None,
    parameters: Text | None = None,
    way: str = "whole",
    users: int = 10,
    p95_ms: float | None = None,
    volatile: Names = (),
    tls: bool = True,
    pooler: bool = False,
    need: str = "benefit",
    profile: str = "quick",
    seed: int = 1,
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> Run:
    """Measure queries before and after an index, settings or a rewrite, on a database of yours.

    `db` is a libpq service name (`service=staging`) or connection string without a password. `query`, `index`
    and `rewrite` are SQL, or names of `.sql` files. `way`: `whole`, `sample` or `generated` bring a private
    copy into a server that perfkit starts; `clone` works beside the database, `in-place` in it. A GO needs a benefit;
    with `need="none"`, for a setting that changes for another reason, only that nothing gets worse.

    Raises PerfkitError as `run` does.
    """
    wanted = ComparisonSpec(
        db,
        texts(query),
        texts(index),
        settings,
        rewrite,
        parameters,
        way,
        users,
        p95_ms,
        names(volatile),
        tls,
        pooler,
        need=need,
    )

    def chosen(path: Path) -> Selection:
        return Selection(configuration.load(path), RunSpec(profile, seed=seed, config=str(path)))

    return Run(_of_database(wanted, chosen, new_folder(reports, "compare"), confirm, production, ask))


def measure(
    profile: str = "standard",
    blocks: int = 0,
    scale: str = "",
    seed: int = 1,
    rtt_ms: float = 0.0,
    connect_rtts: int = 6,
    postgres: int = 0,
    config: str | Path = "",
    arm: str = "",
    scenarios: Names = (),
    p95_ms: float = 0.0,
    error_rate: float = -1.0,
    db: str = "",
    query: Text | Sequence[Text] = (),
    parameters: Text | None = None,
    way: str = "whole",
    rate: float = 0.0,
    users: int = 10,
    seconds: float = 10.0,
    tls: bool = True,
    bundle: str | Path = "",
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Ask | None = None,
) -> LoadRun:
    """Measure one arm under load, compared with nothing, into a new bundle; or open the one given.

    The arm is the last `after` arm unless another is named: what would be deployed. `blocks`, down to 1, is in place
    of the profile's. `p95_ms` above 0 and `error_rate` from 0 replace the configuration's thresholds. With `db` it
    is `query` on a database of yours, as for `compare`: on one connection and on `users`, or with a `rate` arriving
    so often a second for `seconds`, at most `users` in flight. Raises PerfkitError as `run` does.
    """
    if bundle:
        return LoadRun(Bundle.open(Path(bundle)))

    def chosen(path: Path | None) -> Selection:
        options = RunSpec(
            profile,
            scale,
            seed,
            rtt_ms,
            connect_rtts,
            postgres,
            names(arm),
            names(scenarios),
            str(path or ""),
            blocks,
            p95_ms=p95_ms or None,
            error_rate=None if error_rate < 0 else error_rate,
        )
        return alone(configuration.load(path), options)

    if db:
        wanted = ComparisonSpec(
            db,
            texts(query),
            parameters=parameters,
            way=way,
            users=users,
            p95_ms=p95_ms or None,
            tls=tls,
            bare=True,
            rate=rate,
            seconds=seconds,
        )
        return LoadRun(_of_database(wanted, chosen, new_folder(reports, "load"), confirm, production, ask))
    if query or rate:
        raise UsageError("query and rate are for a database of yours; expected db with them, or a config alone")
    found = chosen(Path(config) if config else None)
    targets = admitted_by(found, confirm, production, ask)
    return LoadRun(_measured(found, targets, new_folder(reports, "load")))


def _opened(folder: Path) -> Run:
    """Open a run from its folder, as a rehearsed rollback if it is one. Raises BundleError."""
    bundle = Bundle.open(folder)
    return RehearsedRun(bundle) if "rollback" in bundle.run else Run(bundle)


def _with_lab(run: Run, lab: str | Path) -> Run:
    """Keep the summary of an index lab in the run. Raises BundleError."""
    if lab:
        run.bundle.update(lab=summary(read(Path(lab))))
    return run


def _of_database(
    wanted: ComparisonSpec,
    choose: Callable[[Path], Selection],
    folder: Path,
    confirm: Names,
    production: Names,
    ask: Ask | None,
) -> Bundle:
    """Measure what was given in one line; its configuration goes into the run's folder. Raises PerfkitError."""
    try:
        chosen = choose(wanted.write(folder))
        targets = admitted_by(chosen, confirm, production, ask)
    except BaseException as error:
        shutil.rmtree(folder)  # nothing was measured
        if isinstance(error, PerfkitError):  # names of files that are gone would only puzzle
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
        raise
    try:
        return _measured(chosen, targets, folder)
    except PerfkitError:
        if not (folder / "audit.jsonl").exists():  # nothing was done to the database: nothing to keep
            shutil.rmtree(folder)
        raise


def _measured(chosen: Selection, targets: Targets, folder: Path) -> Bundle:
    with progress() as say:
        return experiment_measure(chosen, folder, say, targets)

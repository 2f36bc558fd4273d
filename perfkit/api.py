"""The calls behind the command line, papermill and an interactive cell."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.bundle import Bundle
from perfkit.display.progress import progress
from perfkit.errors import BundleError, PerfkitError, UsageError
from perfkit.report.run import Run

if TYPE_CHECKING:
    from perfkit.comparison import Comparison, Text
    from perfkit.display.watch import Ended
    from perfkit.indexes.advise import Advice
    from perfkit.query import Explained, Session
    from perfkit.report.gate import GoNoGo
    from perfkit.report.lab import IndexLab
    from perfkit.report.load_run import LoadRun
    from perfkit.report.review import Review
    from perfkit.report.rollback import RolledBack
    from perfkit.selection import Selection
    from perfkit.slow_queries import SlowTable
    from perfkit.targets import Targets

Names = str | Sequence[str]


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
    ask: Callable[[str], str] | None = None,
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
        return _with_lab(Run(Bundle.open(Path(bundle))), lab)
    from perfkit.selection import Options, Selection  # rendering a bundle needs none of it

    settings = configuration.load(Path(config) if config else None)
    given = {"profile": profile, "scale": scale, "rtt_ms": rtt_ms, "connect_rtts": connect_rtts}
    options = Options(
        **configuration.preset(settings.presets, preset, **given),
        seed=seed,
        postgres=postgres,
        arms=_names(arms),
        scenarios=_names(scenarios),
        config=str(config),
        plan_for=plan_for,
        max_minutes=max_minutes,
    )
    chosen = Selection(settings, options)
    targets = _admitted(chosen, confirm, production, ask)
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
    profile: str = "quick",
    seed: int = 1,
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Callable[[str], str] | None = None,
) -> Run:
    """Measure queries before and after an index, settings or a rewrite, on a database of yours.

    `db` is a libpq service name (`service=staging`) or connection string without a password. `query`, `index`
    and `rewrite` are SQL, or names of `.sql` files. `way`: `whole`, `sample` or `generated` bring a private
    copy into a server that perfkit starts; `clone` works beside the database, `in-place` in it.

    Raises PerfkitError as `run` does.
    """
    from perfkit.comparison import Comparison
    from perfkit.selection import Options, Selection

    wanted = Comparison(
        db,
        _texts(query),
        _texts(index),
        settings,
        rewrite,
        parameters,
        way,
        users,
        p95_ms,
        _names(volatile),
        tls,
        pooler,
    )

    def chosen(path: Path) -> Selection:
        return Selection(configuration.load(path), Options(profile, seed=seed, config=str(path)))

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
    ask: Callable[[str], str] | None = None,
) -> LoadRun:
    """Measure one arm under load, compared with nothing, into a new bundle; or open the one given.

    The arm is the last `after` arm unless another is named: what would be deployed. `blocks`, down to 1, is in place
    of the profile's. `p95_ms` above 0 and `error_rate` from 0 replace the configuration's thresholds. With `db` it
    is `query` on a database of yours, as for `compare`: on one connection and on `users`, or with a `rate` arriving
    so often a second for `seconds`, at most `users` in flight. Raises PerfkitError as `run` does.
    """
    from perfkit.report.load_run import LoadRun

    if bundle:
        return LoadRun(Bundle.open(Path(bundle)))
    from perfkit.comparison import Comparison
    from perfkit.selection import Options, alone

    def chosen(path: Path | None) -> Selection:
        options = Options(
            profile,
            scale,
            seed,
            rtt_ms,
            connect_rtts,
            postgres,
            _names(arm),
            _names(scenarios),
            str(path or ""),
            blocks,
            p95_ms=p95_ms or None,
            error_rate=None if error_rate < 0 else error_rate,
        )
        return alone(configuration.load(path), options)

    if db:
        wanted = Comparison(
            db,
            _texts(query),
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
    targets = _admitted(found, confirm, production, ask)
    return LoadRun(_measured(found, targets, new_folder(reports, "load")))


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
    ask: Callable[[str], str] | None = None,
) -> IndexLab:
    """Measure what each index of a set is worth, into a new folder; or open the folder of a lab.

    `indexes` is SQL or a file; without it, the first arm of the configuration that has some. With `db` the workload
    is `query` on a database of yours, as for `compare`. `advised` is another set that is compared with all of them,
    or "auto": what perfkit itself would advise.
    Without `reads` only what they cost is measured. Raises PerfkitError as `run` does.
    """
    from perfkit.report.lab import IndexLab

    if bundle:
        return IndexLab(Path(bundle))
    from perfkit.ablation import AUTO, Asked, ablate, index_set
    from perfkit.comparison import Comparison, sql_of
    from perfkit.guards.admission import Permission
    from perfkit.selection import Options

    folder = new_folder(reports, f"lab-{profile}" if reads else "index-costs")
    try:
        if db:
            config = Comparison(db, _texts(query), (indexes,), None, None, parameters, way, tls=tls).write(folder)
        settings = configuration.load(Path(config) if config else None)
        options = Options(profile, scale, seed, postgres=postgres, config=str(config))
        asked = Asked(
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
    permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
    try:
        with progress() as say:
            ablate(asked, folder, permission, say)
    except PerfkitError:
        if not any((folder / name).exists() for name in ("ablation", "audit.jsonl")):  # nothing was measured or done
            shutil.rmtree(folder)
        raise
    return IndexLab(folder)


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
    ask: Callable[[str], str] | None = None,
) -> RolledBack:
    """Drop an index set and prove that all is as before: rehearsed on a server that perfkit starts, or with `db`, done.

    A rehearsal measures the indexes of a file, or those of the configuration, built and dropped again, beside a
    system that never had them. With `db` the file's indexes are dropped CONCURRENTLY there; plans of `query`, or of
    the queries of the run `against`, are looked at before and after, and what only reads is sent for `rounds`
    of 5 s. Raises PerfkitError as `run` does; Interrupted says what is dropped and what is left.
    """
    from perfkit.guards.admission import Permission
    from perfkit.report.rollback import RolledBack

    permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
    with progress() as say:
        if db:
            from perfkit.release import live

            given, run = (Path(name) if name else None for name in (parameters, against))
            found = live.ready(live.Asked(db, Path(indexes), _texts(query), given, run, rounds, tls), permission, say)
            folder = new_folder(reports, "rollback")
            try:
                found.take_back(folder, say)
            except BaseException:
                if not any(folder.iterdir()):  # nothing was measured
                    folder.rmdir()
                raise
            return RolledBack(folder)
        from perfkit.release import rehearsal
        from perfkit.selection import Options

        settings = configuration.load(Path(config) if config else None)
        options = Options(profile, scale, seed, postgres=postgres, config=str(config))
        folder = new_folder(reports, f"rollback-{profile}")
        try:
            rehearsal.rehearse(rehearsal.Asked(settings, options, indexes), folder, permission, say)
        except BaseException:
            if not (folder / "run.json").exists():  # nothing was measured
                shutil.rmtree(folder)
            raise
    return RolledBack(folder)


def watch(
    lasts: str = "24h",
    every: str = "",
    config: str | Path = "",
    folder: str | Path = "",
    arm: str = "",
    scale: str = "",
    rate: float = 0.0,
    metrics: int | None = None,
    notify: str = "",
    quiet: bool = False,
    reports: str | Path = "",
    confirm: Names = (),
    production: Names = (),
    ask: Callable[[str], str] | None = None,
) -> Ended:
    """Watch a live service and its database for so long (`90s`, `24h`), into a new folder, or on in the one given.

    A service and a database of yours, as the configuration names them, need not answer yet; otherwise perfkit starts
    both, on data of a `scale`. Empty values and 0 mean the configuration's own. With `metrics` Prometheus may ask at
    that port of this machine, 0 for a free one. Raises PerfkitError as `run` does.
    """
    import shlex

    from perfkit.guards.admission import Permission
    from perfkit.monitor import watch as watching
    from perfkit.monitor.period import duration

    settings = configuration.load(Path(config) if config else None)
    try:
        command = shlex.split(notify)
    except ValueError as error:
        raise UsageError(f"notify = {notify!r}: {error}; expected a command and its arguments") from None
    changed = watching.settled(settings.watch, duration(every, "every") if every else 0.0, rate, command)
    permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
    seconds = duration(lasts, "for")
    where = Path(folder) if folder else new_folder(reports, "watch")
    options = watching.Options(where, seconds, arm, scale, metrics)
    try:
        with progress() as say:
            shown = (lambda _: None) if quiet else say
            told = (lambda _: None) if quiet else watching.printed
            return watching.watch(settings.model_copy(update={"watch": changed}), permission, options, shown, told)
    except BaseException:
        if not folder and not (where / "audit.jsonl").exists() and not watching.begun(where):
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
    from perfkit.report.review import opened

    if not isinstance(values, str):
        values = "\n".join(f"{name}={value}" for name, value in values.items())
    return opened(
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
    ask: Callable[[str], str] | None = None,
) -> Advice:
    """Which indexes a workload needs, and why none would help the rest of it.

    The workload is that of a configuration, on data that perfkit makes, or with `db` the `query` on a database of
    yours: as it is (HypoPG, or the plans alone), or with a `way` in a private copy, where indexes are built and
    rolled back. Raises PerfkitError.
    """
    import tempfile

    from perfkit import query as sessions
    from perfkit.comparison import Comparison
    from perfkit.guards.admission import Permission
    from perfkit.indexes.advise import advise
    from perfkit.lab.workload import workload

    permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
    with progress() as say, tempfile.TemporaryDirectory() as folder:
        if db:
            wanted = Comparison(db, _texts(query), parameters=parameters, way=way or "whole", tls=tls, bare=True)
            config = wanted.write(Path(folder))
        settings = configuration.load(Path(config) if config else None)
        if db and not way:
            session = sessions.connect(db, permission, tls=tls)
        else:
            session = sessions.made(config, scale, postgres=postgres, say=say, permission=permission)
        with session:
            queries = workload(settings, session.place, seed)
            return advise(session, queries, analyze=analyze, say=say)


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
    from perfkit.release.answers import parse
    from perfkit.report import gate

    if bool(run) == bool(bundle):
        raise UsageError("run or bundle; expected one of the two: the folder to decide on, or of a decision to show")
    if run:
        gate.decide(Path(run), arm, str(watch), parse(_names(answers)), by, junit=str(junit), json=str(json))
    return gate.GoNoGo(Path(run or bundle))


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
    ask: Callable[[str], str] | None = None,
) -> Session:
    """A database to explain statements in: `connect("service=staging", confirm=...).explain("SELECT ...")`.

    Without `db` it is the data of a configuration, the booking system's by default, as its `arm` has it, on a
    server that perfkit starts. Raises PerfkitError as `run` does.
    """
    from perfkit import query
    from perfkit.guards.admission import Permission

    if db:
        permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
        return query.connect(db, permission, tls=tls, volatile=_names(volatile))
    with progress() as say:
        return query.made(config, scale, arm, postgres, say=say)


def slow(
    source: str | Path = "",
    seconds: float = 0.0,
    db: str = "",
    confirm: Names = (),
    production: Names = (),
    volatile: Names = (),
    tls: bool = True,
    ask: Callable[[str], str] | None = None,
) -> SlowTable:
    """What is slow on the server of a database: `slow(db="service=staging", confirm=...)[1].explain()`.

    `source`, `seconds`: see `Session.slow`; without a database the name of a log file, which is only shown.
    `perfkit.connect(...).slow()` is the same with a session of your own, the booking system's too. Raises PerfkitError.
    """
    from perfkit.slow_queries import in_file

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
    from perfkit.clinic import demo

    with progress() as say:
        return demo(scale, seconds, seed, say=say)


def plans(text: str | Path) -> list[Explained]:
    """Plans from elsewhere, judged and ready to be shown: JSON, psql's output or auto_explain's, or a file of these.

    Raises PlanError for what holds none, UsageError for a file that cannot be read.
    """
    from perfkit.explain.capture import Capture
    from perfkit.explain.document import read
    from perfkit.query import Explained

    if isinstance(text, Path):
        try:
            text = text.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise UsageError(f"{text}: cannot be read ({error.strerror}); expected a file with plans") from None
    return [Explained(Capture((document,), ())) for document in read(text)]


def _admitted(chosen: Selection, confirm: Names, production: Names, ask: Callable[[str], str] | None) -> Targets:
    from perfkit.guards.admission import Permission
    from perfkit.targets import admitted

    permission = Permission(confirm=_names(confirm), production=_names(production), ask=ask)
    return admitted(chosen.config, chosen.arms, permission)


def _with_lab(found: Run, lab: str | Path) -> Run:
    if lab:
        found.take(Path(lab))
    return found


def _of_database(
    wanted: Comparison,
    choose: Callable[[Path], Selection],
    folder: Path,
    confirm: Names,
    production: Names,
    ask: Callable[[str], str] | None,
) -> Bundle:
    """Measure what was given in one line; its configuration goes into the run's folder. Raises PerfkitError."""
    try:
        chosen = choose(wanted.write(folder))
        targets = _admitted(chosen, confirm, production, ask)
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
    from perfkit.experiment import measure

    with progress() as say:
        return measure(chosen, folder, say, targets)


def new_folder(reports: str | Path, profile: str) -> Path:
    """A new folder for a run: UTC time and profile, under `reports`. Raises BundleError."""
    parent = Path(reports) if reports else configuration.ROOT / "reports"
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


def _names(given: Names) -> tuple[str, ...]:
    """One name or several; papermill can pass a text only, with commas."""
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(part.strip() for part in parts if part.strip())


def _texts(given: Text | Sequence[Text]) -> tuple[Text, ...]:
    return (given,) if isinstance(given, str | Path) else tuple(given)

"""Index sets: what each index is worth, which would help, and taking a set back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.api.given import Ask, Names, names, new_folder, texts
from perfkit.display.progress import progress
from perfkit.errors import PerfkitError

if TYPE_CHECKING:
    from perfkit.comparison import Text
    from perfkit.indexes.advice import Advice
    from perfkit.report.lab import IndexLab
    from perfkit.report.rollback import RolledBack


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
    from perfkit.report.lab import IndexLab

    if bundle:
        return IndexLab(Path(bundle))
    from perfkit.ablation import AUTO, LabSpec, ablate
    from perfkit.comparison import ComparisonSpec, index_set, sql_of
    from perfkit.guards.admission import Permission
    from perfkit.indexes.advise import advise
    from perfkit.query import Session
    from perfkit.selection import RunSpec

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
            ablate(asked, folder, permission, lambda base, queries, say: advise(Session(base), queries, say=say), say)
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
    import tempfile

    from perfkit import query as sessions
    from perfkit.comparison import ComparisonSpec
    from perfkit.guards.admission import Permission
    from perfkit.indexes.advise import advise
    from perfkit.lab.workload import workload

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
            return advise(session, queries, analyze=analyze, say=say)


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
    from perfkit.guards.admission import Permission
    from perfkit.report.rollback import RolledBack

    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    with progress() as say:
        if db:
            from perfkit.release import live

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
        from perfkit.release import rehearsal
        from perfkit.selection import RunSpec

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

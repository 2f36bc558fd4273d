"""A release: the decision to ship, the watch of what was shipped, and its review."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perfkit import config as configuration
from perfkit.api.given import Ask, Names, names, new_folder
from perfkit.display.progress import progress
from perfkit.errors import UsageError

if TYPE_CHECKING:
    from perfkit.monitor.terminal import Ended
    from perfkit.report.gate import GoNoGo
    from perfkit.report.review import Review


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
        gate.decide(Path(run), arm, str(watch), parse(names(answers)), by, junit=str(junit), json=str(json))
    return gate.GoNoGo(Path(run or bundle))


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
) -> Ended:
    """Watch a live service and its database for so long (`90s`, `24h`), into a new folder, or on in the one given.

    A service and a database of yours, as the configuration names them, need not answer yet; otherwise perfkit starts
    both, on data of a `scale`. Empty values and 0 mean the configuration's own. With `metrics` Prometheus may ask at
    that `PORT` of this machine, 0 for a free one, or at `ADDRESS:PORT`. Raises PerfkitError as `run` does.
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
    permission = Permission(confirm=names(confirm), production=names(production), ask=ask)
    seconds = duration(lasts, "for")
    where = Path(folder) if folder else new_folder(reports, "watch")
    options = watching.WatchSpec(where, seconds, arm, scale, metrics)
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

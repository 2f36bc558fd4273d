"""Commands for a release: gate, rollback, watch, review."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from perfkit.analysis.report import Run
from perfkit.app import api
from perfkit.app.cli import (
    DATABASE,
    RUNS_GO_TO,
    ask,
    config_option,
    echo,
    parameters_option,
    postgres_option,
    reports_option,
    scale_option,
    seed_option,
    target_options,
    tls_option,
)
from perfkit.app.cli.runs import exit_code
from perfkit.base.errors import UsageError, visible
from perfkit.base.process import progress
from perfkit.postgres.guards import Permission
from perfkit.release import decision
from perfkit.release.rollback import EXIT, RollbackSpec, Word, prepare
from perfkit.runs.records import Bundle


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--arm", default="", help="Decide on this arm only.")
@click.option("--watch", default="", metavar="FOLDER", help="Include a watch, which must be running.")
@click.option("--answer", "answers", multiple=True, metavar="QUESTION=yes|no", help="Answer of a person. Repeatable.")
@click.option("--by", default="", metavar="NAME", help="Person who answers.")
@click.option("--junit", default="", metavar="FILE", help="Also write the items as JUnit XML.")
@click.option("--json", "as_json", default="", metavar="FILE", help="Also write the decision as JSON.")
def gate(run: Path, arm: str, watch: str, answers: tuple[str, ...], by: str, junit: str, as_json: str) -> None:
    """Decide whether to ship: exit 0 on GO, 99 on NO-GO, 96 on NO BENEFIT.

    The other exit codes are 100 for INCONCLUSIVE and 98 for an invalid run. One table holds the rules of the run, its
    checks, its database, a watch, and the answers of people. The run's folder gets decision.html and decision.json,
    and is sealed. A run of one arm alone has no comparison: exit 0 if its limits hold, 99 if one is broken, 100 if one
    is unproven.

    \b
    Examples:
      perfkit gate reports/20260115-090000-standard
      perfkit gate reports/RUN --arm after-index --watch reports/watch
      perfkit gate reports/RUN --answer "Team ready for launch=yes" --by "Ops Lead"
      perfkit gate reports/RUN --junit gate.xml --json gate.json
    """  # noqa: D301 - click wants the character
    if Bundle.open(run).run.alone:
        _alone(run)
    record = api.decide(run, arm, watch, answers, by, junit=junit, json=as_json)
    page, decided = record.render(), record.decided
    echo(f"{decided.gate.decision}: {decided.headline}")
    for reason in decided.gate.reasons:
        echo(f"- {reason}")
    echo(f"\n{record.items!r}\n\n{page}\ncontent hash {record.seal.content}")
    sys.exit(decided.gate.outcome.exit_code(invalid=decided.invalid))


def _alone(run: Path) -> NoReturn:
    """Print whether the limits of one arm hold, and exit with the code for that."""
    subject = Run(Bundle.open(run)).subject
    echo(f"{subject.word}: {subject.analysis.headline}")
    sys.exit(exit_code(subject))


@click.command()
@click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--hash", "digits", default="", metavar="DIGITS", help="Content hash on a page, or its first digits.")
def verify(path: Path, digits: str) -> None:
    """Check that a decision's folder or page is unchanged since it was sealed.

    Exit code 0: unchanged, 1: changed. The seal is a checksum, not a signature: a person who can change the folder can
    also seal it again. To detect that, pass the hash of a signed page with --hash.

    \b
    Examples:
      perfkit verify reports/20260115-090000-standard
      perfkit verify reports/RUN/decision.html
      perfkit verify reports/RUN --hash 4f0c9a7be210
    """  # noqa: D301 - click wants the character
    expected = decision.require_hash(digits) if digits else ""
    state = decision.verify(path)
    for what in ("differ", "missing", "new"):
        for name in getattr(state, what):
            echo(f"{'differs' if what == 'differ' else what}: {name}")
    fits = state.content.startswith(expected)
    if not fits:
        echo(f"content hash is {state.content}, which does not begin with {expected}")
    if fits and state.unchanged:
        count = len(state.seal.files) + len(state.seal.pages)
        echo(f"unchanged since {state.seal.on}: {count} files, content hash {state.content}")
        sys.exit(0)
    echo(f"changed since it was sealed at {state.seal.on} with the content hash {state.seal.content}")
    sys.exit(1)


# Options of `rollback` that only a rehearsal takes, that a dry run needs, and that only a real rollback takes.
_REHEARSED = ("config", "scale", "profile", "seed", "postgres")
_SHOWN = ("db", "query", "parameters", "against", "rounds", "tls", "confirm", "production")
_LIVE = ("query", "parameters", "against", "rounds", "dry_run", "tls")


@click.command()
@click.argument("file", metavar="[SET.sql]", required=False, type=click.Path(path_type=Path))
@config_option
@scale_option
@click.option(
    "--profile", default="quick", show_default=True, help="Profile: quick (6 blocks), standard (12) or thorough (24)."
)
@seed_option
@postgres_option
@click.option("--db", default="", metavar="CONNINFO", help=f"Drop the indexes in a database of yours: {DATABASE}")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: query whose plan is compared. Repeatable.")
@parameters_option
@click.option("--against", metavar="RUN", help="With --db: run from before the release, whose plans must return.")
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    help="With --db: number of rounds of 5 s, before and after, of the queries that only read.",
)
@click.option("--dry-run", is_flag=True, help="With --db: print the SQL and the planned comparisons; change nothing.")
@tls_option
@reports_option
@target_options
def rollback(file: Path | None, dry_run: bool, **options: Any) -> None:
    """Drop an index set and prove that the system is as it was before.

    Without --db, perfkit rehearses the rollback on a server that it starts. It builds the indexes, changes rows, and
    drops the indexes with the code of a real rollback. Then it compares plans, sizes and latencies with a system that
    never had the indexes.

    With --db, perfkit drops the indexes CONCURRENTLY in that database. No index of the set may remain; with --against,
    the plans must be those from before the release. Latencies are shown, not judged; --rounds 0 skips them. The owner
    permits the rollback with perfkit allow --ddl.

    Exit code 0: as before, 99: not as before, 100: not settled.

    \b
    Examples:
      perfkit rollback                                  the booking system's seven indexes, rehearsed
      perfkit rollback --config mine/perfkit.toml set.sql
      perfkit rollback set.sql --db service=staging --query slow.sql --dry-run
      perfkit rollback set.sql --db service=staging --against reports/RUN
    """  # noqa: D301 - click wants the character
    _require_fitting(file, bool(options["db"]))
    if dry_run:
        click.echo(_script(file or Path(), **{name: options[name] for name in _SHOWN}), nl=False)
        return
    done = api.rollback(file or "", **options, ask=ask())
    page = done.render()
    echo(f"{done.found.word}: {done.found.sentence}")
    for item in done.found.items:
        if options["db"] or item.word is not Word.SAME:
            echo(f"  {item.word or 'not judged'}: {item.text}")
    for line in done.found.unseen:
        echo(f"  {line}")
    echo(str(page))
    sys.exit(EXIT[done.found.word])


def _script(
    file: Path,
    db: str,
    query: tuple[str, ...],
    parameters: str | None,
    against: str | None,
    rounds: int,
    tls: bool,
    confirm: tuple[str, ...],
    production: tuple[str, ...],
) -> str:
    values, run = (Path(name) if name else None for name in (parameters, against))
    with progress() as say:
        prepared = prepare(
            RollbackSpec(db, file, query, values, run, rounds, tls), Permission((), confirm, production, ask()), say
        )
    return visible(prepared.script())


def _require_fitting(file: Path | None, live: bool) -> None:
    """Raise UsageError if an option has no effect: of a rehearsal in a real rollback, or the other way round."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    wrong = _REHEARSED if live else _LIVE
    if names := [name for name in wrong if context.get_parameter_source(name) is not default]:
        option = {"tls": "no-tls", "dry_run": "dry-run"}.get(names[0], names[0])
        raise UsageError(f"--{option} {'with' if live else 'without'} --db; expected {'none' if live else '--db too'}")
    if live and not file:
        raise UsageError("no index set; expected SET.sql with the indexes to be dropped")


@click.command()
@click.option("--for", "lasts", default="24h", show_default=True, metavar="TIME", help="Duration: 90s, 30min, 24h, 2d.")
@click.option("--every", default="", metavar="TIME", help="Length of one interval; default: the configuration's, 10s.")
@config_option
@click.option(
    "--folder",
    default="",
    metavar="FOLDER",
    help=f"Folder of the record; an existing watch is continued. Default: a new folder in {RUNS_GO_TO}.",
)
@click.option("--arm", default="", help="Arm that is live; default: the last `after` arm.")
@click.option("--scale", default="", help="Size of the generated data: seed, small, standard or large.")
@click.option(
    "--rate",
    default=0.0,
    metavar="N",
    help="Probes per second of each request and query; default: as configured.",
)
@click.option(
    "--metrics",
    default="",
    metavar="[ADDRESS:]PORT",
    help="Serve metrics for Prometheus at this port; 0: a free port. Without ADDRESS, only this machine can connect.",
)
@click.option(
    "--notify",
    default="",
    metavar="COMMAND",
    help="Command to run for every alert; reads it as JSON on stdin.",
)
@click.option("--quiet", is_flag=True, help="Print only how the watch ended.")
@target_options
def watch(**options: Any) -> None:
    """Probe a live service and its database, raise alerts, and keep a record.

    The rate of the probes is low, the rules for alerts are those of the configuration, and the record is a folder.
    Without a configuration, perfkit starts the booking system and watches that, as a demonstration.

    \b
    Examples:
      perfkit watch --for 5min --every 2s              the booking system, as it would be deployed
      perfkit watch --config mine/perfkit.toml --folder live --confirm https://api.example.org:443
      perfkit watch --config mine/perfkit.toml --folder live --notify "./page-me --team booking"
    """  # noqa: D301 - click wants the character
    echo(str(api.watch(**options, ask=ask())))


REVIEW_GATE = {"met": 0, "missed": 99, "unproven": 100}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", default="", metavar="RUN", help="Run from before the release, shown beside the watch.")
@click.option("--arm", default="", help="Arm of that run that was shipped; default: the last `after` arm.")
@click.option(
    "--value", "values", multiple=True, metavar="NAME=X", help="Value of a row that nothing measures. Repeatable."
)
@click.option("--by", default="", metavar="NAME", help="Person who reports the values.")
@click.option(
    "--since", default="", metavar="TIME", help="Start of the review: 2026-01-15T09:00, in UTC if no zone is given."
)
@click.option("--until", default="", metavar="TIME", help="End of the review.")
@click.option(
    "--last", default="", metavar="TIME", help="Review the last 24h, for example, instead of --since and --until."
)
@click.option(
    "--config", default="", metavar="FILE", help="A perfkit.toml whose targets and rules replace those of the watch."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Page to write; default: in the watch's folder."
)
@click.option("--gate", is_flag=True, help="Exit 99 if a target was missed or a P1 happened, 100 if undecided.")
def review(folder: Path, values: tuple[str, ...], out: Path | None, gate: bool, **options: Any) -> None:
    """Compare a watch with its targets, and recommend what to do.

    The review is written as review.html, review.json and review.md. The watch may still be running: its record is only
    read.

    \b
    Examples:
      perfkit review reports/20260115-090000-watch
      perfkit review reports/20260115-090000-watch --last 24h --against reports/20260115-080000-standard
      perfkit review reports/20260115-090000-watch --value "User rating=4.3" --by "Product Lead" --gate
    """  # noqa: D301 - click wants the character
    reviewed = api.review(folder, values="\n".join(values), **options)
    page = reviewed.render(out)
    echo(repr(reviewed.table))
    echo("")
    echo(repr(reviewed.recommendation))
    echo(str(page))
    if gate:
        sys.exit(REVIEW_GATE[reviewed.found.recommendation.result])

"""Commands for a release: gate, rollback, watch, review."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from perfkit.analysis.report import Run
from perfkit.analysis.tables import is_alone
from perfkit.app import api
from perfkit.app.cli import RUNS_GO_TO, ask, echo, reports_option, target_options
from perfkit.app.cli.runs import GATE as RUNS_GATE
from perfkit.app.cli.runs import INVALID, exit_code
from perfkit.base.bundle import Bundle
from perfkit.base.errors import UsageError, visible
from perfkit.base.process import progress
from perfkit.postgres.guards import Permission
from perfkit.release import decision
from perfkit.release.rollback import EXIT, RollbackSpec, Word, ready


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--arm", default="", help="Only this arm is to be shipped.")
@click.option("--watch", default="", metavar="FOLDER", help="The folder of a watch, which must be running.")
@click.option(
    "--answer", "answers", multiple=True, metavar="QUESTION=yes|no", help="What a person says; several times."
)
@click.option("--by", default="", metavar="NAME", help="Who says it.")
@click.option("--junit", default="", metavar="FILE", help="Write the items as JUnit XML too.")
@click.option("--json", "as_json", default="", metavar="FILE", help="Write the decision as JSON too.")
def gate(run: Path, arm: str, watch: str, answers: tuple[str, ...], by: str, junit: str, as_json: str) -> None:
    """Decide whether to ship: exit 0 on GO, 99 NO-GO, 96 NO BENEFIT, 100 INCONCLUSIVE, 98 invalid.

    The rules of a run on disk, its checks, its database, a watch, and what people answer, as one table. Writes
    decision.html and decision.json into the run's folder, and seals it. Of one arm alone, which is compared with
    nothing: 0 where its limits hold, 99 broken, 100 unproven.

    \b
    Examples:
      perfkit gate reports/20260115-090000-standard
      perfkit gate reports/RUN --arm after-index --watch reports/watch
      perfkit gate reports/RUN --answer "Team ready for launch=yes" --by "Ops Lead"
      perfkit gate reports/RUN --junit gate.xml --json gate.json
    """  # noqa: D301 - click wants the character
    if is_alone(Bundle.open(run).run):
        _alone(run)
    made = api.decide(run, arm, watch, answers, by, junit=junit, json=as_json)
    page, decided = made.render(), made.decided
    echo(f"{decided.gate.decision}: {decided.headline}")
    for reason in decided.gate.reasons:
        echo(f"- {reason}")
    echo(f"\n{made.items!r}\n\n{page}\ncontent hash {made.seal.content}")
    code = RUNS_GATE[str(decided.gate.decision)]
    sys.exit(INVALID if decided.invalid and code == RUNS_GATE["INCONCLUSIVE"] else code)


def _alone(run: Path) -> NoReturn:
    """One arm, compared with nothing: whether its limits hold."""
    found = Run(Bundle.open(run)).subject
    echo(f"{found.word}: {found.analysis.headline}")
    sys.exit(exit_code(found))


@click.command()
@click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--hash", "digits", default="", metavar="DIGITS", help="The content hash on a page, or its beginning.")
def verify(path: Path, digits: str) -> None:
    """Say whether a decision's folder, or its page, is as it was sealed: exit 0 when unchanged, else 1.

    A checksum and no signature: whoever can change the folder can seal it anew. Only the hash on a signed page
    tells that: give it with --hash.

    \b
    Examples:
      perfkit verify reports/20260115-090000-standard
      perfkit verify reports/RUN/decision.html
      perfkit verify reports/RUN --hash 4f0c9a7be210
    """  # noqa: D301 - click wants the character
    wanted = decision.require_hash(digits) if digits else ""
    found = decision.verify(path)
    for what in ("differ", "missing", "new"):
        for name in getattr(found, what):
            echo(f"{'differs' if what == 'differ' else what}: {name}")
    fits = found.content.startswith(wanted)
    if not fits:
        echo(f"content hash is {found.content}, which does not begin with {wanted}")
    if fits and found.unchanged:
        count = len(found.seal.files) + len(found.seal.pages)
        echo(f"unchanged since {found.seal.on}: {count} files, content hash {found.content}")
        sys.exit(0)
    echo(f"not what was sealed at {found.seal.on} with the content hash {found.seal.content}")
    sys.exit(1)


# The command that takes an index set back and proves that the system is as it was before.

_REHEARSED = ("config", "scale", "profile", "seed", "postgres")
_SHOWN = ("db", "query", "parameters", "against", "rounds", "tls", "confirm", "production")
_LIVE = ("query", "parameters", "against", "rounds", "dry_run", "tls")


@click.command()
@click.argument("file", metavar="[SET.sql]", required=False, type=click.Path(path_type=Path))
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large.")
@click.option("--profile", default="quick", show_default=True, help="quick (6 blocks), standard (12), thorough (24).")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option("--db", default="", metavar="CONNINFO", help="Take it back in this database: service=NAME, no password.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: whose plan is looked at; several times.")
@click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s, a SELECT (.sql) or lines (.csv).")
@click.option("--against", metavar="RUN", help="With --db: a run from before the release, whose plans must come back.")
@click.option(
    "--rounds", default=3, show_default=True, help="With --db: of 5 s, before and after, of queries that only read."
)
@click.option("--dry-run", is_flag=True, help="With --db: print the SQL, and what would be looked at.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@reports_option
@target_options
def rollback(file: Path | None, dry_run: bool, **options: Any) -> None:
    """Drop an index set, CONCURRENTLY, and prove that the system is as it was before.

    Without --db it is rehearsed on a server that perfkit starts: the indexes are built, rows are changed, the indexes
    are dropped by the code that does it live, and plans, sizes and latencies are compared with those of a system that
    never had them. With --db it is done: nothing of the set may be left, and with --against the plans must be those
    from before the release; latencies are shown, not judged, and --rounds 0 drops without that delay. The owner
    allows it with: perfkit allow --ddl. Exit code 0: as before, 99: not as before, 100: not settled.

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
    given, run = (Path(name) if name else None for name in (parameters, against))
    with progress() as say:
        found = ready(
            RollbackSpec(db, file, query, given, run, rounds, tls), Permission((), confirm, production, ask()), say
        )
    return visible(found.script())


def _require_fitting(file: Path | None, live: bool) -> None:
    """Options of the other kind would be taken for granted. Raises UsageError."""
    context = click.get_current_context()
    given = click.core.ParameterSource.DEFAULT
    wrong = _REHEARSED if live else _LIVE
    if names := [name for name in wrong if context.get_parameter_source(name) is not given]:
        option = {"tls": "no-tls", "dry_run": "dry-run"}.get(names[0], names[0])
        raise UsageError(f"--{option} {'with' if live else 'without'} --db; expected {'none' if live else '--db too'}")
    if live and not file:
        raise UsageError("no index set; expected SET.sql with the indexes to be dropped")


# The command that watches a live target.


@click.command()
@click.option("--for", "lasts", default="24h", show_default=True, metavar="TIME", help="How long: 90s, 30min, 24h, 2d.")
@click.option("--every", default="", metavar="TIME", help="One interval; default: the configuration's, 10s.")
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option(
    "--folder",
    default="",
    metavar="FOLDER",
    help="Where the watch is recorded; a watch that is there already is continued. "
    f"Default: a new folder in {RUNS_GO_TO}.",
)
@click.option("--arm", default="", help="Which arm is live; default: the last `after` arm.")
@click.option("--scale", default="", help="Size of the data that perfkit makes: seed, small, standard or large.")
@click.option("--rate", default=0.0, metavar="N", help="Probes per second of each request and query.")
@click.option(
    "--metrics",
    default="",
    metavar="[ADDRESS:]PORT",
    help="Metrics for Prometheus; 0: a free port. Without an address only this machine reaches it.",
)
@click.option("--notify", default="", metavar="COMMAND", help="Is told of every alert, as JSON on its standard input.")
@click.option("--quiet", is_flag=True, help="Say only how it ended.")
@target_options
def watch(**options: Any) -> None:
    """Watch a live service and its database: probes at a low rate, alerts by your rules, a record on disk.

    Without a configuration, or with one whose service perfkit starts, that is watched: a demonstration.

    \b
    Examples:
      perfkit watch --for 5min --every 2s              the booking system, as it would be deployed
      perfkit watch --config mine/perfkit.toml --folder live --confirm https://api.example.org:443
      perfkit watch --config mine/perfkit.toml --folder live --notify "./page-me --team booking"
    """  # noqa: D301 - click wants the character
    echo(str(api.watch(**options, ask=ask())))


# The command that reviews the first day of a release.

GATE = {"met": 0, "missed": 99, "unproven": 100}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", default="", metavar="RUN", help="The run before the release, shown beside it.")
@click.option(
    "--arm", default="", help="The arm of that run that was shipped; the last one after the change without it."
)
@click.option("--value", "values", multiple=True, metavar="NAME=X", help="What people say of a row; several times.")
@click.option("--by", default="", metavar="WHO", help="Who says it.")
@click.option("--since", default="", metavar="TIME", help="From when: 2026-01-15T09:00, UTC without a zone.")
@click.option("--until", default="", metavar="TIME", help="Until when.")
@click.option("--last", default="", metavar="TIME", help="In place of these, the last so long: 24h.")
@click.option("--config", default="", metavar="FILE", help="Other targets and rules than the watch was begun with.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The page; by default in the watch's folder."
)
@click.option("--gate", is_flag=True, help="Exit 99 where a target was missed or a P1 happened, 100 where it is open.")
def review(folder: Path, values: tuple[str, ...], out: Path | None, gate: bool, **options: Any) -> None:
    """Hold a watch against its targets: write review.html, review.json, review.md, and say what to do.

    The watch may still run: its record is only read.

    \b
    Examples:
      perfkit review reports/20260115-090000-watch
      perfkit review reports/20260115-090000-watch --last 24h --against reports/20260115-080000-standard
      perfkit review reports/20260115-090000-watch --value "User rating=4.3" --by "Product Lead" --gate
    """  # noqa: D301 - click wants the character
    found = api.review(folder, values="\n".join(values), **options)
    page = found.render(out)
    echo(repr(found.table))
    echo("")
    echo(repr(found.recommendation))
    echo(str(page))
    if gate:
        sys.exit(GATE[found.found.recommendation.result])

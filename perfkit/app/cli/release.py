"""Commands for a release: gate, rollback, watch, review."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import click

from perfkit.analysis.report import Run
from perfkit.app import api
from perfkit.app.cli import echo, options
from perfkit.app.cli.runs import exit_code
from perfkit.app.specs import DropSpec, GateSpec, LiveSpec, ReviewSpec
from perfkit.base.errors import UsageError, visible
from perfkit.base.options import Spec, about, flag_of, listed, option
from perfkit.base.process import progress
from perfkit.release import decision
from perfkit.release.rollback import EXIT, Word, prepare
from perfkit.runs.records import Bundle


@click.command()
@options(GateSpec)
def gate(spec: GateSpec) -> None:
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
    if Bundle.open(Path(spec.run)).run.alone:
        _alone(Path(spec.run))
    record = api.decide(spec)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySpec(Spec):
    """Options of `perfkit verify`."""

    path: str = field(metadata=about(metavar="FOLDER", argument=True))
    digits: str = option("", "Content hash on a page, or its first digits.", "DIGITS", "hash")


@click.command()
@options(VerifySpec)
def verify(spec: VerifySpec) -> None:
    """Check that a decision's folder or page is unchanged since it was sealed.

    Exit code 0: unchanged, 1: changed. The seal is a checksum, not a signature: a person who can change the folder can
    also seal it again. To detect that, pass the hash of a signed page with --hash.

    \b
    Examples:
      perfkit verify reports/20260115-090000-standard
      perfkit verify reports/RUN/decision.html
      perfkit verify reports/RUN --hash 4f0c9a7be210
    """  # noqa: D301 - click wants the character
    expected = decision.require_hash(spec.digits) if spec.digits else ""
    state = decision.verify(Path(spec.path))
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


# Options of `rollback` that only a rehearsal takes, and that only a real rollback takes.
_REHEARSED = ("config", "scale", "profile", "seed", "postgres")
_LIVE = ("query", "parameters", "against", "rounds", "dry_run", "tls")


@dataclass(frozen=True, slots=True, kw_only=True)
class DropCommand(DropSpec):
    """Options of `perfkit rollback`."""

    dry_run: bool = option(False, "With --db: print the SQL and the planned comparisons; change nothing.")


@click.command()
@options(DropCommand)
def rollback(spec: DropCommand) -> None:
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
    _require_fitting(spec)
    if spec.dry_run:
        with progress() as say:
            prepared = prepare(api.live_rollback(spec), spec.permission, say)
        click.echo(visible(prepared.script()), nl=False)
        return
    done = api.rollback(spec)
    page = done.render()
    echo(f"{done.found.word}: {done.found.sentence}")
    for item in done.found.items:
        if spec.db or item.word is not Word.SAME:
            echo(f"  {item.word or 'not judged'}: {item.text}")
    for line in done.found.unseen:
        echo(f"  {line}")
    echo(str(page))
    sys.exit(EXIT[done.found.word])


def _require_fitting(spec: DropCommand) -> None:
    """Raise UsageError if an option has no effect: of a rehearsal in a real rollback, or the other way round."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    wrong = _REHEARSED if spec.db else _LIVE
    if given := [name for name in wrong if context.get_parameter_source(name) is not default]:
        flag, expected = flag_of(*listed(DropCommand)[given[0]]), "none" if spec.db else "--db too"
        raise UsageError(f"{flag} {'with' if spec.db else 'without'} --db; expected {expected}")
    if spec.db and not spec.indexes:
        raise UsageError("no index set; expected SET.sql with the indexes to be dropped")


@click.command()
@options(LiveSpec)
def watch(spec: LiveSpec) -> None:
    """Probe a live service and its database, raise alerts, and keep a record.

    The rate of the probes is low, the rules for alerts are those of the configuration, and the record is a folder.
    Without a configuration, perfkit starts the booking system and watches that, as a demonstration.

    \b
    Examples:
      perfkit watch --for 5min --every 2s              the booking system, as it would be deployed
      perfkit watch --config mine/perfkit.toml --folder live --confirm https://api.example.org:443
      perfkit watch --config mine/perfkit.toml --folder live --notify "./page-me --team booking"
    """  # noqa: D301 - click wants the character
    echo(str(api.watch(spec)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewCommand(ReviewSpec):
    """Options of `perfkit review`."""

    out: Path | None = option(None, "Page to write; default: in the watch's folder.", "FILE")
    gate: bool = option(False, "Exit 99 if a target was missed or a P1 happened, 100 if undecided.")


@click.command()
@options(ReviewCommand)
def review(spec: ReviewCommand) -> None:
    """Compare a watch with its targets, and recommend what to do.

    The review is written as review.html, review.json and review.md. The watch may still be running: its record is only
    read.

    \b
    Examples:
      perfkit review reports/20260115-090000-watch
      perfkit review reports/20260115-090000-watch --last 24h --against reports/20260115-080000-standard
      perfkit review reports/20260115-090000-watch --value "User rating=4.3" --by "Product Lead" --gate
    """  # noqa: D301 - click wants the character
    reviewed = api.review(spec)
    page = reviewed.render(spec.out)
    echo(repr(reviewed.table))
    echo("")
    echo(repr(reviewed.recommendation))
    echo(str(page))
    if spec.gate:
        sys.exit(reviewed.reviewed.recommendation.outcome.exit_code())

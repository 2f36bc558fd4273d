"""Commands that measure or render a run, and those for a release: gate, rollback, watch, review."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from perfkit import app
from perfkit.app.cli import echo, options
from perfkit.app.specs import (
    SEED,
    CheckSpec,
    CompareSpec,
    DropSpec,
    GateSpec,
    LiveSpec,
    MeasureSpec,
    ReportSpec,
    ReviewSpec,
)
from perfkit.base.errors import UsageError, visible
from perfkit.base.options import Option, Spec, about, flag_of, listed, option

if TYPE_CHECKING:
    from perfkit.analysis.report import LoadRun, Run

GATED = "Exit 99 on NO-GO, 96 on NO BENEFIT, 100 on INCONCLUSIVE, 98 if invalid."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCommand(ReportSpec):
    """Options of `perfkit report`."""

    gate: bool = option(False, GATED)


@click.command()
@options(ReportCommand)
def report(spec: ReportCommand) -> None:
    """Measure before and after a change, and write the report.

    The run's folder gets report.html, verdict.json, summary.md and the raw data.

    \b
    Examples:
      perfkit report                        the booking system, about 4 minutes
      perfkit report --profile quick        6 blocks, about 90 seconds
      perfkit report --rtt-ms 20            with a network between service and database
      perfkit report --preset checklist     the set-up of the checklist's figures, compared with them
      perfkit report --plan-for 10 --max-time 20    intervals of about 10 %, in at most 20 minutes
      perfkit report --bundle reports/RUN   render again, measure nothing
    """  # noqa: D301 - click wants the character
    rendered(app.runs.run(spec), spec.gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareCommand(CompareSpec):
    """Options of `perfkit compare`."""

    gate: bool = option(False, GATED)


@click.command()
@options(CompareCommand)
def compare(spec: CompareCommand) -> None:
    """Measure a query of yours before and after an index, a setting or a rewrite.

    perfkit only reads the database and measures a private copy, unless --way says otherwise.

    \b
    Examples:
      perfkit compare --db service=staging --query slow.sql --index "CREATE INDEX ON orders (customer_id)"
      perfkit compare --db service=staging --query slow.sql --set work_mem=64MB --way in-place
      perfkit compare --db "host=localhost dbname=app" --query slow.sql --rewrite faster.sql
    """  # noqa: D301 - click wants the character
    rendered(app.runs.compare(spec), spec.gate)


def rendered(run: Run | LoadRun, gate: bool) -> None:
    """Write a run's report, print its decision and path, and at a gate exit with the decision's code."""
    page = run.render()
    echo(f"{run.subject.word}: {run.analysis.headline}")
    echo(str(page))
    if gate:
        sys.exit(app.runs.exit_code(run))


@click.command()
@options(CheckSpec)
def check(spec: CheckSpec) -> None:
    """Run only the functional checks, on every arm; exit 1 if one fails.

    \b
    Examples:
      perfkit check
      perfkit check --scale seed --arm before --arm after-full
    """  # noqa: D301 - click wants the character
    checks = app.runs.check(spec)
    for arm, result in checks:
        echo(f"{'passed' if result.passed else 'FAILED'}  {arm}: {result.group}: {result.name}")
        if not result.passed:
            echo(f"        expected {result.expected}\n        got      {result.got}")
    failed = sum(not result.passed for _, result in checks)
    echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCommand(MeasureSpec):
    """Options of `perfkit measure`."""

    gate: bool = option(False, "Exit 99 if a threshold is broken, 100 if unproven, 98 if invalid.")


@click.command()
@options(MeasureCommand)
def measure(spec: MeasureCommand) -> None:
    """Measure one arm under load, without a comparison.

    The run says whether the arm holds its thresholds; its folder gets load.html, verdict.json, summary.md and the raw
    data.

    \b
    Examples:
      perfkit measure                                the booking system as it would be deployed
      perfkit measure --arm before --p95-ms 200      another arm, a limit of your own
      perfkit measure --blocks 1 --scenario burst    a quick look, without intervals
      perfkit measure --db service=staging --query slow.sql --rate 50 --seconds 20
    """  # noqa: D301 - click wants the character
    rendered(app.runs.measure(spec), spec.gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec(Spec):
    """Options of `perfkit method`."""

    folder: str = option("docs", "Folder of method.md.", "FOLDER")
    repetitions: int = option(2000, Option("Simulated runs per figure.", least=100))
    seed: int = option(1, replace(SEED, least=0))


@click.command()
@options(MethodSpec)
def method(spec: MethodSpec) -> None:
    """Simulate runs with a known truth; write the results into docs/method.md.

    It takes about a minute and measures nothing.

    \b
    Example:
      perfkit method --folder docs --repetitions 2000
    """  # noqa: D301 - click wants the character
    try:
        from benchmarks.method.document import write  # not part of the package: only a checkout has it
    except ImportError:
        raise UsageError("method: the simulations are not installed; expected a checkout of perfkit") from None

    for path in write(Path(spec.folder), spec.repetitions, spec.seed, lambda line: echo(line, err=True)):
        echo(str(path))


@click.command()
@click.argument("copy_to", type=click.Path(path_type=Path))
def notebooks(copy_to: Path) -> None:
    """Copy the notebooks into a folder; overwrite nothing.

    A notebook's run goes to the same reports/ folder as a command's run (perfkit report --help).

    \b
    Examples:
      perfkit notebooks mine
      papermill mine/before_after_index.ipynb out.ipynb -p profile quick
      jupyter lab mine
    """  # noqa: D301 - click wants the character
    copies = app.starter.copy_notebooks(copy_to)
    for path in copies:
        echo(str(path))
    papermill, lab = _command("papermill", "papermill"), _command("jupyter-lab", "jupyterlab")
    echo(f"{len(copies)} notebooks copied to {copy_to}. Run one, or open them all:")
    echo(f"  {papermill} {quote(str(copies[0]))} out.ipynb -p profile quick")
    echo(f"  {lab} {quote(str(copy_to))}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def schemas(folder: Path) -> None:
    """Write the JSON schemas of perfkit's files into a folder; overwrite nothing.

    The files are run.json and rounds/*.json of a run, lab.json of an index lab, watch.json of a watch, the lines of its
    ticks.jsonl and events.jsonl, and decision.json and rollback.json of a release.

    \b
    Example:
      perfkit schemas schemas
    """  # noqa: D301 - click wants the character
    for path in app.starter.write_schemas(folder):
        echo(str(path))


def _command(program: str, module: str) -> str:
    """Return how a shell starts a program of this environment, which may not be the one on the PATH."""
    path = shutil.which(program)
    if path and Path(path).parent == Path(sys.executable).parent:
        return program
    return f"{quote(sys.executable)} -m {module}"


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
    if (run := app.runs.opened(Path(spec.run))).subject.run.alone:
        echo(f"{run.subject.word}: {run.analysis.headline}")
        sys.exit(app.runs.exit_code(run))
    record = app.api.decide(spec)
    page, decided = record.render(), record.decided
    echo(f"{decided.decision}: {decided.headline}")
    for reason in decided.reasons:
        echo(f"- {reason}")
    echo(f"\n{record.items!r}\n\n{page}\ncontent hash {record.seal.content}")
    sys.exit(decided.outcome.exit_code(invalid=decided.invalid))


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
    from perfkit.release import decision  # late, as the modules of app

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
        click.echo(visible(app.api.rollback_script(spec)), nl=False)
        return
    done = app.api.rollback(replace(spec, indexes=Path(spec.indexes) if spec.indexes else ""))
    page = done.render()
    echo(f"{done.found.word}: {done.found.sentence}")
    for item in done.found.items:
        if spec.db or item.word != "as before":
            echo(f"  {item.word}: {item.text}")
    for line in done.found.unseen:
        echo(f"  {line}")
    echo(str(page))
    sys.exit(done.found.outcome.exit_code())


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
    echo(str(app.api.watch(spec)))


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
    reviewed = app.api.review(spec)
    page = reviewed.render(spec.out)
    echo(repr(reviewed.table))
    echo("")
    echo(repr(reviewed.recommendation))
    echo(str(page))
    if spec.gate:
        sys.exit(reviewed.reviewed.recommendation.outcome.exit_code())

"""Commands that measure or render a run."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import click

from perfkit.analysis.report import LoadRun, Run, render
from perfkit.analysis.tables import Subject
from perfkit.app import runs
from perfkit.app.cli import echo, options
from perfkit.app.runs import loaded, settled
from perfkit.app.specs import SEED, CheckSpec, CompareSpec, MeasureSpec, ReportSpec
from perfkit.app.starter import copy_notebooks
from perfkit.base.errors import UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.options import Option, Spec, option
from perfkit.base.process import progress
from perfkit.runs.experiment import Experiment
from perfkit.runs.selection import Selection
from perfkit.runs.targets import admitted

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
    rendered(runs.run(spec), spec.gate)


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
    rendered(runs.compare(spec), spec.gate)


def rendered(run: Run | LoadRun, gate: bool) -> None:
    """Write a run's report, print its decision and path, and at a gate exit with the decision's code."""
    page = render(run.bundle.path)
    echo(f"{run.subject.word}: {run.analysis.headline}")
    echo(str(page))
    if gate:
        sys.exit(exit_code(run.subject))


@click.command()
@options(CheckSpec)
def check(spec: CheckSpec) -> None:
    """Run only the functional checks, on every arm; exit 1 if one fails.

    \b
    Examples:
      perfkit check
      perfkit check --scale seed --arm before --arm after-full
    """  # noqa: D301 - click wants the character
    settings = loaded(spec.config)
    chosen = Selection(settings, settled(spec, settings))
    targets = admitted(chosen.config, chosen.arms, spec.permission)
    with progress() as say:
        results = Experiment(chosen, targets, say).check()
    checks = [(arm, check) for arm, of_arm in results.items() for check in of_arm]
    for arm, result in checks:
        echo(f"{'passed' if result.passed else 'FAILED'}  {arm}: {result.group}: {result.name}")
        if not result.passed:
            echo(f"        expected {result.expected}\n        got      {result.got}")
    failed = sum(not result.passed for _, result in checks)
    echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


def exit_code(subject: Subject) -> int:
    """Return the exit code of a decision; invalid outranks inconclusive."""
    analysis = subject.analysis
    invalid = any(comparison.verdict is Verdict.INVALID for comparison in analysis.comparisons)
    slow = subject.run.alone and not all(level.healthy for level in analysis.levels)
    return analysis.decision.outcome.exit_code(invalid=invalid or slow)


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
    rendered(runs.measure(spec), spec.gate)


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
    copies = copy_notebooks(copy_to)
    for path in copies:
        echo(str(path))
    papermill, lab = _command("papermill", "papermill"), _command("jupyter-lab", "jupyterlab")
    echo(f"{len(copies)} notebooks copied to {copy_to}. Run one, or open them all:")
    echo(f"  {papermill} {quote(str(copies[0]))} out.ipynb -p profile quick")
    echo(f"  {lab} {quote(str(copy_to))}")


def _command(program: str, module: str) -> str:
    """Return how a shell starts a program of this environment, which may not be the one on the PATH."""
    path = shutil.which(program)
    if path and Path(path).parent == Path(sys.executable).parent:
        return program
    return f"{quote(sys.executable)} -m {module}"

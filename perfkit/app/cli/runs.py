"""Commands that measure or render a run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Any

import click
from click.core import ParameterSource

from perfkit import config
from perfkit.analysis.report import render
from perfkit.analysis.tables import Subject
from perfkit.app import api
from perfkit.app.cli import (
    DATABASE,
    ask,
    bundle_option,
    config_option,
    echo,
    experiment_options,
    parameters_option,
    postgres_option,
    profile_option,
    reports_option,
    required_db_option,
    scale_option,
    seed_option,
    target_options,
    tls_option,
    volatile_option,
)
from perfkit.app.starter import copy_notebooks
from perfkit.base.errors import UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.process import progress
from perfkit.postgres.guards import Permission
from perfkit.runs.experiment import Experiment
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import admitted


@click.command()
@experiment_options
@target_options
@click.option(
    "--profile",
    default="standard",
    show_default=True,
    help="Profile: quick (6 blocks), standard (12) or thorough (24).",
)
@click.option(
    "--plan-for",
    default=0.0,
    metavar="PCT",
    help="Let a pilot of 4 blocks set the number of blocks that detects a change of PCT %; overrides the profile.",
)
@click.option(
    "--max-time", "max_minutes", default=15.0, show_default=True, help="With --plan-for: time limit in minutes."
)
@click.option("--scenario", "scenarios", multiple=True, help="Use only this scenario. Repeatable.")
@click.option(
    "--preset",
    default="",
    metavar="NAME",
    help="Take profile, scale and round trip from [presets.NAME] of the configuration; the options above win.",
)
@reports_option
@bundle_option
@click.option("--lab", default="", metavar="FOLDER", help="Add the summary of this index lab to the report.")
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 96 on NO BENEFIT, 100 on INCONCLUSIVE, 98 if invalid.")
@click.pass_context
def report(context: click.Context, /, gate: bool, **options: Any) -> None:
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
    defaults = (name for name in options if context.get_parameter_source(name) is ParameterSource.DEFAULT)
    # A preset sets these four, unless the user does.
    for name in {"profile", "scale", "rtt_ms", "connect_rtts"}.intersection(defaults):
        del options[name]
    rendered(api.run(**options, ask=ask()), gate)


@click.command()
@required_db_option
@click.option("--query", multiple=True, metavar="SQL|FILE", help="Query to measure. Repeatable.")
@click.option("--index", multiple=True, metavar="SQL|FILE", help="Change to measure: CREATE INDEX. Repeatable.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change to measure: a server setting. Repeatable."
)
@click.option("--rewrite", metavar="SQL|FILE", help="Change to measure: another query that returns the same rows.")
@click.option("--parameters", metavar="FILE", help="Values for %(name)s, from a SELECT (.sql) or rows (.csv).")
@click.option(
    "--way",
    type=click.Choice(["whole", "sample", "generated", "clone", "in-place"]),
    default="whole",
    show_default=True,
    help="Where to measure: in a private copy (whole, sample, generated), in clones beside the database, or in place.",
)
@click.option("--users", default=10, show_default=True, help="Number of connections at the second load level.")
@click.option("--p95-ms", type=float, help="Limit in ms that 95 of 100 executions must meet; default: no limit.")
@click.option(
    "--need",
    type=click.Choice(["benefit", "none"]),
    default="benefit",
    show_default=True,
    help="What a GO requires: a benefit, or (none) only that nothing gets worse.",
)
@volatile_option
@tls_option
@click.option("--pooler", is_flag=True, help="The database is behind a pooler in transaction mode.")
@profile_option
@seed_option
@reports_option
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 96 on NO BENEFIT, 100 on INCONCLUSIVE, 98 if invalid.")
@target_options
def compare(gate: bool, settings: tuple[str, ...], **options: Any) -> None:
    """Measure a query of yours before and after an index, a setting or a rewrite.

    perfkit only reads the database and measures a private copy, unless --way says otherwise.

    \b
    Examples:
      perfkit compare --db service=staging --query slow.sql --index "CREATE INDEX ON orders (customer_id)"
      perfkit compare --db service=staging --query slow.sql --set work_mem=64MB --way in-place
      perfkit compare --db "host=localhost dbname=app" --query slow.sql --rewrite faster.sql
    """  # noqa: D301 - click wants the character
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"--set {wrong[0]}; expected NAME=VALUE")
    values = {name.strip(): value.strip() for name, _, value in pairs}
    rendered(api.compare(**options, settings=values, ask=ask()), gate)


def rendered(run: Any, gate: bool) -> None:
    """Write a run's report, print its decision and path, and at a gate exit with the decision's code."""
    page = render(run.bundle.path)
    echo(f"{run.subject.word}: {run.analysis.headline}")
    echo(str(page))
    if gate:
        sys.exit(exit_code(run.subject))


@click.command()
@experiment_options
@target_options
def check(confirm: tuple[str, ...], production: tuple[str, ...], **options: Any) -> None:
    """Run only the functional checks, on every arm; exit 1 if one fails.

    \b
    Examples:
      perfkit check
      perfkit check --scale seed --arm before --arm after-full
    """  # noqa: D301 - click wants the character
    path = options.pop("config")
    chosen = Selection(config.load(Path(path) if path else None), RunSpec(**options))
    targets = admitted(chosen.config, chosen.arms, Permission((), confirm, production, ask()))
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
    slow = subject.alone and not all(level.healthy for level in analysis.levels)
    return analysis.decision.outcome.exit_code(invalid=invalid or slow)


@click.command()
@config_option
@click.option("--arm", default="", help="Arm to measure; default: the last `after` arm, which would be deployed.")
@click.option("--scenario", "scenarios", multiple=True, help="Use only this scenario. Repeatable.")
@click.option(
    "--profile", default="standard", show_default=True, help="Profile: quick (6 blocks), standard (12) or thorough."
)
@click.option("--blocks", default=0, metavar="N", help="Number of blocks; overrides the profile (minimum 1).")
@scale_option
@seed_option
@click.option("--rtt-ms", default=0.0, help="Added network round trip between service and database, in ms.")
@click.option(
    "--connect-rtts", default=6, show_default=True, help="Round trips that a new connection takes (TLS, SCRAM)."
)
@postgres_option
@click.option(
    "--p95-ms",
    default=0.0,
    metavar="MS",
    help="Limit in ms that 95 of 100 requests must meet; default: the configuration's.",
)
@click.option(
    "--error-rate",
    default=-1.0,
    metavar="SHARE",
    help="Highest acceptable share of failed requests; default: the configuration's.",
)
@click.option("--db", default="", metavar="CONNINFO", help=f"Measure --query in a database of yours: {DATABASE}")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: query to send. Repeatable.")
@parameters_option
@click.option(
    "--way",
    type=click.Choice(["whole", "sample", "generated", "clone", "in-place"]),
    default="whole",
    show_default=True,
    help="With --db: in a private copy (whole, sample, generated), in a clone beside the database, or in place.",
)
@click.option(
    "--users",
    default=10,
    show_default=True,
    help="With --db: number of connections; with --rate, most requests in flight.",
)
@click.option(
    "--rate", default=0.0, metavar="N", help="With --db: requests per second, sent whether or not answers arrive."
)
@click.option("--seconds", default=10.0, show_default=True, help="With --rate: duration of a round in seconds.")
@tls_option
@reports_option
@bundle_option
@click.option("--gate", is_flag=True, help="Exit 99 if a threshold is broken, 100 if unproven, 98 if invalid.")
@target_options
def measure(gate: bool, **options: Any) -> None:
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
    rendered(api.measure(**options, ask=ask()), gate)


@click.command()
@click.option("--folder", default="docs", show_default=True, metavar="FOLDER", help="Folder of method.md.")
@click.option(
    "--repetitions", default=2000, show_default=True, type=click.IntRange(100), help="Simulated runs per figure."
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Seed of all random choices.")
def method(folder: str, repetitions: int, seed: int) -> None:
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

    for path in write(Path(folder), repetitions, seed, lambda line: echo(line, err=True)):
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

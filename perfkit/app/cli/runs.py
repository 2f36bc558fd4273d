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
from perfkit.app import api
from perfkit.app.cli import ask, echo, experiment_options, reports_option, target_options
from perfkit.app.starter import copy_notebooks
from perfkit.base.errors import UsageError
from perfkit.base.process import progress
from perfkit.base.stats import Verdict
from perfkit.postgres.guards import Permission
from perfkit.runs.experiment import Experiment
from perfkit.runs.selection import RunSpec, Selection
from perfkit.runs.targets import admitted

GATE = {"GO": 0, "NO BENEFIT": 96, "NO-GO": 99, "INCONCLUSIVE": 100, "HOLDS": 0, "BROKEN": 99, "UNPROVEN": 100}
INVALID = 98


@click.command()
@experiment_options
@target_options
@click.option(
    "--profile", default="standard", show_default=True, help="quick (6 blocks), standard (12), thorough (24)."
)
@click.option(
    "--plan-for",
    default=0.0,
    metavar="PCT",
    help="In place of the profile's: as many blocks as a pilot of 4 asks for to find a change by so much.",
)
@click.option("--max-time", "max_minutes", default=15.0, show_default=True, help="Minutes that these may take.")
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; several times.")
@click.option(
    "--preset",
    default="",
    metavar="NAME",
    help="Profile, scale and round trip from the configuration's [presets.NAME]; the options above win.",
)
@reports_option
@click.option("--bundle", default="", metavar="FOLDER", help="Render this run again; measures nothing.")
@click.option("--lab", default="", metavar="FOLDER", help="Take the summary of this index lab into the report.")
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 96 on NO BENEFIT, 100 on INCONCLUSIVE, 98 when invalid.")
@click.pass_context
def report(context: click.Context, /, gate: bool, **options: Any) -> None:
    """Measure before and after, write report.html, verdict.json, summary.md and the raw data.

    \b
    Examples:
      perfkit report                        the booking system, about 4 minutes
      perfkit report --profile quick        6 blocks, about 90 seconds
      perfkit report --rtt-ms 20            with a network between service and database
      perfkit report --preset checklist     the set-up of the checklist's figures, held against them
      perfkit report --plan-for 10 --max-time 20    intervals of about 10 %, in at most 20 minutes
      perfkit report --bundle reports/RUN   render once more, measure nothing
    """  # noqa: D301 - click wants the character
    usual = (name for name in options if context.get_parameter_source(name) is ParameterSource.DEFAULT)
    for name in {"profile", "scale", "rtt_ms", "connect_rtts"}.intersection(usual):  # what a preset may give
        del options[name]
    rendered(api.run(**options, ask=ask()), gate)


@click.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="What is slow; several times.")
@click.option("--index", multiple=True, metavar="SQL|FILE", help="CREATE INDEX statements; several times.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A server setting; several times.")
@click.option("--rewrite", metavar="SQL|FILE", help="The query in other words; must give the same rows.")
@click.option("--parameters", metavar="FILE", help="Values for %(name)s: a SELECT (.sql) or lines (.csv).")
@click.option(
    "--way",
    type=click.Choice(["whole", "sample", "generated", "clone", "in-place"]),
    default="whole",
    show_default=True,
    help="A private copy (whole, sample, generated), clones beside the database, or in place.",
)
@click.option("--users", default=10, show_default=True, help="Connections of the second load level.")
@click.option("--p95-ms", type=float, help="A limit for 95 of 100 executions.")
@click.option(
    "--need",
    type=click.Choice(["benefit", "none"]),
    default="benefit",
    show_default=True,
    help="What a GO asks for; none: of a setting that changes for another reason, that nothing gets worse.",
)
@click.option("--volatile", multiple=True, metavar="FUNCTION", help="A volatile function that may be called.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@click.option("--pooler", is_flag=True, help="It is reached through a pooler in transaction mode.")
@click.option("--profile", default="quick", show_default=True, help="quick (6 blocks), standard, thorough.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@reports_option
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 96 on NO BENEFIT, 100 on INCONCLUSIVE, 98 when invalid.")
@target_options
def compare(gate: bool, settings: tuple[str, ...], **options: Any) -> None:
    """Measure a query of yours before and after an index, a setting or a rewrite.

    The database is only read, and measured in a private copy, unless --way says otherwise.

    \b
    Examples:
      perfkit compare --db service=staging --query slow.sql --index "CREATE INDEX ON orders (customer_id)"
      perfkit compare --db service=staging --query slow.sql --set work_mem=64MB --way in-place
      perfkit compare --db "host=localhost dbname=app" --query slow.sql --rewrite faster.sql
    """  # noqa: D301 - click wants the character
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"--set {wrong[0]}; expected NAME=VALUE")
    given = {name.strip(): value.strip() for name, _, value in pairs}
    rendered(api.compare(**options, settings=given, ask=ask()), gate)


def rendered(run: Any, gate: bool) -> None:
    """Write a run's report, say its decision and where it is; at the gate, end with the decision's code."""
    page = render(run.bundle.path)
    echo(f"{run.subject.word}: {run.analysis.headline}")
    echo(str(page))
    if gate:
        sys.exit(exit_code(run.subject))


@click.command()
@experiment_options
@target_options
def check(confirm: tuple[str, ...], production: tuple[str, ...], **options: Any) -> None:
    """Run the functional checks alone, on every arm; exit 1 when one fails.

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
    checks = [(arm, check) for arm, own in results.items() for check in own]
    for arm, result in checks:
        echo(f"{'passed' if result.passed else 'FAILED'}  {arm}: {result.group}: {result.name}")
        if not result.passed:
            echo(f"        expected {result.expected}\n        got      {result.got}")
    failed = sum(not result.passed for _, result in checks)
    echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


def exit_code(subject: Any) -> int:
    """The exit code of a decision; what is invalid outranks what the rest could not settle."""
    analysis, code = subject.analysis, GATE[subject.word]
    invalid = any(comparison.verdict is Verdict.INVALID for comparison in analysis.comparisons)
    slow = subject.alone and not all(level.healthy for level in analysis.levels)
    return INVALID if code == GATE["INCONCLUSIVE"] and (invalid or slow) else code


# The command that measures one arm, compared with nothing: a plain load test.


@click.command()
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option("--arm", default="", help="Which arm; default: the last `after` arm, what would be deployed.")
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; several times.")
@click.option("--profile", default="standard", show_default=True, help="quick (6 blocks), standard (12), thorough.")
@click.option("--blocks", default=0, metavar="N", help="So many blocks in place of the profile's, down to 1.")
@click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--rtt-ms", default=0.0, help="Network round trip between service and database, ms.")
@click.option("--connect-rtts", default=6, show_default=True, help="Round trips that connecting costs (TLS, SCRAM).")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option(
    "--p95-ms", default=0.0, metavar="MS", help="95 of 100 requests within; default: the configuration's limit."
)
@click.option(
    "--error-rate", default=-1.0, metavar="SHARE", help="Failures that are too many; default: the configuration's."
)
@click.option("--db", default="", metavar="CONNINFO", help="A database of yours: service=NAME, no password.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: what is sent; several times.")
@click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s, a SELECT (.sql) or lines (.csv).")
@click.option(
    "--way",
    type=click.Choice(["whole", "sample", "generated", "clone", "in-place"]),
    default="whole",
    show_default=True,
    help="With --db: a private copy, a clone beside it, or in place.",
)
@click.option("--users", default=10, show_default=True, help="With --db: connections, or the most in flight.")
@click.option("--rate", default=0.0, metavar="N", help="With --db: requests a second, whether answered or not.")
@click.option("--seconds", default=10.0, show_default=True, help="With --rate: how long a round lasts.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@reports_option
@click.option("--bundle", default="", metavar="FOLDER", help="Render this run again; measures nothing.")
@click.option("--gate", is_flag=True, help="Exit 99 when a threshold is broken, 100 unproven, 98 invalid.")
@target_options
def measure(gate: bool, **options: Any) -> None:
    """Measure one arm under load, compared with nothing: does it hold its thresholds?

    Writes load.html, verdict.json, summary.md and the raw data.

    \b
    Examples:
      perfkit measure                                the booking system as it would be deployed
      perfkit measure --arm before --p95-ms 200      another arm, a limit of your own
      perfkit measure --blocks 1 --scenario burst    a quick look, without intervals
      perfkit measure --db service=staging --query slow.sql --rate 50 --seconds 20
    """  # noqa: D301 - click wants the character
    rendered(api.measure(**options, ask=ask()), gate)


# The command that writes what docs/method.md shows of simulations.


@click.command()
@click.option("--folder", default="docs", show_default=True, metavar="FOLDER", help="Where method.md is.")
@click.option("--repetitions", default=2000, show_default=True, type=click.IntRange(100), help="Runs per figure.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Decides everything random.")
def method(folder: str, repetitions: int, seed: int) -> None:
    """Simulate runs whose truth is known, and write tables and pictures into docs/method.md.

    Takes about a minute and measures nothing.

    \b
    Example:
      perfkit method --folder docs --repetitions 2000
    """  # noqa: D301 - click wants the character
    from benchmarks.method.document import write

    for path in write(Path(folder), repetitions, seed, lambda line: echo(line, err=True)):
        echo(str(path))


# The command that copies the notebooks to where they can be run and changed.


@click.command()
@click.argument("copy_to", type=click.Path(path_type=Path))
def notebooks(copy_to: Path) -> None:
    """Copy the notebooks into a folder, to run or change them there; no file is overwritten.

    What a notebook measures goes to the same reports/ folder as a command's run (perfkit report --help).

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
    """Return how a shell starts a program of this environment: it may be on the PATH of another one, or on none."""
    found = shutil.which(program)
    if found and Path(found).parent == Path(sys.executable).parent:
        return program
    return f"{quote(sys.executable)} -m {module}"

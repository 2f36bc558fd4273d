"""Commands that measure, or read what was measured: report, compare, check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from perfkit.cli.group import ask, echo, experiment_options, reports_option, target_options
from perfkit.errors import UsageError

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
    from perfkit import api

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
    from perfkit import api

    pairs = [setting.partition("=") for setting in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"--set {wrong[0]}; expected NAME=VALUE")
    given = {name.strip(): value.strip() for name, _, value in pairs}
    rendered(api.compare(**options, settings=given, ask=ask()), gate)


def rendered(run: Any, gate: bool) -> None:
    """Write a run's report, say its decision and where it is; at the gate, end with the decision's code."""
    from perfkit.report.run import render

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
    from perfkit import config
    from perfkit.display.progress import progress
    from perfkit.experiment import Experiment
    from perfkit.guards.admission import Permission
    from perfkit.selection import RunSpec, Selection
    from perfkit.targets import admitted

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
    from perfkit.stats import Verdict

    analysis, code = subject.analysis, GATE[subject.word]
    invalid = any(comparison.verdict is Verdict.INVALID for comparison in analysis.comparisons)
    slow = subject.alone and not all(level.healthy for level in analysis.levels)
    return INVALID if code == GATE["INCONCLUSIVE"] and (invalid or slow) else code

"""The command line: options in, one call out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from perfkit.errors import Interrupted, PerfkitError

GATE = {"GO": 0, "NO-GO": 99, "INCONCLUSIVE": 100}
INVALID = 98


class _Group(click.Group):
    """Turns every error into one line and its exit code."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return super().invoke(context)
        except PerfkitError as error:
            _echo(f"perfkit: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            _echo("perfkit: stopped", err=True)
            context.exit(Interrupted.exit_code)


def _echo(text: str, *, err: bool = False) -> None:
    """Print a line that may hold text from a file or a database: control characters are made visible."""
    from perfkit.display.html import visible

    click.echo("\n".join(map(visible, text.splitlines())), err=err)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _experiment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that `report` and `check` share."""
    for option in reversed(
        [
            click.option(
                "--config",
                default="",
                metavar="FILE",
                help="A perfkit.toml; the booking system's without it.",
            ),
            click.option(
                "--scale", default="", help="Size of the data: seed, small, standard (default) or large."
            ),
            click.option("--arm", "arms", multiple=True, help="Only these arms; several times."),
            click.option("--seed", default=1, show_default=True, help="Decides everything that is random."),
            click.option(
                "--rtt-ms", default=0.0, help="Network round trip between service and database, ms."
            ),
            click.option(
                "--connect-rtts",
                default=6,
                show_default=True,
                help="Round trips that connecting costs (TLS, SCRAM).",
            ),
            click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16."),
        ]
    ):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perfkit")
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""


@main.command()
@_experiment_options
@click.option(
    "--profile", default="standard", show_default=True, help="quick (6 blocks), standard (12), thorough (24)."
)
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; several times.")
@click.option(
    "--reports", default="", metavar="FOLDER", help="Where the run's folder goes; default: reports/."
)
@click.option("--bundle", default="", metavar="FOLDER", help="Render this run again; measures nothing.")
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 100 on INCONCLUSIVE, 98 when invalid.")
def report(gate: bool, **options: Any) -> None:
    """Measure before and after, write report.html, verdict.json, summary.md and the raw data.

    \b
    Examples:
      perfkit report                        the booking system, about 5 minutes
      perfkit report --profile quick        6 blocks, about 90 seconds
      perfkit report --rtt-ms 20            with a network between service and database
      perfkit report --bundle reports/RUN   render once more, measure nothing
    """  # noqa: D301 - click wants the character
    from perfkit import api
    from perfkit.report.render import render

    run = api.run(**options)
    page = render(run.bundle.path)
    _echo(f"{run.analysis.judgement.decision}: {run.analysis.headline}")
    _echo(str(page))
    if gate:
        sys.exit(_gate(run.analysis))


@main.command()
@_experiment_options
def check(**options: Any) -> None:
    """Run the functional checks alone, on every arm; exit 1 when one fails.

    \b
    Examples:
      perfkit check
      perfkit check --scale seed --arm before --arm after-full
    """  # noqa: D301 - click wants the character
    from perfkit import config
    from perfkit.display.progress import progress
    from perfkit.experiment import Experiment
    from perfkit.selection import Options, Selection

    path = options.pop("config")
    settings = config.load(Path(path) if path else None)
    with progress() as say:
        results = Experiment(Selection(settings, Options(**options)), say).check()
    checks = [(arm, check) for arm, own in results.items() for check in own]
    for arm, result in checks:
        _echo(f"{'passed' if result.passed else 'FAILED'}  {arm}: {result.group}: {result.name}")
        if not result.passed:
            _echo(f"        expected {result.expected}\n        got      {result.got}")
    failed = sum(not result.passed for _, result in checks)
    _echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def gate(bundle: Path) -> None:
    """Exit 0 on GO, 99 on NO-GO, 100 on INCONCLUSIVE, 98 when invalid, for a run on disk.

    \b
    Example:
      perfkit gate reports/20260115-090000-standard
    """  # noqa: D301 - click wants the character
    from perfkit.analysis import analyse
    from perfkit.bundle import Bundle

    found = analyse(Bundle.open(bundle))
    _echo(f"{found.judgement.decision}: {found.headline}")
    sys.exit(_gate(found))


def _gate(analysis: Any) -> int:
    """The exit code of a decision; a comparison that is invalid outranks what the rest could not settle."""
    from perfkit.policy import Decision
    from perfkit.stats import Verdict

    decision = analysis.judgement.decision
    invalid = any(comparison.verdict is Verdict.INVALID for comparison in analysis.comparisons)
    return INVALID if invalid and decision is Decision.INCONCLUSIVE else GATE[str(decision)]


if __name__ == "__main__":
    main()

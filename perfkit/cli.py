"""The command line: options in, one call out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from perfkit.errors import Interrupted, PerfkitError, UsageError

if TYPE_CHECKING:
    from perfkit.postgres.external import External

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
    from perfkit.text import visible

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
            click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large."),
            click.option("--arm", "arms", multiple=True, help="Only these arms; several times."),
            click.option("--seed", default=1, show_default=True, help="Decides everything that is random."),
            click.option("--rtt-ms", default=0.0, help="Network round trip between service and database, ms."),
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


def _target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that let perfkit use what it did not start."""
    for option in reversed(
        [
            click.option(
                "--confirm",
                multiple=True,
                metavar="HOST:PORT/DB",
                help="A target that perfkit did not start and may use; else it is asked for.",
            ),
            click.option(
                "--production",
                multiple=True,
                metavar="HOST:PORT/DB",
                help="It looks like production, and is meant all the same.",
            ),
        ]
    ):
        command = option(command)
    return command


def _ask() -> Callable[[str], str] | None:
    """How to ask for a name to be typed; None where nobody can."""
    if not sys.stdin.isatty():
        return None
    return lambda question: str(click.prompt(question, prompt_suffix="\n> ", err=True))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perfkit")
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""


@main.command()
@_experiment_options
@_target_options
@click.option(
    "--profile", default="standard", show_default=True, help="quick (6 blocks), standard (12), thorough (24)."
)
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; several times.")
@click.option("--reports", default="", metavar="FOLDER", help="Where the run's folder goes; default: reports/.")
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

    _rendered(api.run(**options, ask=_ask()), gate)


@main.command()
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
@click.option("--volatile", multiple=True, metavar="FUNCTION", help="A volatile function that may be called.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@click.option("--pooler", is_flag=True, help="It is reached through a pooler in transaction mode.")
@click.option("--profile", default="quick", show_default=True, help="quick (6 blocks), standard, thorough.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--reports", default="", metavar="FOLDER", help="Where the run's folder goes.")
@click.option("--gate", is_flag=True, help="Exit 99 on NO-GO, 100 on INCONCLUSIVE, 98 when invalid.")
@_target_options
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
    _rendered(api.compare(**options, settings=given, ask=_ask()), gate)


def _rendered(run: Any, gate: bool) -> None:
    """Write a run's report, say its decision and where it is."""
    from perfkit.report.render import render

    page = render(run.bundle.path)
    _echo(f"{run.analysis.judgement.decision}: {run.analysis.headline}")
    _echo(str(page))
    if gate:
        sys.exit(_gate(run.analysis))


@main.command()
@_experiment_options
@_target_options
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
    from perfkit.selection import Options, Selection
    from perfkit.targets import admitted

    path = options.pop("config")
    chosen = Selection(config.load(Path(path) if path else None), Options(**options))
    targets = admitted(chosen.config, chosen.arms, Permission((), confirm, production, _ask()))
    with progress() as say:
        results = Experiment(chosen, targets, say).check()
    checks = [(arm, check) for arm, own in results.items() for check in own]
    for arm, result in checks:
        _echo(f"{'passed' if result.passed else 'FAILED'}  {arm}: {result.group}: {result.name}")
        if not result.passed:
            _echo(f"        expected {result.expected}\n        got      {result.got}")
    failed = sum(not result.passed for _, result in checks)
    _echo(f"{len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@_target_options
def doctor(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """What perfkit can do in a database of yours, what it cannot, and the SQL that allows it.

    \b
    Example:
      perfkit doctor --db service=staging
    """  # noqa: D301 - click wants the character
    from perfkit.display.capabilities import capabilities
    from perfkit.postgres.capabilities import probe

    with _opened(db, tls, confirm, production) as external:
        _echo(repr(capabilities(probe(external))))


@main.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--writes", is_flag=True, help="Load may change data there.")
@click.option("--ddl", is_flag=True, help="Indexes may be built there, and databases beside it.")
@click.option("--days", default=30, show_default=True, help="How long that holds.")
@click.option("--revoke", is_flag=True, help="Take every permission back.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@_target_options
def allow(
    db: str,
    writes: bool,
    ddl: bool,
    days: int,
    revoke: bool,
    tls: bool,
    confirm: tuple[str, ...],
    production: tuple[str, ...],
) -> None:
    """Mark a database of yours, as its owner, as one that perfkit may write to or build indexes in.

    \b
    Examples:
      perfkit allow --db service=staging --ddl
      perfkit allow --db service=staging --revoke
    """  # noqa: D301 - click wants the character
    from perfkit.postgres import marker

    kinds = [kind for kind, wanted in (("writes", writes), ("ddl", ddl)) if wanted]
    if bool(kinds) == revoke:
        raise UsageError("allow: expected --writes, --ddl or both; or --revoke alone")
    with _opened(db, tls, confirm, production) as external, external.connect() as connection:
        if revoke:
            marker.revoke(connection)
            _echo(f"{external.name}: perfkit may no longer change anything there")
        else:
            _echo(f"{external.name}: {' and '.join(kinds)} allowed until {marker.grant(connection, kinds, days)}")


def _opened(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> External:
    """A database of the user's, named and confirmed."""
    from perfkit.guards.address import resolve
    from perfkit.guards.admission import Permission
    from perfkit.guards.audit import Audit
    from perfkit.postgres.external import open_external

    permission = Permission((), confirm, production, _ask())
    return open_external(resolve(db, tls), permission, Audit(None))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--db", default="", metavar="CONNINFO", help="A database to look at: service=NAME.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@_target_options
def init(folder: Path, db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Write a perfkit.toml and its SQL, with comments, that run as they are.

    \b
    Examples:
      perfkit init mine                         an example on tables of its own
      perfkit init mine --db service=staging    from what is in your database
    """  # noqa: D301 - click wants the character
    from perfkit import starter

    with ExitStack() as stack:
        external = stack.enter_context(_opened(db, tls, confirm, production)) if db else None
        for path in starter.write(folder, external, db, tls=tls):
            _echo(str(path))


@main.group()
def config() -> None:
    """About configuration files."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def show(file: Path | None) -> None:
    """Check a perfkit.toml and print it with every default; the booking system's without one.

    \b
    Example:
      perfkit config show mine/perfkit.toml
    """  # noqa: D301 - click wants the character
    from perfkit import config as configuration
    from perfkit.config.document import show as written

    _echo(written(configuration.load(file)))


@config.command()
def reference() -> None:
    """Every key of a perfkit.toml with its type, default and meaning, as Markdown."""
    from perfkit.config.document import reference as written

    _echo(written())


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

"""The command line: the group of all commands, and the options that several of them share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping
from importlib import import_module
from typing import Any, NoReturn

import click

from perfkit import __version__
from perfkit.base.errors import Interrupted, PerfkitError, visible

# The module of each command, and the first sentence of the command's help. The sentence stands here too because the
# modules take more than a second to import: `perfkit --help` imports none of them, a command only its own.
COMMANDS = {
    "allow": ("plans", "Permit perfkit, as the owner of a database, to write or build indexes there."),
    "check": ("runs", "Run only the functional checks, on every arm; exit 1 if one fails."),
    "compare": ("runs", "Measure a query of yours before and after an index, a setting or a rewrite."),
    "config": ("plans", "Check a configuration, print its defaults, or explain every key."),
    "doctor": ("plans", "List what perfkit can do in your database, and the SQL that allows the rest."),
    "explain": ("plans", "Show a plan and what is wrong with it, for a statement or from a file."),
    "gate": ("release", "Decide whether to ship: exit 0 on GO, 99 on NO-GO, 96 on NO BENEFIT."),
    "indexes": ("indexes", "Measure, advise, build and drop indexes."),
    "init": ("plans", "Write a commented perfkit.toml and its SQL, ready to run."),
    "measure": ("runs", "Measure one arm under load, without a comparison."),
    "method": ("runs", "Simulate runs with a known truth; write the results into docs/method.md."),
    "notebooks": ("runs", "Copy the notebooks into a folder; overwrite nothing."),
    "report": ("runs", "Measure before and after a change, and write the report."),
    "review": ("release", "Compare a watch with its targets, and recommend what to do."),
    "rollback": ("release", "Drop an index set and prove that the system is as it was before."),
    "slow": ("slow", "Find slow statements, running statements and blocked sessions."),
    "verify": ("release", "Check that a decision's folder or page is unchanged since it was sealed."),
    "watch": ("release", "Probe a live service and its database, raise alerts, and keep a record."),
}


class Commands(MutableMapping[str, click.Command]):
    """Commands by name; a command is imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(import_module(f"{__name__}.{COMMANDS[name][0]}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: click.Command) -> NoReturn:
        raise TypeError(f"{name}: expected a line in COMMANDS")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: expected a line in COMMANDS")


class CommandGroup(click.Group):
    """All commands; every error is one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; an error that click itself finds is one line too."""
        run: Any = super().main
        options["prog_name"] = "perfkit"
        if not options.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **options)
        try:
            sys.exit(run(*args, standalone_mode=False, **options) or 0)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "perfkit"
            echo(f"perfkit: {error.format_message()} (see {command} --help)", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            echo("perfkit: stopped", err=True)
            sys.exit(Interrupted.exit_code)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; a signal that ends it stops it as Ctrl-C does."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and so does perfkit then
                signal.signal(number, _interrupt)
        try:
            return super().invoke(context)
        except PerfkitError as error:
            echo(f"perfkit: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            echo("perfkit: stopped", err=True)
            context.exit(Interrupted.exit_code)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands and import none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in sorted(COMMANDS.items())])


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def echo(text: str, *, err: bool = False) -> None:
    """Print text that may come from a file or a database, with its control characters made visible."""
    click.echo("\n".join(map(visible, text.splitlines())), err=err)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def combined(*decorators: Decorator) -> Decorator:
    """Return one decorator that applies several options, in the order in which --help lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


RUNS_GO_TO = (
    "reports/ of the nearest folder, from the working folder upward, that has a perfkit.toml or is a checkout of "
    "perfkit; else reports/ of the working folder"
)
DATABASE = "service=NAME, or a libpq connection string without a password."

reports_option = click.option(
    "--reports",
    default="",
    metavar="FOLDER",
    help=f"Folder in which the run gets its own folder. Default: {RUNS_GO_TO}.",
)
config_option = click.option(
    "--config", default="", metavar="FILE", help="A perfkit.toml; default: the booking system's."
)
scale_option = click.option(
    "--scale", default="", help="Size of the generated data: seed, small, standard (default) or large."
)
seed_option = click.option("--seed", default=1, show_default=True, help="Seed of all random choices.")
postgres_option = click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
profile_option = click.option(
    "--profile", default="quick", show_default=True, help="Profile: quick (6 blocks), standard or thorough."
)
tls_option = click.option(
    "--no-tls", "tls", flag_value=False, default=True, help="Allow a connection to another machine without TLS."
)
db_option = click.option("--db", default="", metavar="CONNINFO", help=f"Database: {DATABASE}")
required_db_option = click.option("--db", required=True, metavar="CONNINFO", help=f"Database: {DATABASE}")
parameters_option = click.option(
    "--parameters", metavar="FILE", help="With --db: values for %(name)s, from a SELECT (.sql) or rows (.csv)."
)
volatile_option = click.option(
    "--volatile", multiple=True, metavar="FUNCTION", help="Allow calls of this volatile function. Repeatable."
)
bundle_option = click.option(
    "--bundle", default="", metavar="FOLDER", help="Render this run again, and measure nothing."
)

# What `report` and `check` share.
experiment_options = combined(
    config_option,
    scale_option,
    click.option("--arm", "arms", multiple=True, help="Use only this arm. Repeatable."),
    seed_option,
    click.option("--rtt-ms", default=0.0, help="Added network round trip between service and database, in ms."),
    click.option(
        "--connect-rtts", default=6, show_default=True, help="Round trips that a new connection takes (TLS, SCRAM)."
    ),
    postgres_option,
)

# What lets perfkit use a server that it did not start.
target_options = combined(
    click.option(
        "--confirm",
        multiple=True,
        metavar="HOST:PORT/DB",
        help="Allow this target, which perfkit did not start; otherwise perfkit asks. Repeatable.",
    ),
    click.option(
        "--production",
        multiple=True,
        metavar="HOST:PORT/DB",
        help="Allow this database even though its name suggests production. Repeatable.",
    ),
)


def ask() -> Callable[[str], str] | None:
    """Return a function that asks the user to type a name; None if standard input is no terminal."""
    if not sys.stdin.isatty():
        return None
    return lambda question: str(click.prompt(question, prompt_suffix="\n> ", err=True))


@click.group(cls=CommandGroup, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""

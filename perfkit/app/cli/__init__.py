"""The command line: options in, one call out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping
from importlib import import_module
from typing import Any, NoReturn

import click

from perfkit import __version__
from perfkit.base.errors import Interrupted, PerfkitError, visible


class CommandGroup(click.Group):
    """Turns every error into one line and its exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; what click itself finds wrong is one line too."""
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
        """Carry out a command."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _interrupt)
        try:
            return super().invoke(context)
        except PerfkitError as error:
            echo(f"perfkit: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            echo("perfkit: stopped", err=True)
            context.exit(Interrupted.exit_code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def echo(text: str, *, err: bool = False) -> None:
    """Print a line that may hold text from a file or a database: control characters are made visible."""
    click.echo("\n".join(map(visible, text.splitlines())), err=err)


RUNS_GO_TO = (
    "reports/ of the nearest folder, from the working folder upward, that has a perfkit.toml or is a checkout of "
    "perfkit; else reports/ of the working folder"
)
reports_option = click.option(
    "--reports", default="", metavar="FOLDER", help=f"Where the folder of this run is made. Default: {RUNS_GO_TO}."
)


def experiment_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def ask() -> Callable[[str], str] | None:
    """How to ask for a name to be typed; None where nobody can."""
    if not sys.stdin.isatty():
        return None
    return lambda question: str(click.prompt(question, prompt_suffix="\n> ", err=True))


# The command line: options in, one call out.

COMMANDS = {
    "report": "runs",
    "compare": "runs",
    "measure": "runs",
    "check": "runs",
    "method": "runs",
    "notebooks": "runs",
    "gate": "release",
    "verify": "release",
    "rollback": "release",
    "review": "release",
    "watch": "release",
    "explain": "plans",
    "doctor": "plans",
    "allow": "plans",
    "init": "plans",
    "config": "plans",
    "indexes": "indexes",
    "slow": "slow",
}


class Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for: together they take a second to import."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(import_module(f"{__name__}.{COMMANDS[name]}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: click.Command) -> NoReturn:
        raise TypeError(f"{name}: expected a line in COMMANDS")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: expected a line in COMMANDS")


@click.group(cls=CommandGroup, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""

"""The command line: the group of all commands, and options made of specs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from dataclasses import MISSING, Field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from perfkit.app.specs import AdmissionSpec
from perfkit.base.errors import Interrupted, PerfkitError, visible
from perfkit.base.options import Option, Spec, flag_of, listed

# The module of each command, and the first sentence of the command's help. The sentence stands here too because the
# modules take more than a second to import: `perfkit --help` imports none of them, a command only its own.
COMMANDS = {
    "allow": ("plans", "Permit perfkit, as the owner of a database, to write or build indexes there."),
    "check": ("runs", "Run only the functional checks, on every arm; exit 1 if one fails."),
    "compare": ("runs", "Measure a query of yours before and after an index, a setting or a rewrite."),
    "config": ("plans", "Check a configuration, print its defaults, or explain every key."),
    "doctor": ("plans", "List what perfkit can do in your database, and the SQL that allows the rest."),
    "explain": ("plans", "Show a plan and what is wrong with it, for a statement or from a file."),
    "gate": ("runs", "Decide whether to ship: exit 0 on GO, 99 on NO-GO, 96 on NO BENEFIT."),
    "indexes": ("indexes", "Measure, advise, build and drop indexes."),
    "init": ("plans", "Write a commented perfkit.toml and its SQL, ready to run."),
    "measure": ("runs", "Measure one arm under load, without a comparison."),
    "method": ("runs", "Simulate runs with a known truth; write the results into docs/method.md."),
    "notebooks": ("runs", "Copy the notebooks into a folder; overwrite nothing."),
    "report": ("runs", "Measure before and after a change, and write the report."),
    "review": ("runs", "Compare a watch with its targets, and recommend what to do."),
    "rollback": ("runs", "Drop an index set and prove that the system is as it was before."),
    "schemas": ("runs", "Write the JSON schemas of perfkit's files into a folder; overwrite nothing."),
    "slow": ("slow", "Find slow statements, running statements and blocked sessions."),
    "verify": ("runs", "Check that a decision's folder or page is unchanged since it was sealed."),
    "watch": ("runs", "Probe a live service and its database, raise alerts, and keep a record."),
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
        run: Callable[..., object] = super().main
        options["prog_name"] = "perfkit"
        if not options.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **options)
        try:
            code = run(*args, standalone_mode=False, **options)
            sys.exit(code if isinstance(code, int) else 0)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "perfkit"
            echo(f"perfkit: {error.format_message()} (see {command} --help)", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            echo("perfkit: stopped", err=True)
            sys.exit(Interrupted.exit_code)

    def invoke(self, context: click.Context) -> object:
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


_KINDS: Mapping[str, click.ParamType[Any]] = {
    "int": click.INT,
    "float": click.FLOAT,
    "bool": click.BOOL,
    "Path": click.Path(path_type=Path),
}
_S = TypeVar("_S", bound=Spec)


def options(spec: type[_S]) -> Callable[[Callable[[_S], None]], Callable[..., None]]:
    """Give a command the options of a spec; the command gets the spec."""

    def decorate(function: Callable[[_S], None]) -> Callable[..., None]:
        @wraps(function)
        def command(**values: object) -> None:
            asked = {"ask": ask()} if issubclass(spec, AdmissionSpec) else {}
            function(spec(**values, **asked))

        command.__click_params__ = parameters(spec)[::-1]  # type: ignore[attr-defined]
        return command

    return decorate


def parameters(spec: type[Spec], *, without: Collection[str] = ()) -> list[click.Parameter]:
    """Return what click needs for the options of a spec, in the order of --help."""
    return [_parameter(each, about) for name, (each, about) in listed(spec).items() if name not in without]


def _parameter(each: Field[object], about: Option) -> click.Parameter:
    kind, default, several = str(each.type).split(" | ")[0], each.default, each.default == ()
    required = about.required or default is MISSING
    wide: dict[str, Any] = {} if required or several else {"default": default}  # click takes None for a value, too
    form = click.Choice(about.choices) if about.choices else _KINDS.get(kind, click.STRING)
    if about.least is not None:
        form = click.IntRange(int(about.least)) if kind == "int" else click.FloatRange(about.least)
    wide |= {"metavar": about.metavar or None, "required": required, "type": form}
    if about.argument:
        return click.Argument([each.name], nargs=-1 if several else 1, **wide)
    flag = [flag_of(each, about), each.name]
    if kind == "bool":
        state = {"flag_value": False, "default": True} if default is True else {"is_flag": True, "default": default}
        return click.Option(flag, help=about.help, **state)
    usual = f"  [default: {about.usual}]" if about.usual is not None and default in ("", None) else ""
    shown = (bool(default) and isinstance(default, str)) or (isinstance(default, int | float) and default > 0)
    return click.Option(flag, multiple=several, show_default=shown, help=f"{about.help}{usual}", **wide)


def ask() -> Callable[[str], str] | None:
    """Return a function that asks the user to type a name; None if standard input is no terminal."""
    if not sys.stdin.isatty():
        return None
    return lambda question: str(click.prompt(question, prompt_suffix="\n> ", err=True))


@click.group(cls=CommandGroup, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(import_module("perfkit").__version__, prog_name="perfkit")  # also of a checkout on the path
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""

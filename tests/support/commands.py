"""perfkit's commands, called as a user types them."""

from pathlib import Path

from click.testing import CliRunner, Result

from perfkit.app.cli import main


def perfkit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refusal(code: int, *args: str | Path) -> str:
    """The one line on stderr of a command that ends with this code and says nothing else."""
    done = perfkit(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("perfkit: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("perfkit: ").rstrip()

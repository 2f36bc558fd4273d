"""The command that copies the notebooks to where they can be run and changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from shlex import quote

import click

from perfkit.cli.group import echo


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
    from perfkit.starter import copy_notebooks

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

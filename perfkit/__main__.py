"""Run the command line with `python -m perfkit`."""

from perfkit.app.cli import main

main()

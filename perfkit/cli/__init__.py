"""The command line: options in, one call out."""

from __future__ import annotations

import click

from perfkit import __version__
from perfkit.cli import databases, gate, indexes, lab, plans, runs, slow_pages
from perfkit.cli.group import CommandGroup
from perfkit.cli.measure import measure
from perfkit.cli.method import method
from perfkit.cli.notebooks import notebooks
from perfkit.cli.review import review
from perfkit.cli.rollback import rollback
from perfkit.cli.slow import slow
from perfkit.cli.watch import watch


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Did the index make it faster? Measured evidence for PostgreSQL."""


for command in (runs.report, runs.compare, measure, runs.check, gate.gate, gate.verify, plans.explain):
    main.add_command(command)
for command in (databases.doctor, databases.allow, databases.init, databases.config):
    main.add_command(command)
for command in (lab.ablate, lab.cost, lab.advise):
    indexes.indexes.add_command(command)
main.add_command(indexes.indexes)
main.add_command(method)
main.add_command(notebooks)
main.add_command(review)
main.add_command(rollback)
for command in (slow_pages.demo, slow_pages.report):
    slow.add_command(command)
main.add_command(slow)
main.add_command(watch)

"""The command that measures one arm, compared with nothing: a plain load test."""

from __future__ import annotations

from typing import Any

import click

from perfkit.cli.group import ask, reports_option, target_options
from perfkit.cli.runs import rendered


@click.command()
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option("--arm", default="", help="Which arm; default: the last `after` arm, what would be deployed.")
@click.option("--scenario", "scenarios", multiple=True, help="Only these scenarios; several times.")
@click.option("--profile", default="standard", show_default=True, help="quick (6 blocks), standard (12), thorough.")
@click.option("--blocks", default=0, metavar="N", help="So many blocks in place of the profile's, down to 1.")
@click.option("--scale", default="", help="Size of the data: seed, small, standard (default) or large.")
@click.option("--seed", default=1, show_default=True, help="Decides everything that is random.")
@click.option("--rtt-ms", default=0.0, help="Network round trip between service and database, ms.")
@click.option("--connect-rtts", default=6, show_default=True, help="Round trips that connecting costs (TLS, SCRAM).")
@click.option("--postgres", default=0, help="Embedded PostgreSQL: 18 (default) or 16.")
@click.option(
    "--p95-ms", default=0.0, metavar="MS", help="95 of 100 requests within; default: the configuration's limit."
)
@click.option(
    "--error-rate", default=-1.0, metavar="SHARE", help="Failures that are too many; default: the configuration's."
)
@click.option("--db", default="", metavar="CONNINFO", help="A database of yours: service=NAME, no password.")
@click.option("--query", multiple=True, metavar="SQL|FILE", help="With --db: what is sent; several times.")
@click.option("--parameters", metavar="FILE", help="With --db: values for %(name)s, a SELECT (.sql) or lines (.csv).")
@click.option(
    "--way",
    type=click.Choice(["whole", "sample", "generated", "clone", "in-place"]),
    default="whole",
    show_default=True,
    help="With --db: a private copy, a clone beside it, or in place.",
)
@click.option("--users", default=10, show_default=True, help="With --db: connections, or the most in flight.")
@click.option("--rate", default=0.0, metavar="N", help="With --db: requests a second, whether answered or not.")
@click.option("--seconds", default=10.0, show_default=True, help="With --rate: how long a round lasts.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@reports_option
@click.option("--bundle", default="", metavar="FOLDER", help="Render this run again; measures nothing.")
@click.option("--gate", is_flag=True, help="Exit 99 when a threshold is broken, 100 unproven, 98 invalid.")
@target_options
def measure(gate: bool, **options: Any) -> None:
    """Measure one arm under load, compared with nothing: does it hold its thresholds?

    Writes load.html, verdict.json, summary.md and the raw data.

    \b
    Examples:
      perfkit measure                                the booking system as it would be deployed
      perfkit measure --arm before --p95-ms 200      another arm, a limit of your own
      perfkit measure --blocks 1 --scenario burst    a quick look, without intervals
      perfkit measure --db service=staging --query slow.sql --rate 50 --seconds 20
    """  # noqa: D301 - click wants the character
    from perfkit import api

    rendered(api.measure(**options, ask=ask()), gate)

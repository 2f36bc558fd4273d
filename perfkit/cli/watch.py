"""The command that watches a live target."""

from __future__ import annotations

from typing import Any

import click

from perfkit.cli.group import RUNS_GO_TO, ask, target_options


@click.command()
@click.option("--for", "lasts", default="24h", show_default=True, metavar="TIME", help="How long: 90s, 30min, 24h, 2d.")
@click.option("--every", default="", metavar="TIME", help="One interval; default: the configuration's, 10s.")
@click.option("--config", default="", metavar="FILE", help="A perfkit.toml; the booking system's without it.")
@click.option(
    "--folder",
    default="",
    metavar="FOLDER",
    help="Where the watch is recorded; a watch that is there already is continued. "
    f"Default: a new folder in {RUNS_GO_TO}.",
)
@click.option("--arm", default="", help="Which arm is live; default: the last `after` arm.")
@click.option("--scale", default="", help="Size of the data that perfkit makes: seed, small, standard or large.")
@click.option("--rate", default=0.0, metavar="N", help="Probes per second of each request and query.")
@click.option(
    "--metrics",
    default="",
    metavar="[ADDRESS:]PORT",
    help="Metrics for Prometheus; 0: a free port. Without an address only this machine reaches it.",
)
@click.option("--notify", default="", metavar="COMMAND", help="Is told of every alert, as JSON on its standard input.")
@click.option("--quiet", is_flag=True, help="Say only how it ended.")
@target_options
def watch(**options: Any) -> None:
    """Watch a live service and its database: probes at a low rate, alerts by your rules, a record on disk.

    Without a configuration, or with one whose service perfkit starts, that is watched: a demonstration.

    \b
    Examples:
      perfkit watch --for 5min --every 2s              the booking system, as it would be deployed
      perfkit watch --config mine/perfkit.toml --folder live --confirm https://api.example.org:443
      perfkit watch --config mine/perfkit.toml --folder live --notify "./page-me --team booking"
    """  # noqa: D301 - click wants the character
    from perfkit import api
    from perfkit.cli.group import echo

    echo(str(api.watch(**options, ask=ask())))

"""Commands about a database of the user's and about configurations: doctor, allow, init, config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from perfkit.cli.group import ask, echo, target_options
from perfkit.errors import UsageError

if TYPE_CHECKING:
    from perfkit.postgres.external import External


@click.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def doctor(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """What perfkit can do in a database of yours, what it cannot, and the SQL that allows it.

    \b
    Example:
      perfkit doctor --db service=staging
    """  # noqa: D301 - click wants the character
    from perfkit.display.capabilities import capabilities
    from perfkit.postgres.capabilities import probe

    echo(repr(capabilities(probe(opened(db, tls, confirm, production)))))


@click.command()
@click.option("--db", required=True, metavar="CONNINFO", help="service=NAME, or a libpq string, no password.")
@click.option("--writes", is_flag=True, help="Load may change data there.")
@click.option("--ddl", is_flag=True, help="Indexes may be built there, and databases beside it.")
@click.option("--days", default=30, show_default=True, help="How long that holds.")
@click.option("--revoke", is_flag=True, help="Take every permission back.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
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
    external = opened(db, tls, confirm, production)
    with external.connect() as connection:
        if revoke:
            marker.revoke(connection)
            echo(f"{external.name}: perfkit may no longer change anything there")
        else:
            echo(f"{external.name}: {' and '.join(kinds)} allowed until {marker.grant(connection, kinds, days)}")


def opened(db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> External:
    """A database of the user's, named and confirmed."""
    from perfkit.guards.address import resolve
    from perfkit.guards.admission import Permission
    from perfkit.guards.audit import Audit
    from perfkit.postgres.external import open_external

    permission = Permission((), confirm, production, ask())
    return open_external(resolve(db, tls), permission, Audit(None))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--db", default="", metavar="CONNINFO", help="A database to look at: service=NAME.")
@click.option("--no-tls", "tls", flag_value=False, default=True, help="Connect beyond loopback without TLS.")
@target_options
def init(folder: Path, db: str, tls: bool, confirm: tuple[str, ...], production: tuple[str, ...]) -> None:
    """Write a perfkit.toml and its SQL, with comments, that run as they are.

    \b
    Examples:
      perfkit init mine                         an example on tables of its own
      perfkit init mine --db service=staging    from what is in your database
    """  # noqa: D301 - click wants the character
    from perfkit import starter

    external = opened(db, tls, confirm, production) if db else None
    for path in starter.write(folder, external, db, tls=tls):
        echo(str(path))


@click.group()
def config() -> None:
    """Check a configuration, print it with its defaults, or explain every key.

    \b
    Examples:
      perfkit config show mine/perfkit.toml
      perfkit config reference
    """  # noqa: D301 - click wants the character


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

    echo(written(configuration.load(file)))


@config.command()
def reference() -> None:
    """Every key of a perfkit.toml with its type, default and meaning, as Markdown.

    \b
    Example:
      perfkit config reference > configuration.md
    """  # noqa: D301 - click wants the character
    from perfkit.config.document import reference as written

    echo(written())

"""A database on a server, with what each session of it must bring along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psycopg.conninfo import make_conninfo

from perfkit.postgres.parameters import options
from perfkit.postgres.site import Connection, Server


@dataclass(frozen=True, slots=True)
class Database:
    """A database; `settings` are those that each session must bring along."""

    site: Server
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> Connection:
        """A connection in autocommit mode. Raises psycopg.Error."""
        return self.site.connect(self.name)

    def session(self) -> Connection:
        """A connection that is not in autocommit mode; with the settings unless a pooler is in between."""
        connection = self.connect()
        try:
            for name, value in () if self.site.pooler else self.settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def conninfo(self) -> str:
        """For libpq; with the settings."""
        base = self.site.conninfo(self.name)
        return make_conninfo(base, options=options(self.settings)) if self.settings else base

"""Arms cloned from a database that is there already, on the server of perfkit's own that it is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfkit.arms.clones import Clones
from perfkit.config import Arm
from perfkit.postgres import databases
from perfkit.postgres.place import Database
from perfkit.postgres.site import Server


@dataclass(eq=False)
class ExistingDatabaseArms(Clones):
    """Clones of a database that stays as it is; nobody may be connected to it while it is copied."""

    origin_place: Database

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        super().__exit__(None)  # the server goes on, so that the clones must go in any case

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got."""
        return {
            "way": "clones of the database as it was, in PostgreSQL that perfkit started",
            "tells": "how these arms compare on this data",
            "cannot_tell": "how another server, other data or other load would behave",
        }

    def _server(self, arm: Arm) -> Server:
        return self.origin_place.site

    def _base(self, site: Server) -> str:
        if id(site) not in self._bases:
            self._bases[id(site)] = name = self._own(site, "base")
            databases.create(site, name, self.origin_place.name)
            databases.freeze(site, name)
        return self._bases[id(site)]

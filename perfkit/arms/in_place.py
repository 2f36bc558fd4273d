"""Arms in a database of the user's as it stands.

Arms that change nothing in it alternate. Arms with indexes follow one another: before, after, before again;
the indexes are built CONCURRENTLY and removed at the end, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from perfkit.arms.stage import Workbench, without_autovacuum
from perfkit.config import Arm
from perfkit.errors import ServerError, TargetRefused, UsageError
from perfkit.indexes.build import Built, build, index_names, places
from perfkit.indexes.remove import remove
from perfkit.postgres import databases
from perfkit.postgres.capabilities import require_allowed, require_direct
from perfkit.postgres.external import External
from perfkit.postgres.place import Database


@dataclass(eq=False)
class InPlace(Workbench):
    """The user's own databases and services, by arm; nothing in them is made but the arms' indexes."""

    private = False

    _built: dict[str, list[Built]] = field(default_factory=dict, init=False)

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the arms were got, and what that can and cannot tell."""
        order = "before, after, before again" if self.config.sequential else "alternating, nothing changed"
        return {
            "way": f"in place ({order})",
            "tells": "how these arms compare on the database as it is, beside whatever else it was doing",
            "cannot_tell": "how much of a difference that other load made, unless the control arm shows it",
        }

    def base(self, scale: str) -> Database | None:
        """The database of the first arm. Raises TargetRefused for what may not, or cannot, be done there."""
        for arm in self.config.arm:
            if source := self.sources.get(arm.name):
                self._require_possible(arm, source)
                if arm.indexes:
                    self._require_buildable(arm, source)
        return self.place(self.config.baseline())

    def phases(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """All arms alternate, or one follows the other with the control, which is `before` again, at the end."""
        if not self.config.sequential:
            return super().phases(arms)
        order = {"before": 0, "after": 1, "control": 2}
        return [[arm] for arm in sorted(arms, key=lambda arm: order[arm.role])]

    @contextmanager
    def phase(self, arms: Sequence[Arm]) -> Iterator[None]:
        """Remove the indexes of these arms at the end, also after an error or an interrupt."""
        begun = [arm for arm in arms if arm.indexes]
        for arm in begun:
            self._require_buildable(arm, self.sources[arm.name])  # what was so at the start may have changed
            assert arm.indexes
            self._janitor.promise(self.sources[arm.name], "indexes", index_names(arm.indexes))
        try:
            yield
        finally:
            for arm in begun:
                with without_autovacuum():
                    self._remove(arm)

    def prepare(self, arm: Arm) -> tuple[Database | None, list[Built]]:
        """Build the arm's indexes where it has some."""
        place = self.place(arm)
        if place and arm.indexes and arm.name not in self._built:
            self.progress(f"building the indexes of {arm.name}, concurrently")
            comment = f"perfkit run {self.run}"
            self._built[arm.name] = build(place.site, place.name, arm.indexes, in_place=comment)
        return place, self._built.get(arm.name, [])

    def refresh(self, arm: Arm) -> None:
        """Nothing: the database is as it is."""

    def place(self, arm: Arm) -> Database | None:
        """The arm's database."""
        site = self.sources.get(arm.name)
        return Database(site, site.address.dbname, arm.settings) if site else None

    def require_alive(self) -> None:
        """Raise ServerError where a server no longer answers; requests that it fails are counted."""
        for source in self.sources.values():
            if not source.alive():
                raise ServerError(f"{source.name}: the server no longer answers; what was measured so far is kept")

    def _require_possible(self, arm: Arm, source: External) -> None:
        if self.config.service and self.config.service.command:
            require_allowed(source, "writes", "a service may write to it")
        if arm.settings and source.pooler:
            setting, value = next(iter(arm.settings.items()))
            raise TargetRefused(
                f"{source.name}: behind a pooler, which forgets settings; expected a direct connection, or from its "
                f"owner: ALTER ROLE {sql.Identifier(source.address.user).as_string()} SET {setting} = '{value}'"
            )
        databases.require_settings(source, arm.settings)

    def _require_buildable(self, arm: Arm, source: External) -> None:
        """Raise unless building is allowed and none of the indexes is there already."""
        assert arm.indexes
        require_direct(source, "to build indexes")
        require_allowed(source, "ddl", "indexes may not be built in it")
        with databases.connected(source) as connection:
            if found := places(connection, index_names(arm.indexes)):
                raise UsageError(
                    f"{arm.indexes}: index {found[0]} is there already; expected one to build (left behind by an "
                    f"interrupted run? then: DROP INDEX CONCURRENTLY {found[0]})"
                )

    def _remove(self, arm: Arm) -> None:
        """Drop the arm's indexes, which were not there before it, trying again where a lock is not to be had."""
        place = self.place(arm)
        assert place and arm.indexes
        self.progress(f"removing the indexes of {arm.name}")
        names = index_names(arm.indexes)
        if left := remove(place.site, place.name, names):
            statements = "; ".join(f"DROP INDEX CONCURRENTLY IF EXISTS {name}" for name in left)
            raise ServerError(
                f"{arm.name}: not every index could be removed yet (locks?); perfkit tries for ten more minutes, or "
                f"run: {statements}"
            )
        self._janitor.released("indexes", names)

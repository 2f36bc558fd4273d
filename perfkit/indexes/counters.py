"""How far the counters of a server can be trusted to say that an index is not used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

# Days of counting without which no index is dropped as unused: longer than any month, for what runs once in each.
MIN_AGE = 35.0


@dataclass(frozen=True, slots=True)
class Counters:
    """When counting began, and who else counts.

    Use is counted at least since the day `since`, `days` ago; "" and None where that is unknown. `replicas` is the
    number of standbys that the server knows of, `standbys` the number of those whose counters are included.
    """

    since: str
    days: float | None
    replica: bool
    replicas: int
    counted: bool
    database: str  # the same on a primary and its standbys
    server: str  # another on each
    standbys: int = 0

    def including(self, standby: Counters) -> Self:
        """Return the counters of a primary together with those of a standby: only as old as the younger ones."""
        known = None not in (self.days, standby.days)
        return replace(
            self,
            since=max(self.since, standby.since) if known else "",
            days=min(self.days or 0.0, standby.days or 0.0) if known else None,
            replicas=self.replicas + standby.replicas,
            standbys=self.standbys + 1,
            counted=self.counted and standby.counted,
        )

    def doubt(self, min_age: float) -> str:
        """Return why no index may be dropped for not being used; "" if the counters tell."""
        if not self.counted:
            return "use is not counted (track_counts is off)"
        if self.replica:
            return "this is a standby, and other servers count their own use: ask the primary, with --standby"
        if self.replicas > self.standbys:
            return (
                f"standbys count their own use, and {self.standbys} of {self.replicas} were asked: name each with "
                "--standby, or look at idx_scan in its pg_stat_user_indexes"
            )
        if self.days is None and min_age > 0:
            return "since when use is counted is not known: a restore, an upgrade and a crash begin anew"
        if self.days is not None and self.days < min_age:
            return f"the counters are {self.days:.1f} days old, less than {min_age:g}"
        return ""

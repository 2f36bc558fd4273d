"""What the server and the machine did beside a round: counters read before and after it, never inside.

`checkpoints`, `autovacuums`   1 where the checkpointer, or autovacuum in any database of the server, was at work
`blocks_read`, `blocks_hit`    blocks that the arm's database took from outside shared_buffers, and from inside
`steal`                        share of the processors' time that the hypervisor gave to other machines
`others`                       processes that ran, or waited to, when the round was about to begin: per processor

The first four are of servers that perfkit started (version 16 or later); the last two of Linux. A session publishes
its counts when it ends, or once a second while it goes idle: a pool's last blocks count in the next round.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from perfkit.postgres import catalog, databases
from perfkit.postgres.place import Database
from perfkit.postgres.site import Connection

_VERSION = 16  # the first that counts what checkpointer and autovacuum did
_STAT = Path("/proc/stat")
_STEAL, _TICKS = 7, 8  # among the columns of `cpu`; what follows them, guests' time, is in the users' already


class Surroundings(ExitStack):
    """Reads the counters over one connection to each server, which leaving it closes."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[int, Connection] = {}

    def read(self, place: Database | None) -> dict[str, float]:
        """The counters as they are now, for `between`; of no database those of the machine alone.

        Raises ServerError where the server is gone.
        """
        text = _STAT.read_text(encoding="ascii") if _STAT.is_file() else ""
        if place is None or place.site.foreign or place.site.version < _VERSION:
            return machine(text)
        key = id(place.site)
        if key not in self._connections:
            self._connections[key] = self.enter_context(databases.connected(place.site, user="postgres"))
        query = catalog.get("surroundings").encode()
        row = self._connections[key].execute(query, {"database": place.name}).fetchone()
        return {**(row or {}), **machine(text)}


def machine(stat: str) -> dict[str, float]:
    """Ticks of all processors together and those stolen, how many processors, and others that ran; of /proc/stat."""
    lines = [line.split() for line in stat.splitlines()]
    total = next((line[1:] for line in lines if line[:1] == ["cpu"]), [])
    running = next((int(line[1]) for line in lines if line[:1] == ["procs_running"]), 1)
    if len(total) < _TICKS:
        return {}
    ticks = [int(text) for text in total[:_TICKS]]
    cores = sum(line[0].startswith("cpu") for line in lines if line) - 1
    return {"ticks": sum(ticks), "stolen": ticks[_STEAL], "cores": max(cores, 1), "running": max(running - 1, 0)}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened between two readings; keys as in the module's first lines, absent where they were not read."""
    grown = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    found: dict[str, float] = {}
    for name in grown.keys() & {"checkpoints", "autovacuums"}:
        found[name] = float(grown[name] > 0)
    for name in grown.keys() & {"blocks_read", "blocks_hit"}:
        found[name] = float(grown[name])
    if "ticks" in grown:
        found["steal"] = grown["stolen"] / grown["ticks"] if grown["ticks"] else 0.0
        found["others"] = before["running"] / before["cores"]
    return found

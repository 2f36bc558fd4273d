"""Removes what a run made on a server of the user's when the run is killed before it can do that itself.

Run as `python -P -m perfkit.runs.janitor`: a process of its own session that outlives its parent. Each line of its
input promises a removal or takes a promise back; at the end of input it keeps the promises that are left.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

import psycopg

from perfkit.base.errors import PerfkitError
from perfkit.base.process import MODULE, spawn
from perfkit.postgres import databases
from perfkit.postgres.guards import Address, Audit
from perfkit.postgres.index_changes import clear, remove
from perfkit.postgres.servers import External

Kind = Literal["indexes", "leftovers", "databases"]  # leftovers: indexes, with their schema, that are invalid
_PATIENCE_S = 10.0  # that a run waits for it
_DEADLINE_S, _PAUSE_S = 600.0, 2.0  # how long it tries to remove one thing, and how often


class Janitor:
    """The process as the run sees it: started with the first promise, ended with the run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def promise(self, external: External, kind: Kind, names: Sequence[str]) -> None:
        """These are about to be made, and must be gone when the run is."""
        if self._process is None:
            # It may live on for minutes: whoever reads the run's output through a pipe must not wait for that.
            quiet, command = subprocess.DEVNULL, [*MODULE, "perfkit.runs.janitor"]
            self._process = spawn(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, die_with_parent=False)
        audit = external.audit.path
        where = {"address": asdict(external.address), "system": external.system, "audit": str(audit) if audit else ""}
        self._tell({"kind": kind, "names": list(names), "where": where})

    def released(self, kind: Kind, names: Sequence[str]) -> None:
        """These are gone."""
        self._tell({"kind": kind, "names": list(names)})

    def close(self) -> None:
        """End it; with promises left it goes on for a while by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)

    def _tell(self, line: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()


def serve(lines: Sequence[str] | Any) -> None:
    """Read promises to the end of input, then keep those that are left."""
    left: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        said = json.loads(line)
        for name in said["names"]:
            if where := said.get("where"):
                left[said["kind"], name] = where
            else:
                left.pop((said["kind"], name), None)
    for (kind, name), where in reversed(left.items()):
        _keep(kind, name, where)


def _keep(kind: str, name: str, where: dict[str, Any]) -> None:
    """Remove one thing; what cannot be removed now is named in the audit by the statement that failed."""
    given = where["address"]
    address = Address(**{**given, "aliases": tuple(given["aliases"])})
    external = External(
        address, Audit(Path(where["audit"]) if where["audit"] else None), system=where["system"], pooler=False
    )
    deadline = monotonic() + _DEADLINE_S
    while monotonic() < deadline:
        with suppress(PerfkitError, psycopg.Error):
            if kind == "databases":
                databases.drop(external, name)
                return
            if kind == "leftovers":
                clear(external, address.dbname, name)
                return
            if not remove(external, address.dbname, [name]):
                return
        sleep(_PAUSE_S)


def main() -> None:
    """Serve standard input; a terminal's signals are for the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    serve(sys.stdin)


if __name__ == "__main__":
    main()

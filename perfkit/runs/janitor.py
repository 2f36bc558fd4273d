"""The janitor: removes what a run made on the user's server if the run is killed before it can clean up.

Runs as `python -P -m perfkit.runs.janitor`, a process in a session of its own that outlives its parent. Each line of
its input registers a removal or cancels one; at the end of its input, the janitor carries out those that remain.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

import psycopg

from perfkit.base.errors import PerfkitError
from perfkit.base.process import MODULE, spawn
from perfkit.postgres import databases
from perfkit.postgres.guards import Address, Audit
from perfkit.postgres.index_builds import clear, remove
from perfkit.postgres.servers import External

Kind = Literal["indexes", "leftovers", "databases"]  # leftovers: indexes, with their schema, that are invalid
_PATIENCE_S = 10.0  # time that a run waits for its janitor
_DEADLINE_S, _PAUSE_S = 600.0, 2.0  # time limit for one removal, and the pause between two attempts


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM while a run cleans up: that takes seconds and must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Janitor:
    """The janitor as the run sees it: a process that starts with the first promise and ends with the run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def promise(self, external: External, kind: Kind, names: Sequence[str]) -> None:
        """Register what is about to be made and must not outlive the run."""
        if self._process is None:
            # The janitor may outlive the run by minutes: a reader of the run's output must not wait for its end.
            quiet, command = subprocess.DEVNULL, [*MODULE, "perfkit.runs.janitor"]
            self._process = spawn(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, die_with_parent=False)
        audit = external.audit.path
        where = {"address": asdict(external.address), "system": external.system, "audit": str(audit) if audit else ""}
        self._send({"kind": kind, "names": list(names), "where": where})

    def released(self, kind: Kind, names: Sequence[str]) -> None:
        """Cancel the removal of what is gone."""
        self._send({"kind": kind, "names": list(names)})

    def close(self) -> None:
        """Close the janitor's input; if removals remain, the janitor goes on by itself for up to ten minutes each."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)

    def _send(self, line: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()


def serve(lines: Sequence[str] | Any) -> None:
    """Read promises to the end of the input, then remove what is still promised, the newest first."""
    promises: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        message = json.loads(line)
        for name in message["names"]:
            if where := message.get("where"):
                promises[message["kind"], name] = where
            else:
                promises.pop((message["kind"], name), None)
    for (kind, name), where in reversed(promises.items()):
        _remove(kind, name, where)


def _remove(kind: str, name: str, where: dict[str, Any]) -> None:
    """Remove one object, retrying until the deadline; the audit holds every statement that failed."""
    fields = where["address"]
    address = Address(**{**fields, "aliases": tuple(fields["aliases"])})
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
    """Serve standard input, ignoring the terminal's signals, which are meant for the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    serve(sys.stdin)


if __name__ == "__main__":
    main()

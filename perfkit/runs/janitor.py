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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True, slots=True)
class Promise:
    """A line of the janitor's input: what to remove and where; without an address, what is gone already."""

    kind: Kind
    names: list[str]
    address: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    audit: str = ""  # the file


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
        audit = str(external.audit.path or "")
        self._send(Promise(kind, list(names), asdict(external.address), external.system, audit))

    def released(self, kind: Kind, names: Sequence[str]) -> None:
        """Cancel the removal of what is gone."""
        self._send(Promise(kind, list(names)))

    def close(self) -> None:
        """Close the janitor's input; if removals remain, the janitor goes on by itself for up to ten minutes each."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)

    def _send(self, promise: Promise) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(asdict(promise)).encode() + b"\n")
        self._process.stdin.flush()


def serve(lines: Iterable[str]) -> None:
    """Read promises to the end of the input, then remove what is still promised, the newest first."""
    promises: dict[tuple[Kind, str], Promise] = {}
    for line in lines:
        promise = Promise(**json.loads(line))
        for name in promise.names:
            if promise.address:
                promises[promise.kind, name] = promise
            else:
                promises.pop((promise.kind, name), None)
    for (kind, name), promise in reversed(promises.items()):
        _remove(kind, name, promise)


def _remove(kind: Kind, name: str, promise: Promise) -> None:
    """Remove one object, retrying until the deadline; the audit holds every statement that failed."""
    address = Address(**{**promise.address, "aliases": tuple(promise.address["aliases"])})
    audit = Audit(Path(promise.audit) if promise.audit else None)
    external = External(address, audit, system=promise.system, pooler=False)
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

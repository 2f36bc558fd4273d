"""Targets that perfkit did not start: admitted by the guards, compared in one line, and cleaned by the janitor."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from typing import Any, Literal, TypeVar

import psycopg
import tomlkit

from perfkit.base.bundle import write_atomically
from perfkit.base.errors import BundleError, PerfkitError, PlanError, TargetRefused, UsageError
from perfkit.base.process import MODULE, spawn
from perfkit.base.refusals import require_settable
from perfkit.config import Arm, Config
from perfkit.config.workload import require_no_password
from perfkit.explain.capture import single
from perfkit.load.samples import Caps
from perfkit.postgres import databases
from perfkit.postgres.guards import Address, Audit, Origin, Permission, admit, resolve, resolve_origin
from perfkit.postgres.index_builds import clear, remove
from perfkit.postgres.index_sets import IndexSet, read_set
from perfkit.postgres.servers import External, open_external
from perfkit.postgres.sqltext import read, split

SAFE_METHODS = ("GET",)
_Target = TypeVar("_Target", Address, Origin)
LOADED = ("clone", "in-place")  # ways that send load to the target's own server


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets that were named and confirmed, by arm; each name is resolved once."""

    addresses: Mapping[str, Address]
    origins: Mapping[str, Origin]
    permission: Permission
    pooler: bool = False  # a pooler is declared in the configuration, whether or not it can be detected

    def open(self, audit: Audit) -> dict[str, External]:
        """Connect to every database once. Raises ServerError, TargetRefused."""
        opened: dict[str, External] = {}
        for address in self.addresses.values():
            if (where := address.conninfo()) not in opened:
                opened[where] = open_external(address, self.permission, audit)
                opened[where].pooler |= self.pooler
        return {arm: opened[address.conninfo()] for arm, address in self.addresses.items()}


def admitted(settings: Config, arms: Sequence[Arm], permission: Permission) -> Targets:
    """Resolve every target of these arms and pass it through the guards. Raises TargetRefused, UsageError."""
    permission = replace(
        permission,
        allow=(*permission.allow, *settings.allow),
        production=(*permission.production, *settings.production),
    )
    addresses: dict[str, Address] = {}
    origins: dict[str, Origin] = {}
    database, service = settings.database, settings.service
    for arm in arms:
        if named := arm.database or (database.target if database else ""):
            addresses[arm.name] = _require_same(resolve(named, not database or database.tls), addresses.values())
        if url := arm.url or (service.url if service else ""):
            origins[arm.name] = _require_same(resolve_origin(url), origins.values())
    resolved: list[Address | Origin] = [*addresses.values(), *origins.values()]
    for name, target in {target.name: target for target in resolved}.items():
        if not permission.allow:
            expected = f'allow = ["{name}"] at the top of the configuration'
            raise TargetRefused(f"{name} is not in 'allow'; expected {expected}")
        admit(target, permission)
        permission = replace(permission, confirm=(*permission.confirm, name))  # each target is asked for once
    _require_writes(settings, origins)
    return Targets(addresses, origins, permission, bool(database and database.pooler))


def _require_same(target: _Target, known: Iterable[_Target]) -> _Target:
    """Return the target. Raises TargetRefused if its name resolved to another address a moment ago."""
    for other in known:
        if other.name == target.name and other.address != target.address:
            raise TargetRefused(f"{target.name} resolves to {other.address} and {target.address}; expected one address")
    return target


def caps(settings: Config, targets: Targets) -> dict[str, Caps]:
    """Return the load limits of every arm whose load goes to a target that perfkit did not start."""
    limits = settings.limits
    shared = Caps(
        budget="run",
        rate=limits.rate,
        in_flight=limits.in_flight,
        total=limits.requests,
        deadline_ns=monotonic_ns() + int(limits.seconds * 1e9),
        breaker_errors=limits.breaker_errors,
        breaker_ms=limits.breaker_ms,
        breaker_window=limits.breaker_window,
        grace=limits.breaker_grace,
    )
    loaded = targets.addresses if settings.database and settings.database.way in LOADED else ()
    return dict.fromkeys([*loaded, *targets.origins], shared)


def _require_writes(settings: Config, origins: Mapping[str, Origin]) -> None:
    """Raise TargetRefused if a foreign service would get requests that may write without `writes = true`."""
    writing = [request.name for request in settings.request if request.method not in SAFE_METHODS]
    if origins and writing and not (settings.service and settings.service.writes):
        names = ", ".join(sorted({origin.name for origin in origins.values()}))
        raise TargetRefused(
            f"{names}: request {', '.join(writing)} may change data there; expected 'writes = true' in [service]"
        )


Text = str | Path  # SQL, or the name of a file with SQL


@dataclass(frozen=True, slots=True)
class ComparisonSpec:
    """A comparison in one line: queries on one database, before and after indexes, settings or a rewrite.

    `write` makes its configuration, as files in the run's folder.
    """

    db: str
    query: Sequence[Text]
    index: Sequence[Text] = ()
    settings: Mapping[str, str] | None = None
    rewrite: Text | None = None
    parameters: Text | None = None
    way: str = "whole"
    users: int = 10
    p95_ms: float | None = None
    volatile: Sequence[str] = ()
    tls: bool = True
    pooler: bool = False
    bare: bool = False  # without a comparison: the configuration only holds the database with the queries
    rate: float = 0.0  # arrivals per second, at most `users` in flight; 0: the closed model with two load levels
    seconds: float = 10.0  # duration of the arrivals
    need: str = "benefit"  # or "none"; the configuration's key `need`
    made: Mapping[str, object] | None = None  # the [database] of generated data, in place of `db`

    def __post_init__(self) -> None:
        if not self.query:
            raise UsageError("no query; expected at least one --query")
        if not (self.index or self.settings or self.rewrite or self.bare):
            raise UsageError("nothing to compare; expected --index, --set or --rewrite")
        if self.rewrite and len(self.query) != 1:
            raise UsageError(f"--rewrite with {len(self.query)} queries; expected one --query")
        try:
            require_settable({name: str(value) for name, value in (self.settings or {}).items()})
        except ValueError as error:
            raise UsageError(f"settings: expected {error}") from None
        if self.users < 1:
            raise UsageError(f"users = {self.users}; expected at least 1")
        if self.rate < 0 or self.seconds <= 0:
            raise UsageError(f"rate = {self.rate:g}, seconds = {self.seconds:g}; expected more than 0")
        try:
            require_no_password(self.db)
        except ValueError as error:
            raise UsageError(f"db: expected {error}") from None

    def write(self, folder: Path) -> Path:
        """Write perfkit.toml and its SQL files into a folder; return the path of perfkit.toml. Raises UsageError."""
        names = [f"query-{n}" for n in range(1, len(self.query) + 1)] if len(self.query) > 1 else ["query"]
        files = {f"{name}.sql": self._query(text) for name, text in zip(names, self.query, strict=True)}
        if self.index:
            statements = [(source, split(sql_of(source))) for source in self.index]
            if lacking := [source for source, texts in statements if not texts]:
                raise UsageError(f"{_label(lacking[0])}: no statement; expected CREATE INDEX ...")
            files["index.sql"] = "".join(f"{one.text};\n" for _, texts in statements for one in texts)
        if self.rewrite:
            files["rewrite.sql"] = self._query(self.rewrite)
        source = ""
        if self.parameters:
            is_csv = is_file(self.parameters) and Path(self.parameters).suffix.lower() == ".csv"
            source = f"parameters{'.csv' if is_csv else '.sql'}"
            files[source] = sql_of(self.parameters)
        files["perfkit.toml"] = self._toml(names, source)
        try:
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror}); expected a writable folder") from None
        return folder / "perfkit.toml"

    def _query(self, source: Text) -> str:
        """Return a query's text. Raises UsageError if it is not one statement, or if its parameters have no source."""
        text = sql_of(source)
        try:
            single(text)
        except PlanError as error:
            raise UsageError(f"{_label(source)}: {error}") from None
        if not self.parameters and (named := re.search(r"%\((\w+)\)s", text)):
            raise UsageError(f"{_label(source)}: {named[0]} needs values; expected --parameters with '{named[1]}'")
        return text

    def _toml(self, names: Sequence[str], source: str) -> str:
        database: dict[str, object] = {**self.made} if self.made else {"target": self.db, "way": self.way}
        database |= {"volatile": list(self.volatile)} if self.volatile else {}
        database |= {} if self.tls else {"tls": False}
        database |= {"pooler": True} if self.pooler else {}
        after: dict[str, object] = {"name": "after", "role": "after", "title": self._title()}
        after |= {"indexes": "index.sql"} if self.index else {}
        after |= {"settings": {name: str(value) for name, value in self.settings.items()}} if self.settings else {}
        after |= {"rewrite": {names[0]: "rewrite.sql"}} if self.rewrite else {}
        parameters = {"parameters": "rows"} if source else {}
        arms: list[dict[str, object]] = [{"name": role, "role": role} for role in ("before", "control")]
        unnamed = "A slow statement" if self.made else "A query"
        headline = Path(self.query[0]).stem if is_file(self.query[0]) else unnamed
        return tomlkit.dumps(
            {
                "title": headline if self.bare else f"{headline} before and after",
                **({} if self.made else {"allow": [resolve(self.db, self.tls).name]}),
                **({"need": self.need} if self.need != "benefit" else {}),
                "database": database,
                **({"parameters": {"rows": source}} if source else {}),
                "query": [{"name": name, "file": f"{name}.sql", **parameters} for name in names],
                "scenario": self._scenarios(names),
                "arm": [{"name": "current", "role": "before"}] if self.bare else [*arms, after],
                **({"thresholds": {"p95_ms": self.p95_ms}} if self.p95_ms is not None else {}),
            }
        )

    def _scenarios(self, names: Sequence[str]) -> list[dict[str, object]]:
        """Return load levels with one connection and with several, or arrivals at a rate."""
        if self.rate:
            label = f"{self.rate:g} per second, at most {self.users} in flight"
            load = {"rate": self.rate, "users": self.users, "seconds": self.seconds}
            return [{"name": "arrivals", "label": label, "send": list(names), **load}]
        together = [scenario("together", names, self.users, 5)] if self.users > 1 else []
        return [scenario("alone", names, 1, 20), *together]

    def _title(self) -> str:
        """Return the differences of the arm after, in a few words."""
        changes = []
        if self.index:
            changes.append("with the index" if len(self.index) == 1 else f"with {len(self.index)} index sets")
        changes += [f"with {name} = {value}" for name, value in (self.settings or {}).items()]
        if self.rewrite:
            changes.append("rewritten")
        return ", ".join(changes)


def scenario(name: str, send: Sequence[str], users: int, requests: int) -> dict[str, object]:
    """Return the table of a scenario that sends queries on `users` connections."""
    label = f"{users} connection{'s' if users > 1 else ''}"
    load = {"users": users, "requests": requests, "warm": 1, "seconds": 4}
    return {"name": name, "label": label, "send": list(send), **load}


def index_set(settings: Config, source: Text, folder: Path) -> IndexSet:
    """Return the index set of a file or SQL text, else of the first arm that has one. Raises UsageError."""
    path = Path(source) if source else next((arm.indexes for arm in settings.arm if arm.indexes), None)
    if path is None:
        raise UsageError(f"{settings.title}: no arm with 'indexes'; expected a set of indexes to examine")
    if source and not is_file(source):
        path = folder / "indexes.sql"
        write_atomically(path, sql_of(source))
    indexes = read_set(path)
    if not indexes.indexes:
        raise UsageError(f"{indexes.path}: no index; expected CREATE INDEX ...")
    return indexes


def is_file(text: Text) -> bool:
    """Return whether a text names a file: a Path, an existing file, or one word that ends in .sql or .csv."""
    if isinstance(text, Path) or os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises for a long text
        return True
    return bool(re.fullmatch(r"\S+\.(sql|csv)", text, re.IGNORECASE))


def _label(text: Text) -> str:
    """Return a text's name for error messages."""
    return str(text) if is_file(text) else repr(" ".join(str(text).split())[:60])


def sql_of(text: Text) -> str:
    """Return SQL text, read from a file if the text names one. Raises UsageError."""
    return read(Path(text)) if is_file(text) else f"{text}\n"


# The janitor removes what a run made on the user's server if the run is killed before it can clean up: this module as
# a process, in a session of its own that outlives its parent. Each line of its input registers a removal or cancels
# one; at the end of its input, it carries out those that remain.

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
            quiet, command = subprocess.DEVNULL, [*MODULE, "perfkit.runs.targets"]
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

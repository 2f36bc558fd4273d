"""A comparison given in one line, as the configuration that it stands for: files in the run's own folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from perfkit.bundle import write_atomically
from perfkit.config import Config
from perfkit.config.fields import require_no_password
from perfkit.errors import BundleError, PlanError, UsageError
from perfkit.explain.capture import single
from perfkit.guards.address import resolve
from perfkit.indexes.statements import IndexSet, read_set
from perfkit.postgres.settings import require_settable
from perfkit.postgres.statements import read, split

Text = str | Path  # SQL, or the name of a file that holds it


@dataclass(frozen=True, slots=True)
class ComparisonSpec:
    """What is compared: queries before and after indexes, settings or a rewrite, on one database."""

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
    bare: bool = False  # nothing is compared: what its configuration is wanted for is the database with the queries
    rate: float = 0.0  # arrivals a second, at most `users` in flight, in place of the closed model's two load levels
    seconds: float = 10.0  # how long they go on
    need: str = "benefit"  # or "none": see the configuration's key

    def __post_init__(self) -> None:
        if not self.query:
            raise UsageError("no query; expected at least one --query")
        if not (self.index or self.settings or self.rewrite or self.bare):
            raise UsageError("nothing to compare; expected --index, --set or --rewrite")
        if self.rewrite and len(self.query) != 1:
            raise UsageError(f"a rewrite of {len(self.query)} queries; expected one --query with it")
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
        """Write perfkit.toml and its SQL files into a folder; returns the former. Raises UsageError."""
        names = [f"query-{n}" for n in range(1, len(self.query) + 1)] if len(self.query) > 1 else ["query"]
        files = {f"{name}.sql": self._query(text) for name, text in zip(names, self.query, strict=True)}
        if self.index:
            files["index.sql"] = "".join(f"{text};\n" for given in self.index for text in _statements(given))
        if self.rewrite:
            files["rewrite.sql"] = self._query(self.rewrite)
        source = ""
        if self.parameters:
            lines = is_file(self.parameters) and Path(self.parameters).suffix.lower() == ".csv"
            source = f"parameters{'.csv' if lines else '.sql'}"
            files[source] = sql_of(self.parameters)
        files["perfkit.toml"] = self._toml(names, source)
        try:
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror}); expected a writable folder") from None
        return folder / "perfkit.toml"

    def _query(self, given: Text) -> str:
        """A query's text, which must be one statement, with a source for the parameters that it names."""
        text = sql_of(given)
        try:
            single(text)
        except PlanError as error:
            raise UsageError(f"{_shown(given)}: {error}") from None
        if not self.parameters and (named := re.search(r"%\((\w+)\)s", text)):
            raise UsageError(f"{_shown(given)}: {named[0]} needs values; expected --parameters with '{named[1]}'")
        return text

    def _toml(self, names: Sequence[str], source: str) -> str:
        database: dict[str, object] = {"target": self.db, "way": self.way}
        database |= {"volatile": list(self.volatile)} if self.volatile else {}
        database |= {} if self.tls else {"tls": False}
        database |= {"pooler": True} if self.pooler else {}
        after: dict[str, object] = {"name": "after", "role": "after", "title": self._title()}
        after |= {"indexes": "index.sql"} if self.index else {}
        after |= {"settings": {name: str(value) for name, value in self.settings.items()}} if self.settings else {}
        after |= {"rewrite": {names[0]: "rewrite.sql"}} if self.rewrite else {}
        parameters = {"parameters": "rows"} if source else {}
        arms: list[dict[str, object]] = [{"name": role, "role": role} for role in ("before", "control")]
        return tomlkit.dumps(
            {
                "title": self._headline(),
                "allow": [resolve(self.db, self.tls).name],
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
        """One connection and several, or arrivals at a rate."""
        if self.rate:
            label = f"{self.rate:g} per second, at most {self.users} in flight"
            load = {"rate": self.rate, "users": self.users, "seconds": self.seconds}
            return [{"name": "arrivals", "label": label, "send": list(names), **load}]
        together = [scenario("together", names, self.users, 5)] if self.users > 1 else []
        return [scenario("alone", names, 1, 20), *together]

    def _headline(self) -> str:
        first = self.query[0]
        said = Path(first).stem if is_file(first) else "A query"
        return said if self.bare else f"{said} before and after"

    def _title(self) -> str:
        """What is different about the arm after, in a few words."""
        said = []
        if self.index:
            said.append("with the index" if len(self.index) == 1 else f"with {len(self.index)} index sets")
        said += [f"with {name} = {value}" for name, value in (self.settings or {}).items()]
        if self.rewrite:
            said.append("rewritten")
        return ", ".join(said)


def scenario(name: str, send: Sequence[str], users: int, requests: int) -> dict[str, object]:
    """A scenario's table for queries on so many connections."""
    label = f"{users} connection{'s' if users > 1 else ''}"
    load = {"users": users, "requests": requests, "warm": 1, "seconds": 4}
    return {"name": name, "label": label, "send": list(send), **load}


def index_set(settings: Config, given: Text, folder: Path) -> IndexSet:
    """The set that is given as SQL or a file, else that of the first arm that has one. Raises UsageError."""
    own = next((arm.indexes for arm in settings.arm if arm.indexes), None)
    path = Path(given) if given else own
    if path is None:
        raise UsageError(f"{settings.title}: no arm with 'indexes'; expected a set of indexes to look at")
    if given and not is_file(given):
        path = folder / "indexes.sql"
        write_atomically(path, sql_of(given))
    found = read_set(path)
    if not found.indexes:
        raise UsageError(f"{found.path}: no index; expected CREATE INDEX ...")
    return found


def is_file(text: Text) -> bool:
    """A file is named by a Path, by what is one, or by a word that could not be SQL: it ends in .sql or .csv."""
    if isinstance(text, Path) or os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises for a long text
        return True
    return bool(re.fullmatch(r"\S+\.(sql|csv)", text, re.IGNORECASE))


def _shown(text: Text) -> str:
    """What an error calls a text."""
    return str(text) if is_file(text) else repr(" ".join(str(text).split())[:60])


def _statements(text: Text) -> list[str]:
    """CREATE INDEX and ANALYZE statements, without the comments between them. Raises UsageError for none."""
    if not (found := [statement.text for statement in split(sql_of(text))]):
        raise UsageError(f"{_shown(text)}: no statement; expected CREATE INDEX ...")
    return found


def sql_of(text: Text) -> str:
    """The SQL that is given itself or by the name of a file. Raises UsageError."""
    return read(Path(text)) if is_file(text) else f"{text}\n"

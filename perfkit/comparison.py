"""A comparison given in one line, as the configuration that it stands for: files in the run's own folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from perfkit.errors import BundleError, UsageError

Text = str | Path  # SQL, or the name of a file that holds it


@dataclass(frozen=True, slots=True)
class Comparison:
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

    def __post_init__(self) -> None:
        if not self.query:
            raise UsageError("no query; expected at least one --query")
        if not (self.index or self.settings or self.rewrite):
            raise UsageError("nothing to compare; expected --index, --set or --rewrite")
        if self.rewrite and len(self.query) != 1:
            raise UsageError(f"a rewrite of {len(self.query)} queries; expected one --query with it")

    def write(self, folder: Path) -> Path:
        """Write perfkit.toml and its SQL files into a folder; returns the former. Raises UsageError."""
        names = [f"query-{n}" for n in range(1, len(self.query) + 1)] if len(self.query) > 1 else ["query"]
        try:
            for name, text in zip(names, self.query, strict=True):
                (folder / f"{name}.sql").write_text(_sql(text), encoding="utf-8")
            if self.index:
                statements = ";\n".join(_sql(text).strip().rstrip(";") for text in self.index)
                (folder / "index.sql").write_text(f"{statements};\n", encoding="utf-8")
            if self.rewrite:
                (folder / "rewrite.sql").write_text(_sql(self.rewrite), encoding="utf-8")
            source = self._copied_parameters(folder)
            path = folder / "perfkit.toml"
            path.write_text(self._toml(names, source), encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror}); expected a writable folder") from None
        return path

    def _copied_parameters(self, folder: Path) -> str:
        """The parameter source beside the configuration; "" where there is none."""
        if self.parameters is None:
            return ""
        if _is_file(self.parameters):
            found = Path(self.parameters)
            name = f"parameters{'.csv' if found.suffix.lower() == '.csv' else '.sql'}"
            shutil.copyfile(found, folder / name)
            return name
        (folder / "parameters.sql").write_text(_sql(self.parameters), encoding="utf-8")
        return "parameters.sql"

    def _toml(self, names: Sequence[str], source: str) -> str:
        database: dict[str, object] = {"target": self.db, "way": self.way}
        database |= {"volatile": list(self.volatile)} if self.volatile else {}
        database |= {} if self.tls else {"tls": False}
        database |= {"pooler": True} if self.pooler else {}
        after: dict[str, object] = {"name": "after", "role": "after", "title": self._title()}
        after |= {"indexes": "index.sql"} if self.index else {}
        after |= {"settings": dict(self.settings)} if self.settings else {}
        after |= {"rewrite": {names[0]: "rewrite.sql"}} if self.rewrite else {}
        parameters = {"parameters": "rows"} if source else {}
        scenarios = [_scenario("alone", "1 connection", names, 1, 20)]
        if self.users > 1:
            scenarios.append(_scenario("together", f"{self.users} connections", names, self.users, 5))
        return tomlkit.dumps(
            {
                "title": self._headline(),
                "database": database,
                **({"parameters": {"rows": source}} if source else {}),
                "query": [{"name": name, "file": f"{name}.sql", **parameters} for name in names],
                "scenario": scenarios,
                "arm": [*({"name": role, "role": role} for role in ("before", "control")), after],
                **({"thresholds": {"p95_ms": self.p95_ms}} if self.p95_ms else {}),
            }
        )

    def _headline(self) -> str:
        first = self.query[0]
        return f"{Path(first).stem} before and after" if _is_file(first) else "A query before and after"

    def _title(self) -> str:
        """What is different about the arm after, in a few words."""
        said = []
        if self.index:
            said.append("with the index" if len(self.index) == 1 else f"with {len(self.index)} index sets")
        said += [f"with {name} = {value}" for name, value in (self.settings or {}).items()]
        if self.rewrite:
            said.append("rewritten")
        return ", ".join(said)


def _scenario(name: str, label: str, send: Sequence[str], users: int, requests: int) -> dict[str, object]:
    load = {"users": users, "requests": requests, "warm": 1, "seconds": 4}
    return {"name": name, "label": label, "send": list(send), **load}


def _is_file(text: Text) -> bool:
    """A file is named by a Path, or by text that could not be SQL: one word ending in .sql or .csv."""
    return isinstance(text, Path) or text.lower().endswith((".sql", ".csv"))


def _sql(text: Text) -> str:
    if not _is_file(text):
        return f"{text}\n"
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{text}: cannot be read ({reason}); expected a file with SQL, or the SQL itself") from None

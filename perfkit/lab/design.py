"""The runs of a lab as configurations: arms that differ in their indexes, one load level for each query and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfkit.bundle import write_atomically
from perfkit.config import Arm, Config, Query, Scenario
from perfkit.errors import UsageError
from perfkit.indexes.statements import IndexSet
from perfkit.lab.writes import Writes

NONE, ALL, CHOSEN, CONTROL, ADVISED = "none", "all", "chosen", "control", "advised"
READS, WRITES = 100, 100  # requests of a round, of reads as far as they do not take longer than a round should
MORE = 2  # times as many reads where few arms are to be told apart to a hair
Sets = Mapping[str, Sequence[str]]  # by arm, the names of its indexes


@dataclass(frozen=True, slots=True)
class LabDesign:
    """What all runs of a lab have in common; their files are in `folder`."""

    settings: Config
    folder: Path
    indexes: IndexSet
    writes: Writes
    seconds: float  # that a query's round may take
    advised: str = ""  # another set, as SQL

    def config(self, sets: Sets, baseline: str, written: Sequence[str] = (), more: int = 1) -> Config:
        """A run of these arms; the control is the baseline again. Tables are written to on the arms `written`."""
        arms = [self._arm(name, own, "before" if name == baseline else "after") for name, own in sets.items()]
        first = next(arm for arm in arms if arm.name == baseline)
        arms.insert(1, first.model_copy(update={"name": CONTROL, "role": "control"}))
        reads, writes = self.settings.query, self.writes.writes
        changes = [Query(name=w.item, file=self.file(w.item), parameters=w.item, plan=False) for w in writes]
        levels = [
            _level(f"reads-{number}", "SQL, one connection", [q.name], more * READS, seconds=more * self.seconds)
            for number, q in enumerate(reads, 1)
        ]
        changed: dict[str, object] = {
            "arm": tuple(arms),
            "query": (*reads, *changes),
            "parameters": {**self.settings.parameters, **{w.item: self.file(f"{w.item}-rows") for w in writes}},
            "scenario": (*levels, *self._write_levels([CONTROL, *written])),
        }
        return self.settings.model_copy(update=changed | {"service": None, "request": (), "check": ()})

    def write(self) -> None:
        """Write the files that the runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for write in self.writes.writes:
            write_atomically(self.file(write.item), f"{write.sql}\n")
            write_atomically(self.file(f"{write.item}-rows"), f"{write.source}\n")
        write_atomically(self.file("rows-to-delete"), self.writes.prepare)

    def _arm(self, name: str, own: Sequence[str], role: str) -> Arm:
        path = self._subset(own) if name != ADVISED else self.file(ADVISED)
        if name == ADVISED:
            write_atomically(path, self.advised)
        prepare = (self.file("rows-to-delete"),) if self.writes.prepare else ()
        title = "the advised indexes" if name == ADVISED else f"{len(own)} indexes"
        return Arm.model_validate(
            {
                "name": name,
                "role": role,
                "title": title,
                "prepare": prepare,
                "indexes": path if own or name == ADVISED else None,
            }
        )

    def _subset(self, names: Sequence[str]) -> Path:
        """The file of a subset; arms of the same indexes share it, and so the database that they are cloned from."""
        own = [index for index in self.indexes.indexes if index.name in names]
        numbers = "-".join(str(self.indexes.indexes.index(index) + 1) for index in own)
        path = self.file(f"indexes-{numbers}" if len(own) < len(self.indexes.indexes) else "indexes-all")
        if own and not path.exists():
            write_atomically(path, "".join(f"{index.sql(concurrently=False)};\n" for index in own))
        return path

    def alone(self, arm: str) -> str:
        """The index of an arm that has one alone; "" for other arms."""
        names: list[str] = [index.name for index in self.indexes.indexes]
        if arm == ALL and len(names) == 1:
            return names[0]
        number = arm.removeprefix("only-")
        return names[int(number) - 1] if number != arm else ""

    def concerns(self, arm: str, table: str) -> bool:
        """Whether changes of a table are of interest on an arm: it has all indexes or none, or one of this table's."""
        return self.alone(arm) in ("", *self.writes.tables.get(table, ()))

    def file(self, name: str) -> Path:
        """Where a file of this name is."""
        return self.folder / f"{name}.sql"

    def _write_levels(self, arms: Sequence[str]) -> list[Scenario]:
        """By table, on the arms that it concerns; what takes long is sent less often, and so apart from the rest."""
        levels: dict[tuple[str, int], list[str]] = {}
        for write in self.writes.writes if len(arms) > 1 else ():
            times = write.times(WRITES, self.seconds)
            levels.setdefault((write.table, times), []).append(write.item)
        found = []
        for number, ((table, times), items) in enumerate(levels.items(), 1):
            own = tuple(dict.fromkeys(arm for arm in arms if self.concerns(arm, table)))
            label = f"changes of {table}, one connection"
            found.append(_level(f"writes-{number}", label, items, times, arms=own))
        return found


def _level(name: str, label: str, send: Sequence[str], requests: int, **more: Any) -> Scenario:
    return Scenario(name=name, label=label, send=tuple(send), requests=requests, warm=1, alternate=True, **more)


def require_unique_names(indexes: IndexSet) -> None:
    """Raise UsageError if two indexes have one name: plans, which name no schema, could mean either."""
    names = [index.name for index in indexes.indexes]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        expected = "expected every name once, in whatever schema, to tell what each index is worth"
        raise UsageError(f"{indexes.path}: two indexes are called {twice}; {expected}")


def ablation(indexes: IndexSet) -> dict[str, list[str]]:
    """No index, all, each alone, and all but one. Raises UsageError if two have one name."""
    require_unique_names(indexes)
    names = [index.name for index in indexes.indexes]
    sets: dict[str, list[str]] = {NONE: [], ALL: names}
    if len(names) > 1:  # one alone is all
        sets |= {f"only-{n}": [name] for n, name in enumerate(names, 1)}
    if len(names) > 2:  # of two, all but one is the other alone
        sets |= {f"without-{n}": [other for other in names if other != name] for n, name in enumerate(names, 1)}
    return sets

"""The folder of a run: written round by round, read back checked.

<folder>/run.json                                what was run, on what, how far it came
    <folder>/rounds/003.burst.after-index.json       samples of one round, column by column
    <folder>/plans/after-index/conflict_check.json   EXPLAIN's JSON, untouched
    .../conflict_check.facts.json                    earlier executions, and the catalogue's facts about its tables

A crash loses at most the round that was running.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perfkit.base.errors import BundleError, UsageError

_DEEP = 10_000  # nested values that are followed; Python's own limit is 1,000, a plan takes two for each level
_deepening = threading.Lock()
_LONE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold as it is
_INDENTED = 200  # levels; the spaces grow with their square


def loads(text: str | bytes) -> Any:
    """The value of a text. Raises ValueError."""
    with deep():
        return json.loads(text)


def dumps(value: Any, *, ascii_only: bool = False) -> str:
    """A text that files can hold, indented unless that would be most of it. Raises ValueError."""
    with deep():
        indent = 1 if _levels(value) < _INDENTED else None
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        return json.dumps(value, indent=indent) if _LONE.search(text) else text


@contextmanager
def deep() -> Iterator[None]:
    """Python's limit raised for a while; ValueError for what is nested deeper still."""
    with _deepening:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEP))
        try:
            yield
        except RecursionError:
            raise ValueError(f"nested deeper than {_DEEP:,} values") from None
        finally:
            sys.setrecursionlimit(limit)


def _levels(value: Any) -> int:
    """How deep values are nested in each other."""
    levels, layer = 0, [value] if isinstance(value, dict | list) else []
    while layer and levels < _INDENTED:
        within = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [item for values in within for item in values if isinstance(item, dict | list)]
        levels += 1
    return levels


# A run on disk: `run.json`, one file a round, one file a plan; each written whole or not at all.

FORMAT = 2
_FACTS = ".facts.json"
COLUMNS = (
    "item",
    "user",
    "batch",
    "counted",
    "scheduled",
    "started",
    "acquired",
    "done",
    "outcome",
    "detail",
    "attempts",
)
FLOOR = "floor"  # stands for an arm in rounds against a target that does nothing


@dataclass(frozen=True, slots=True)
class Round:
    """One scenario on one arm, once. Columns have an entry per request; times are ns from its batch's release."""

    block: int
    position: int  # order in which the round ran within the run
    scenario: str
    arm: str
    columns: Mapping[str, list[Any]]  # see COLUMNS; a dropped request has the outcome `dropped` and was never started
    health: Mapping[str, float]  # lag_p50_ms, lag_p99_ms, worker_cpu (share of a core), cpu_ms, gc_ms, wall_ms
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # scans by query, by index or `seq:table`
    rest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by item, see perfkit.load.samples.Rest

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"{self.block:03}.{self.scenario}.{self.arm}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A run's folder; `run` is the content of `run.json`."""

    path: Path
    run: dict[str, Any]

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any]) -> Bundle:
        """Start a bundle in a new folder. Raises BundleError where it cannot be written."""
        try:
            (path / "rounds").mkdir(parents=True)
            (path / "plans").mkdir()
        except OSError as error:
            raise BundleError(f"{path}: cannot be created ({error.strerror}); expected a writable folder") from None
        bundle = cls(path, {"format": FORMAT, "status": "running", **run})
        bundle.update()
        return bundle

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a bundle for reading. Raises BundleError naming what is missing or damaged."""
        return cls(path, read_object(path / "run.json", "a bundle's folder", "a bundle", FORMAT))

    def update(self, **values: Any) -> None:
        """Add to `run.json` and write it anew."""
        self.run.update(values)
        write_atomically(self.path / "run.json", json.dumps(self.run, indent=1, ensure_ascii=False))

    def add_round(self, round_: Round) -> None:
        """Write one round."""
        text = json.dumps(asdict(round_), separators=(",", ":"), ensure_ascii=False)
        write_atomically(self.path / "rounds" / f"{round_.name}.json", text)

    def rounds(self) -> Iterator[Round]:
        """All rounds in the order of block, scenario and arm names. Raises BundleError for one that is no round."""
        for path in sorted((self.path / "rounds").glob("[!.]*.json")):
            try:
                found = Round(**read_json(path, "a round"))
                lengths = {len(found.columns[name]) for name in COLUMNS}
            except (KeyError, TypeError):
                raise BundleError(f"{path}: not a round; expected the columns of format {FORMAT}") from None
            if len(lengths) != 1:
                raise BundleError(f"{path}: columns of different lengths; expected an entry for every request in each")
            yield found

    def add_plan(self, arm: str, query: str, documents: Sequence[Any], tables: Sequence[Any] = ()) -> None:
        """Keep EXPLAIN's JSON as it came: that of the last execution; beside it the others and facts about tables."""
        folder = self.path / "plans" / arm
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{query}.json", dumps(documents[-1]))
        rest = {"earlier": documents[:-1], "tables": tables}
        write_atomically(folder / f"{query}{_FACTS}", dumps(rest))

    def plan(self, arm: str, query: str) -> Any | None:
        """EXPLAIN's JSON of one query in one arm; None where it was not captured."""
        return self._plan(arm, query, ".json")

    def beside_plan(self, arm: str, query: str) -> Mapping[str, Any]:
        """`earlier`: EXPLAIN's JSON of the executions before; `tables`: what the catalogue said of its tables."""
        return dict(self._plan(arm, query, _FACTS) or {})

    def _plan(self, arm: str, query: str, suffix: str) -> Any | None:
        for name in (arm, query):
            if Path(name).name != name:
                raise BundleError(f"{self.path}/run.json: {name!r}; expected the name of an arm or a query")
        path = self.path / "plans" / arm / f"{query}{suffix}"
        return read_json(path, "a plan") if path.is_file() else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """BundleError for whatever goes wrong with the content of files, which is not checked key by key."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path}: damaged ({words}); expected what perfkit wrote") from error


def require_spare(path: Path, start: str) -> Path:
    """The name of a file to be written. Raises UsageError for what may be a run's or a watch's own.

    Beside these it has to begin with `start`.
    """
    for depth, folder in enumerate(path.resolve().parents[:3]):  # plans are two below
        if any((folder / own).exists() for own in ("run.json", "watch.json")) and (
            depth or not path.name.startswith(start)
        ):
            raise UsageError(f"{path}: among the files of a run or a watch; expected {start}... there, or elsewhere")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises BundleError, e.g. when the disk is full, or for a device."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # whoever else writes it
    try:
        if path.exists() and not path.is_file():  # a device would be replaced
            raise OSError(errno.EINVAL, "not a regular file")
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); what came before is kept") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_json(path: Path, expected: str) -> Any:
    """What a file says in JSON. Raises BundleError where it is damaged, or missing, in words what was `expected`."""
    try:
        return loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged ({error}); expected JSON written by perfkit") from None


def read_object(path: Path, expected: str, what: str, version: int) -> dict[str, Any]:
    """Likewise the object of a file that says its format; `what` is "a run" or the like. Raises BundleError."""
    found = read_json(path, expected)
    said = found.get("format") if isinstance(found, dict) else None
    if said != version:
        raise BundleError(f"{path}: format {said!r}; expected {what} of format {version}")
    return dict(found)

"""The folder of a run: JSON files written round by round, and checked when read.

<folder>/run.json                                what was run, on which target, and how far the run got
    <folder>/rounds/003.burst.after-index.json       samples of one round, column by column
    <folder>/plans/after-index/conflict_check.json   EXPLAIN's JSON, untouched
    .../conflict_check.facts.json                    earlier executions, and facts about the tables from the catalogue

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

_MAX_DEPTH = 10_000  # Python's limit is 1,000 calls; a plan needs two for each level
_recursion_limit = threading.Lock()
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 cannot encode
_INDENTED_LEVELS = 200  # the number of spaces grows with the square of the levels


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError if the text is not JSON or is nested too deep."""
    with deep():
        return json.loads(text)


def dumps(value: Any, *, ascii_only: bool = False) -> str:
    """Return a JSON text that a file can hold, indented unless spaces would be most of it.

    Raises ValueError if the value is nested too deep.
    """
    with deep():
        indent = 1 if _levels(value) < _INDENTED_LEVELS else None
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        return json.dumps(value, indent=indent) if _LONE_SURROGATE.search(text) else text


@contextmanager
def deep() -> Iterator[None]:
    """Raise Python's recursion limit inside the block. Raises ValueError for deeper nesting."""
    with _recursion_limit:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _MAX_DEPTH))
        try:
            yield
        except RecursionError:
            raise ValueError(f"nested deeper than {_MAX_DEPTH:,} values") from None
        finally:
            sys.setrecursionlimit(limit)


def _levels(value: Any) -> int:
    """Return the depth of nested values, up to _INDENTED_LEVELS."""
    levels, layer = 0, [value] if isinstance(value, dict | list) else []
    while layer and levels < _INDENTED_LEVELS:
        children = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [item for values in children for item in values if isinstance(item, dict | list)]
        levels += 1
    return levels


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
FLOOR = "floor"  # the arm's name in rounds against a target that does nothing


@dataclass(frozen=True, slots=True)
class Round:
    """One scenario on one arm, once. Columns have an entry per request; times are in ns since its batch's start."""

    block: int
    position: int  # order in which the round ran within the run
    scenario: str
    arm: str
    columns: Mapping[str, list[Any]]  # see COLUMNS; a request with the outcome `dropped` was never started
    health: Mapping[str, float]  # lag_p50_ms, lag_p99_ms, worker_cpu (share of a core), cpu_ms, gc_ms, wall_ms
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # scans by query, by index or `seq:table`
    rest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by item, see perfkit.load.samples.Rest

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return f"{self.block:03}.{self.scenario}.{self.arm}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The folder of a run; `run` is the content of `run.json`."""

    path: Path
    run: dict[str, Any]

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any]) -> Bundle:
        """Start a bundle in a new folder. Raises BundleError if the folder cannot be created."""
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
        """Open a bundle for reading. Raises BundleError if run.json is missing, damaged or of another format."""
        return cls(path, read_object(path / "run.json", "a bundle's folder", "a bundle", FORMAT))

    def update(self, **values: Any) -> None:
        """Add values to `run.json` and write the file."""
        self.run.update(values)
        write_atomically(self.path / "run.json", json.dumps(self.run, indent=1, ensure_ascii=False))

    def add_round(self, round_: Round) -> None:
        """Write one round."""
        text = json.dumps(asdict(round_), separators=(",", ":"), ensure_ascii=False)
        write_atomically(self.path / "rounds" / f"{round_.name}.json", text)

    def rounds(self) -> Iterator[Round]:
        """Yield all rounds in the order of block, scenario and arm name. Raises BundleError for a damaged file."""
        for path in sorted((self.path / "rounds").glob("[!.]*.json")):
            try:
                round_ = Round(**read_json(path, "a round"))
                lengths = {len(round_.columns[name]) for name in COLUMNS}
            except (KeyError, TypeError):
                raise BundleError(f"{path}: not a round; expected the columns of format {FORMAT}") from None
            if len(lengths) != 1:
                raise BundleError(f"{path}: columns of different lengths; expected an entry for every request in each")
            yield round_

    def add_plan(self, arm: str, query: str, documents: Sequence[Any], tables: Sequence[Any] = ()) -> None:
        """Write EXPLAIN's JSON of the last execution, unchanged, and a file with earlier ones and facts on tables."""
        folder = self.path / "plans" / arm
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{query}.json", dumps(documents[-1]))
        rest = {"earlier": documents[:-1], "tables": tables}
        write_atomically(folder / f"{query}{_FACTS}", dumps(rest))

    def plan(self, arm: str, query: str) -> Any | None:
        """Return EXPLAIN's JSON of a query in an arm; None if the plan was not captured."""
        return self._plan(arm, query, ".json")

    def beside_plan(self, arm: str, query: str) -> Mapping[str, Any]:
        """Return `earlier`, EXPLAIN's JSON of earlier executions, and `tables`, facts from the catalogue."""
        return dict(self._plan(arm, query, _FACTS) or {})

    def _plan(self, arm: str, query: str, suffix: str) -> Any | None:
        for name in (arm, query):
            if Path(name).name != name:
                raise BundleError(f"{self.path}/run.json: {name!r}; expected the name of an arm or a query")
        path = self.path / "plans" / arm / f"{query}{suffix}"
        return read_json(path, "a plan") if path.is_file() else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise BundleError if code in the block fails on the content of a file, which is not checked key by key."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path}: damaged ({reason}); expected what perfkit wrote") from error


def require_spare(path: Path, start: str) -> Path:
    """Return the path of a file to write. Raises UsageError if the path could be a file of a run or a watch.

    In such a folder the file's name must begin with `start`; in its subfolders no name is allowed.
    """
    for depth, folder in enumerate(path.resolve().parents[:3]):  # plans lie two levels below run.json
        if any((folder / name).exists() for name in ("run.json", "watch.json")) and (
            depth or not path.name.startswith(start)
        ):
            raise UsageError(f"{path}: in the folder of a run or a watch; expected {start}... there, or another folder")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file completely or not at all. Raises BundleError, e.g. if the disk is full or the path is a device."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # unique if several processes write the file
    try:
        if path.exists() and not path.is_file():  # replacing a device would destroy it
            raise OSError(errno.EINVAL, "not a regular file")
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); nothing was overwritten") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_json(path: Path, expected: str) -> Any:
    """Return the value in a JSON file. Raises BundleError if the file is damaged or missing.

    `expected` names the file's content in the error, for example "a plan".
    """
    try:
        return loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged ({error}); expected JSON written by perfkit") from None


def read_object(path: Path, expected: str, kind: str, version: int) -> dict[str, Any]:
    """Return the object in a JSON file that states its format. Raises BundleError for another format, as read_json.

    `kind` names the object in the error, for example "a bundle".
    """
    content = read_json(path, expected)
    format_ = content.get("format") if isinstance(content, dict) else None
    if format_ != version:
        raise BundleError(f"{path}: format {format_!r}; expected {kind} of format {version}")
    return dict(content)

"""What people read, frozen: pages, tables and help made from runs on disk stay as they are, word for word.

`PERFKIT_GOLDEN=write` writes the texts anew after a change of words that is meant; the diff is then the review.
The numbers of each text stand apart, as one hash, and are written by `PERFKIT_GOLDEN=numbers` only: whoever changes
words sees at once whether a number moved with them.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from perfkit.app.cli import main
from perfkit.base.resources import CHECKOUT

HERE = CHECKOUT / "tests"
GOLDEN, STORED = HERE / "golden", HERE / "stored"
NUMBERS = GOLDEN / "numbers.json"
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
# What differs from one making to the next: the time of making, versions of this machine, seals over both.
_CHANGING = (
    (re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?( ?UTC|Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{12,64}\b|\b[0-9a-f]{8}( [0-9a-f]{8}){7}\b"), "<hash>"),
)


class _Text(HTMLParser):
    """The words of a page in their order: text, and what pictures say of themselves."""

    _BLOCKS = frozenset("p div section tr li dt dd h1 h2 h3 h4 summary details table figure figcaption pre br".split())

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "script", "title"):
            self._silent = tag
        if tag in self._BLOCKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        for name, value in attrs:
            if name in ("aria-label", "alt") and value:
                self.parts.append(f" [{value}] ")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._silent:
            self._silent = ""

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def words(page: str) -> str:
    """A page's text, a line for each of its blocks."""
    text = "".join(_Text(page).parts)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def steady(text: str, *folders: Path) -> str:
    """A text without what changes from one making to the next."""
    for folder in folders:
        text = text.replace(str(folder), "<folder>")
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    return text


def same(name: str, text: str) -> None:
    """Compare a text with its golden file, and its numbers with their hash."""
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    found = hashlib.sha256("\n".join(_NUMBER.findall(text)).encode()).hexdigest()
    mode, file = os.environ.get("PERFKIT_GOLDEN", ""), GOLDEN / f"{name}.txt"
    if mode in ("write", "numbers"):
        file.write_text(text, encoding="utf-8")
    if mode == "numbers":
        NUMBERS.write_text(json.dumps(numbers | {name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert text == file.read_text(encoding="utf-8")
    assert found == numbers[name], f"{name}: a number changed, or their order"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Unpack a run kept by an earlier version; each is unpacked once."""
    base = tmp_path_factory.mktemp("stored")

    def unpacked(name: str) -> Path:
        if not (base / name).exists():
            with tarfile.open(STORED / f"{name}.tar.xz") as archive:
                archive.extractall(base / name, filter="data")
        return base / name

    yield unpacked


def run(*arguments: str | Path, code: int = 0) -> str:
    """A command's output. Fails unless it ends with this exit code."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command below this one, by the words one types."""
    yield path
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], (*path, name))


def test_the_help_of_every_command() -> None:
    pages = [f"$ perfkit {' '.join(path)}\n{run(*path, '--help')}" for path in commands(main)]
    same("help", "\n".join(pages))


@pytest.mark.slow  # it executes a notebook
def test_a_report_with_its_verdict_and_summary(stored: Callable[[str], Path], tmp_path: Path) -> None:
    folder = stored("run")
    run("report", "--bundle", folder)
    same("report", steady(words((folder / "report.html").read_text()), folder, tmp_path))
    same("verdict", steady((folder / "verdict.json").read_text(), folder))
    same("summary", steady((folder / "summary.md").read_text(), folder))


@pytest.mark.slow  # it executes a notebook
def test_a_gate_on_that_run(stored: Callable[[str], Path]) -> None:
    folder = stored("run")
    run("report", "--bundle", folder)
    shown = run("gate", folder, "--answer", "Team ready for launch=yes", "--by", "Ops", code=100)
    same("gate", steady(shown + words((folder / "decision.html").read_text()), folder))


@pytest.mark.slow  # it executes a notebook
def test_an_index_lab(stored: Callable[[str], Path]) -> None:
    folder = stored("lab")
    shown = run("indexes", "ablate", "--bundle", folder)
    same("lab", steady(shown + words((folder / "index_lab.html").read_text()), folder))


@pytest.mark.slow  # it executes a notebook
def test_a_review_of_a_watch(stored: Callable[[str], Path]) -> None:
    folder = stored("watch")
    shown = run("review", folder)
    page = words((folder / "review.html").read_text())
    same("review", steady(shown + page + (folder / "review.md").read_text(), folder))


def test_slow_statements_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STORED)  # a path of any other length would wrap other lines
    shown = run("slow", "log", "server.json", "--html", tmp_path / "slow.html")
    same("slow", steady(shown + words((tmp_path / "slow.html").read_text()), STORED, tmp_path))


@pytest.mark.parametrize("case", ["aggregate_spilled", "append_pruned_later", "bitmap_and"])
def test_a_plan_and_its_page(case: str, tmp_path: Path) -> None:
    file = HERE / "plans" / "18" / f"{case}.json"
    shown = run("explain", file)
    run("explain", file, "--format", "html", "--output", tmp_path / "plan.html")
    same(f"plan-{case}", steady(shown + words((tmp_path / "plan.html").read_text()), file.parent, tmp_path))

"""The review as a command, as files and as a notebook: on a watch's folder, with the run before the release."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_browser
from click.testing import CliRunner, Result
from matplotlib import pyplot
from synthetic import make_run
from watching import about, quiet, with_incident, without

import perfkit
from perfkit import config
from perfkit.app.cli import main
from perfkit.base.resources import CHECKOUT
from perfkit.monitor import review_report as reports
from perfkit.monitor import store
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.model import Event, Tick
from perfkit.monitor.review import ReportedValue
from perfkit.monitor.review_report import reported_values

HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\u202etxt|`*"
RATING = ["--value", "User rating=4.3", "--by", "Product Lead"]


def written(folder: Path, ticks: list[Tick], monkeypatch: pytest.MonkeyPatch, title: str = "") -> Path:
    """A watch's folder with these intervals and the events that they lead to."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # eight thousand of them take a minute
    booking, said = config.load(), about(title=title)
    kept, watcher = store.Store.open(folder, said), Alerts(booking.watch, said)
    for tick in ticks:
        kept.append(tick)
        for event in watcher.step(tick):
            kept.add(event)
    if title:
        kept.add(Event("note", "note-1", ticks[-1].t, ticks[-1].at, title))
    kept.close()
    return folder


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours in which the service was down for 90 s."""
    with pytest.MonkeyPatch.context() as patch:
        ticks = with_incident(quiet(2), "service-down", 3600, 90)
        return written(tmp_path_factory.mktemp("a watch with spaces") / "watch", ticks, patch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "before-release").path


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["review", *map(str, args)])


@pytest.fixture(scope="module")
def day(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A day with an outage, a slow spell and a gap, reviewed: its folder, and what the command said."""
    ticks = with_incident(with_incident(quiet(24), "service-down", 36000, 95), "slow", 21600, 1200, 650)
    with pytest.MonkeyPatch.context() as patch:
        watch = written(tmp_path_factory.mktemp("day") / "watch", without(ticks, 54000, 54600), patch)
    return watch, command(watch, "--against", run, *RATING, "--gate")


@pytest.mark.slow
def test_a_day_is_reviewed_on_one_page_that_asks_for_nothing(day: tuple[Path, Result]) -> None:
    watch, done = day
    assert done.exit_code == 99, done.output
    assert "✕ Investigate" in done.stdout and done.stdout.rstrip().endswith("review.html")
    html = (watch / "review.html").read_text()
    heads = re.findall(r"<h[12][^>]*>(?:<span>)?([^<]*)", html)
    titles = ["Availability", "Incidents", "Latency over time", "Before and after the release", "Method"]
    assert heads == ["✕ Investigate", *titles]
    assert all(f">{target.name}</th>" in html for target in config.load().review.target)
    assert "Content-Security-Policy" in html and "api.review" not in html
    assert not re.search(r"<script|<link|src=\"http", html)
    assert len(html.encode()) < 700_000


@pytest.mark.slow
def test_the_same_record_gives_the_same_bytes(day: tuple[Path, Result], run: Path) -> None:
    watch, _ = day
    first = {name: (watch / name).read_bytes() for name in ("review.html", "review.json", "review.md")}
    assert command(watch, "--against", run, *RATING).exit_code == 0
    assert {name: (watch / name).read_bytes() for name in first} == first


@pytest.mark.slow
@pytest.mark.system
@needs_browser
@pytest.mark.parametrize(
    ("width", "dark", "media"), [(1200, False, "screen"), (390, True, "screen"), (703, False, "print")]
)
def test_it_fits_its_medium(day: tuple[Path, Result], tmp_path: Path, width: int, dark: bool, media: str) -> None:
    page = day[0] / "review.html"
    with browser(tmp_path) as tab:
        tab.open(page.as_uri(), width=width, dark=dark, media=media)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.requests() == [page.as_uri()] and tab.complaints() == []


@pytest.mark.slow
def test_text_from_elsewhere_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = written(tmp_path / "watch", quiet(1), monkeypatch, title=HOSTILE)
    done = command(
        watch,
        "--value",
        "User rating=4.3",
        "--by",
        "<script>alert(1)</script>",
        "--out",
        tmp_path / "kept" / "page.html",
    )
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    html = (tmp_path / "kept" / "page.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html
    assert "<script" not in (tmp_path / "kept" / "page.md").read_text().replace("\\<", "")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["page.html", "page.json", "page.md"]
    assert not (watch / "review.html").exists()


def test_the_table_has_actuals_evidence_and_what_is_still_to_be_shown(hours: Path, run: Path) -> None:
    found = perfkit.review(hours, against=run, values={"User rating": 4.3}, by="Product Lead")
    table = repr(found.table).replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"P95 latency +≤ 500 ms +\d{3} ms \(\d{3} ms to \d{3} ms\) +✓ met +\d\d,\d{3} answers in", table)
    assert re.search(
        r"Throughput +≥ 30/s +\d+/s .*✓ met +before the release, under load: 30 at once, after-full", table
    )
    assert re.search(r"Availability +≥ 99.9 % +98.\d+ % +✕ missed", table)
    assert re.search(r"User rating +≥ 4 stars +4.3 stars +✓ met +reported by Product Lead", table)
    assert "less than 24 h" in repr(found.recommendation)


def test_the_run_before_the_release_stands_beside_and_is_no_verdict(hours: Path, run: Path) -> None:
    shown = repr(perfkit.review(hours, against=run, arm="after-index").against)
    assert re.search(r"book +p95 +.*ms \(1 request at a time\) +.*ms \(30 at once\)", shown.replace("\xa0", " "))
    assert "arm after-index" in shown and "not the same load, so not compared" in shown
    assert "--against RUN" in repr(perfkit.review(hours).against)


def test_the_strip_of_the_day_says_when_it_was_down(hours: Path) -> None:
    found = perfkit.review(hours)
    assert "10:00:00 to 10:01:30 down" in repr(found.availability)
    assert 'role="img"' in found.availability.html() and "<desc" in found.availability.html()
    assert "p95: " in repr(found.latency_over_time)


def test_the_page_on_watches_computes_and_draws_something_of_ones_own(
    hours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (CHECKOUT / "docs" / "watch.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (hours.parent / "live").symlink_to(hours)
    monkeypatch.chdir(hours.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    assert list(names["review"].frame.columns) == re.findall(r"`(\w+)`", page[page.index("The columns are") :])
    assert names["hourly"].max() > 500 and names["above"].get_ylabel() == "p95, ms"
    pyplot.close("all")


def test_a_machine_reads_the_same(hours: Path) -> None:
    read = json.loads(reports.as_json(perfkit.review(hours).reviewed))
    assert (read["from"], read["until"]) == ("2026-01-15T09:00:00Z", "2026-01-15T11:00:00Z")
    assert read["recommendation"]["result"] == "missed"
    rows = {row["target"]["name"]: row for row in read["rows"]}
    assert rows["Availability"]["actual"]["value"] == pytest.approx(1 - 90 / 7200)
    assert rows["Error rate"]["actual"]["lo"] is None and rows["User rating"]["actual"]["value"] is None
    (incident,) = read["incidents"]
    assert incident["level"] == "P1" and incident["began"] == "2026-01-15T10:00:00Z"
    assert incident["timeline"][0]["stage"] == "began"


def test_a_watch_that_still_runs_is_only_read(hours: Path, tmp_path: Path) -> None:
    watch = Path(shutil.copytree(hours, tmp_path / "watch"))
    with closing(store.Store.open(watch, about())) as running:
        running.append(quiet(3)[-1])
        before = {path: path.read_bytes() for path in watch.iterdir()}
        assert len(perfkit.review(watch).reviewed.period.ticks) == 721
        assert {path: path.read_bytes() for path in watch.iterdir()} == before


def test_a_restarted_watch_gives_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = quiet(1)
    whole = written(tmp_path / "whole", ticks, monkeypatch)
    parts = written(written(tmp_path / "parts", ticks[:100], monkeypatch), ticks[100:], monkeypatch)
    one, other = (perfkit.review(folder).reviewed.rows for folder in (whole, parts))
    assert one == other


def test_values_are_said_by_somebody() -> None:
    assert reported_values("User rating=4.3\nA=b=-1e2", " QA ") == {
        "User rating": ReportedValue(4.3, "QA"),
        "A=b": ReportedValue(-100.0, "QA"),
    }


def test_a_page_that_is_interrupted_leaves_nothing_beside_an_older_one(
    hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reports, "page_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        perfkit.review(hours).render(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["{watch}", "--value", "User rating=good", "--by", "QA"], 2, "expected NAME=X with a number"),
        (["{watch}", "--value", "User rating=nan", "--by", "QA"], 2, "expected NAME=X with a number"),
        (["{watch}", "--value", "4.3", "--by", "QA"], 2, "expected NAME=X with a number"),
        (["{watch}", "--value", "User rating=4.3"], 2, "has no reporter; expected --by WHO"),
        (
            ["{watch}", "--value", "User rating=4", "--value", "User rating=3", "--by", "QA"],
            2,
            "'User rating' is given twice; expected one value",
        ),
        (["{watch}", "--by", "QA"], 2, "--by QA has no value to report; expected --value NAME=X"),
        (["{watch}", "--value", "User rating=4", "--by", "Q\x1b[31m"], 2, "expected a name in one line"),
        (["{watch}", "--value", "Stars=4.3", "--by", "QA"], 2, "value 'Stars': no such target"),
        (["{watch}", "--value", "P95 latency=4", "--by", "QA"], 2, "this target is measured; expected one that is not"),
        (["{watch}", "--since", "2027-01-01"], 2, "no interval of the watch in that time"),
        (["{watch}", "--last", "a day"], 2, "expected a time like 90s, 24h or 2d"),
        (["{watch}", "--config", "gone.toml"], 2, "gone.toml: no such file"),
        (["{watch}", "--arm", "after-full"], 2, "expected the run of this arm too: --against RUN"),
        (["{watch}", "--against", "{run}", "--arm", "later"], 2, "arm 'later' is unknown; expected one of: before"),
        (["{watch}", "--against", "{watch}"], 1, "run.json: no such file; expected a bundle's folder"),
        (["{run}"], 1, "holds a run; expected the folder of a watch, and the run as --against RUN"),
        (["gone"], 1, "gone"),
        (["{watch}", "--out", "/proc/gone/page.html"], 1, "cannot be written"),
        (["{watch}", "--out", "page.json"], 2, "page.json: expected a name that ends in .html"),
        (["{watch}", "--out", "{watch}/watch.html"], 2, "expected review... there, or another folder"),
        (["{watch}", "--out", "{watch}/ticks.jsonl"], 2, "expected review... there, or another folder"),
        (["{watch}", "--out", "{run}/decision.html"], 2, "expected review... there, or another folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line(hours: Path, run: Path, args: list[str], code: int, said: str) -> None:
    done = command(*(arg.format(watch=hours, run=run) for arg in args))
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr

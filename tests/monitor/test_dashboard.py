"""The page of a watch: what stands, five panels, the server, what happened; it requests nothing and runs nothing."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import watching
from browser import assert_charts_have_words, browser, needs_browser
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit import config
from perfkit.base.errors import BundleError
from perfkit.base.stats import MIN_SAMPLES
from perfkit.monitor import dashboard
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.charts import MAX_POINTS, Line, WatchSeries
from perfkit.monitor.model import About, Event, Period, Probe, Record, Tick
from perfkit.monitor.store import Store

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202etxt$\\frac{$"
HOUR, DAY = 3600.0, 86_400.0


def events(ticks: Sequence[Tick]) -> list[Event]:
    alerts = Alerts(config.load().watch, watching.about())
    return [event for tick in ticks for event in alerts.step(tick)]


def recorded(ticks: Sequence[Tick], about: About | None = None) -> Record:
    return Record(about or watching.about(), ticks, events(ticks))


def page(record: Record, late_s: float = 4.0, *, running: bool = True) -> str:
    return dashboard.page(record, record.ticks[-1].at + late_s if record.ticks else watching.BEGAN, running=running)


def plain(text: str) -> str:
    """What a page says, without its markup."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\N{NO-BREAK SPACE}", " ").split())


def panels(text: str) -> dict[str, str]:
    """The figures of the first section, by their title."""
    section = text[text.index("<h2>Last") : text.index("<table", text.index("<h2>Last"))]
    figures = re.findall(r"<figure><figcaption>(.*?) <span>.*?</figure>", section, re.DOTALL)
    bodies = re.findall(r"<figure>.*?</figure>", section, re.DOTALL)
    return dict(zip(figures, bodies, strict=True))


@pytest.fixture(scope="module")
def quiet() -> Record:
    return recorded(watching.quiet(1))


@pytest.fixture(scope="module")
def eventful() -> Record:
    """Two hours: slow for a while, nobody watching for a while, and the service down at the end."""
    ticks = watching.with_incident(watching.quiet(2), "slow", 4200, 900)
    ticks = watching.with_incident(ticks, "service-down", 2 * HOUR - 120, 120)
    return recorded(watching.without(ticks, 5600, 5900))


@pytest.fixture(scope="module")
def eventful_page(eventful: Record) -> str:
    return page(eventful)


@pytest.fixture(scope="module")
def day() -> Record:
    ticks = watching.with_incident(watching.quiet(24), "errors", 0.4 * DAY, 1200, 0.08)
    ticks = watching.with_incident(ticks, "service-down", 0.6 * DAY, 60)
    return recorded(watching.without(ticks, 0.8 * DAY, 0.8 * DAY + 3600))


@pytest.fixture(scope="module")
def day_page(day: Record) -> str:
    return page(day)


@pytest.fixture(scope="module")
def hostile_page() -> str:
    about = watching.about(title=HOSTILE).model_copy(update={"target": HOSTILE, "kinds": {HOSTILE: "request"}})
    ticks = [
        replace(
            tick, probes={HOSTILE: replace(tick.probes["book"], outcomes={"ok": 20, HOSTILE: 1})}, scans={HOSTILE: 0}
        )
        for tick in watching.quiet(0.2)
    ]
    at = watching.BEGAN + 100
    bad = [
        Event("raised", "e1", 100, at, HOSTILE, HOSTILE, HOSTILE, 90, 1e300, -1e-300, HOSTILE),
        Event("cleared", HOSTILE, 100, at, HOSTILE, HOSTILE, HOSTILE),
        Event("note", "n", 100, at, HOSTILE),
    ]
    return page(Record(about, ticks, bad, damaged=1))


def test_a_quiet_watch_says_so_and_for_how_long(quiet: Record) -> None:
    said = plain(page(quiet))
    assert "ALL QUIET No alert since 2026-01-15 09:00 UTC, for 1 h." in said
    assert "4 s after the last interval ended" in said and "rewritten about every 30 s" in said


def test_what_stands_comes_first_with_its_numbers_and_what_to_do(eventful_page: str) -> None:
    said = plain(eventful_page)
    headline = said[said.index("P1 ") :]
    assert "P1 service-down" in headline[:200] and "roll back" in headline[:400]
    assert re.search(r"P1 service-down, for 2 min, now 2 min", said)


def test_an_alert_of_the_gravest_level_is_the_word(eventful_page: str) -> None:
    assert re.search(r"<h1><span>P1 [a-z0-9-]+</span></h1>", eventful_page)


def test_a_watch_that_is_late_or_gone_is_not_all_quiet(quiet: Record) -> None:
    late = plain(page(quiet, 400))
    assert "NOT WATCHING" in late and "has written nothing for 40 intervals, since 2026-01-15 10:00:00 UTC" in late
    ended = page(quiet, 4000, running=False)
    assert "ENDED The watch has ended: its last interval was at 2026-01-15 10:00:00 UTC" in plain(ended)
    assert "ALL QUIET" not in late + ended


def test_it_loads_itself_again_only_while_the_watch_goes_on(quiet: Record) -> None:
    again = '<meta http-equiv="refresh" content="30">'
    assert again in page(quiet)
    assert 'http-equiv="refresh"' not in page(quiet, running=False)
    slow = replace(quiet, about=quiet.about.model_copy(update={"every_s": 120.0}))
    assert '<meta http-equiv="refresh" content="120">' in page(slow)


def test_the_five_panels_show_limits_alerts_downtime_and_gaps(eventful_page: str) -> None:
    found = panels(eventful_page)
    assert list(found) == [
        "P50 latency, ms",
        "P95 latency, ms",
        "P99 latency, ms",
        "Error rate, %",
        "Throughput, per second",
    ]
    p95 = found["P95 latency, ms"]
    assert all(f">{word}<" in p95 for word in ("P2", "P1", "P2 600", "P3 500", "down", "unwatched"))
    assert ">P3 0.100<" in found["Error rate, %"] and re.search(r">P2 2\.\d+<", found["Throughput, per second"])
    assert "gap not watched for 5 min" in plain(eventful_page)


def test_every_picture_has_its_own_words(day_page: str) -> None:
    assert_charts_have_words(day_page, 10)


def test_the_page_of_a_day_is_small(day_page: str) -> None:
    assert len(day_page.encode()) < 1_000_000
    said = plain(day_page)
    assert "Last 1 h" in said and "Last 24 h" in said
    assert re.search(r"Availability 100 % 100 % 99\.9\d+ %", said)


def test_the_page_of_a_day_without_a_quiet_minute_is_small_too(day: Record) -> None:
    broken = Probe({"timeout": 20})
    ticks = [replace(tick, probes={"book": broken}) if tick.n % 2 else tick for tick in day.ticks]
    told = [
        Event(what, f"e{n}", 20.0 * n + later, watching.BEGAN, "x", "lock-held", "P2", since=20.0 * n)
        for n in range(4000)
        for what, later in (("raised", 0), ("cleared", 10))
    ]
    text = page(replace(day, ticks=ticks, events=told))
    assert len(text.encode()) < 1_000_000
    assert "3,961 earlier ones are in events.jsonl" in plain(text)  # and the gap


def test_alerts_are_listed_from_since_to_until(eventful_page: str) -> None:
    said = plain(eventful_page)
    rows = said[said.index("level what since until") :]
    assert re.search(r"P1 service-down .*?2026-01-15 10:58:00 active", rows)
    assert re.search(r"P2 latency-600 p95 [^:]+.*?2026-01-15 10:\d\d:\d\d 2026-01-15 10:\d\d:\d\d", rows)


def test_the_server_is_shown_as_far_as_it_says_something(quiet: Record) -> None:
    said = plain(page(quiet))
    assert "Connections 1" in said and "of 100" in said and "Pages found in shared buffers" in said
    mute = [*quiet.ticks[:-1], replace(quiet.ticks[-1], server=None)]
    assert "the database does not answer" in plain(page(replace(quiet, ticks=mute)))
    never = [replace(tick, server={}) for tick in quiet.ticks]
    assert "not watched" in plain(page(replace(quiet, ticks=never)))
    few = [replace(tick, server={"connections": 7.0}) for tick in quiet.ticks]
    assert "Connections 7 " in plain(page(replace(quiet, ticks=few)))


def test_indexes_that_nobody_used_are_named(quiet: Record) -> None:
    ticks = [replace(tick, scans={"used": tick.n, "idle": 3}) for tick in quiet.ticks]
    assert "Indexes used 1 of 2 since the watch began not used: idle" in plain(page(replace(quiet, ticks=ticks)))


def test_a_watch_without_an_interval_or_with_one_has_a_page(quiet: Record) -> None:
    assert "has no interval yet" in plain(page(replace(quiet, ticks=[], events=[])))
    one = plain(page(replace(quiet, ticks=quiet.ticks[:1], events=[])))
    assert "ALL QUIET" in one and "Not enough samples yet." in one
    empty = Tick(0, 10.0, watching.BEGAN + 10, 10.0, {}, {})
    assert "ALL QUIET" in plain(page(replace(quiet, ticks=[empty], events=[])))


def test_a_watch_of_queries_alone_shows_those(quiet: Record) -> None:
    about = quiet.about.model_copy(update={"kinds": {"conflict_check": "query"}})
    ticks = [replace(tick, probes={"conflict_check": tick.probes["conflict_check"]}) for tick in quiet.ticks]
    said = plain(page(Record(about, ticks, [])))
    assert "Of conflict_check, from when each was due" in said and re.search(
        r"P50 latency, ms 1\d\.\d ms, last 5 min", said
    )


@pytest.mark.parametrize("which", ["hostile_page", "day_page"])
def test_nothing_becomes_markup(which: str, request: pytest.FixtureRequest) -> None:
    text: str = request.getfixturevalue(which)
    assert not re.search(r"<(script|img|iframe|object|embed|link|form|base)\b", text)
    assert not set("\x1b\u202e") & set(text)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', text)
    assert not [address for address in addresses if not address.startswith("#")]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert text.index(policy) < text.index("<title>") < text.index("<style>")


def test_the_same_record_at_the_same_time_gives_the_same_bytes(eventful: Record, eventful_page: str) -> None:
    assert page(eventful) == eventful_page


# What the lines are made of.


def values(line: Line) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return line.y[np.isfinite(line.y)]


def probes(ms: Sequence[Sequence[float]], every_s: float = 10.0) -> WatchSeries:
    about = watching.about().model_copy(update={"kinds": {"book": "request"}})
    ticks = [
        Tick(
            n,
            (n + 1) * every_s,
            watching.BEGAN + (n + 1) * every_s,
            every_s,
            {"book": Probe({"ok": len(own)}, ms=tuple(own))},
        )
        for n, own in enumerate(ms)
    ]
    return WatchSeries(Period(ticks), about)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0.1, 1e5), max_size=40), min_size=1, max_size=60))
def test_a_line_is_short_and_within_its_samples(ms: list[list[float]]) -> None:
    series, every = probes(ms), [value for own in ms for value in own]
    for q in (50, 95, 99):
        line = series.percentile(q)
        assert len(line.x) <= MAX_POINTS + 1 and line.width >= 10
        if len(found := values(line)):
            assert min(every) <= found.min() and found.max() <= max(every) and len(every) >= MIN_SAMPLES[q]
    slowest = values(series.slowest())
    assert (slowest.max() == max(every)) if every else not len(slowest)


def test_a_percentile_is_of_all_answers_of_its_stretch_and_never_a_mean_of_percentiles() -> None:
    random = np.random.default_rng(5)
    ms = random.lognormal(5, 1, (360, 20))
    line = probes(ms.tolist()).percentile(95)
    per = int(line.width / 10)
    assert per > 1 and per * 20 >= MIN_SAMPLES[95]
    assert line.y[3] == pytest.approx(np.percentile(ms[3 * per : 4 * per], 95))


def test_the_slowest_answer_of_a_day_is_in_the_picture(day: Record) -> None:
    slowest = max(ms for tick in day.ticks for name in watching.REQUESTS for ms in tick.probes[name].ms)
    assert values(WatchSeries(Period(day.ticks), day.about).slowest()).max() == slowest


def test_a_line_breaks_where_nobody_watched_and_where_nothing_was_answered(day: Record) -> None:
    series = WatchSeries(Period(day.ticks), day.about)
    for line in (series.percentile(50), series.throughput(), series.error_rate()):
        gone = line.x[np.isnan(line.y)]
        assert len(gone) and ((gone > 0.8 * DAY - line.width) & (gone < 0.8 * DAY + 3600 + line.width)).all()
    silent = probes([[5.0] * 20, [], [7.0] * 20])
    assert np.isnan(silent.percentile(50).y).tolist() == [False, True, False]


# The command.


def written(folder: Path, record: Record) -> Store:
    store = Store.open(folder, record.about)
    for tick in record.ticks:
        store.append(tick)
    for event in record.events:
        store.add(event)
    return store


def command(*args: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "perfkit.monitor.dashboard", *args], capture_output=True, text=True)


@pytest.mark.process
def test_the_command_writes_the_page_and_says_nothing(tmp_path: Path, quiet: Record) -> None:
    folder = tmp_path / "a watch"
    now = replace(quiet, ticks=quiet.ticks[:90], events=[])
    store = written(folder, now)
    done = command(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (folder / "watch.html").read_text()
    assert "NOT WATCHING" in text  # it is held, and the last interval is long ago
    store.close()
    dashboard.write(folder)
    assert "ENDED" in (folder / "watch.html").read_text()
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".html" or path.name.startswith(".")) == [
        "watch.html"
    ]
    Store.open(folder, now.about).close()  # nothing holds it


@pytest.mark.process
@pytest.mark.parametrize("make", ["nothing", "empty", "run", "settings"])
def test_a_folder_of_something_else_is_one_line(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "f"
    if make != "nothing":
        folder.mkdir()
    if make == "run":
        (folder / "run.json").write_text("{}")
    if make == "settings":
        about = watching.about().model_copy(update={"settings": {"watch": {"every_s": HOSTILE}}})
        (folder / "watch.json").write_text(json.dumps(about.model_dump(mode="json")))
        (folder / "ticks.jsonl").write_text(watching.quiet(0.01)[0].line() + "\n")
    done = command(folder)
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "expected" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(BundleError):
        dashboard.write(folder)


@pytest.mark.process
def test_without_a_folder_it_says_how_it_is_called() -> None:
    done = command()
    assert done.returncode == 1 and done.stderr == "usage: python -m perfkit.monitor.dashboard FOLDER\n"


# In a browser.


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize("which", ["eventful_page", "hostile_page"])
def test_a_browser_requests_nothing_and_complains_about_nothing(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "watch.html"
    path.write_text(request.getfixturevalue(which))
    with browser(tmp_path / "p") as tab:
        tab.open(path.as_uri())
        tab.evaluate("document.querySelectorAll('td, th, li, figure').forEach(e => e.click())")
        assert tab.requests() == [path.as_uri()]
        assert tab.complaints() == []
        tree = tab.call("Accessibility.getFullAXTree")["nodes"]
        roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
        assert roles.count("main") == 1 and roles.count("table") >= 3
        named = [
            node.get("name", {}).get("value") for node in tree if node["role"]["value"] in ("image", "img", "region")
        ]
        assert named and all(named)


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (390, False), (390, True)])
def test_it_fits_its_medium(eventful_page: str, tmp_path: Path, width: int, dark: bool) -> None:
    path = tmp_path / "watch.html"
    path.write_text(eventful_page)
    with browser(tmp_path / "p") as tab:
        tab.open(path.as_uri(), width=width, dark=dark)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        red = int(re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red < 64 if dark else red > 240
        assert tab.evaluate("document.querySelector('.decision h1').getBoundingClientRect().bottom") < 300

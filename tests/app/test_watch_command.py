"""`perfkit watch` as it is called: what it refuses and in which words, what it prints, its dashboard's process."""

import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import watching
from click.testing import CliRunner
from watched import until

import perfkit
from perfkit import config
from perfkit.app.cli import main
from perfkit.base.errors import PerfkitError, TargetRefused, UsageError
from perfkit.config import Watch
from perfkit.monitor import notifications
from perfkit.monitor.loop import Loop, WatchSummary, stopping, with_overrides
from perfkit.monitor.model import Event
from perfkit.monitor.notifications import Renewal, event_line, status_line
from perfkit.monitor.prober import plan_probes
from perfkit.monitor.store import Store, read
from perfkit.postgres.guards import Permission

LIVE = """
title = "Mine"
allow = ["http://127.0.0.1:9", "127.0.0.1:9/shop"]
[database]
target = "host=127.0.0.1 port=9 dbname=shop user=me"
way = "in-place"
[service]
{service}
[[request]]
name = "page"
path = "/page"
[[request]]
name = "order"
path = "/orders"
method = "POST"
[[scenario]]
name = "all"
label = "all"
send = ["page"]
[[arm]]
name = "live"
role = "before"
"""
CONFIRMED = Permission(confirm=("http://127.0.0.1:9", "127.0.0.1:9/shop"))


@pytest.fixture
def live(tmp_path: Path) -> Callable[..., Path]:
    def write(more: str = "", service: str = 'url = "http://127.0.0.1:9"') -> Path:
        path = tmp_path / "perfkit.toml"
        path.write_text(LIVE.format(service=service) + more)
        return path

    return write


def refusal(*args: str | Path) -> tuple[int, str]:
    """The exit code, and the one line on stderr."""
    done = CliRunner().invoke(main, ["watch", *map(str, args)])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.exit_code, done.stderr.removeprefix("perfkit: ").rstrip()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--for", "soon"], "for = 'soon'; expected a time like 90s, 24h or 2d"),
        (["--for", "0s"], "for = '0s'; expected a time like 90s, 24h or 2d"),
        (["--every", "10"], "every = '10'; expected a time like 90s, 24h or 2d"),
        (["--every", "100ms"], "every = '100ms'; expected a time like 90s, 24h or 2d"),
        (["--every", "0.1s"], "watch: every_s = 0.1; expected: Input should be greater than or equal to 0.5"),
        (["--every", "10min"], "window_s = 300 of at least one interval, every_s = 600"),
        (["--rate", "100"], "watch: rate = 100.0; expected: Input should be less than or equal to 20"),
        (
            ["--notify", "no-such-program now"],
            "notify: no program 'no-such-program'; expected a command that can be run",
        ),
        (["--notify", "say 'it"], "No closing quotation; expected a command and its arguments"),
        (["--arm", "nothing"], "arm 'nothing' is unknown"),
        (["--metrics", "99999"], "metrics = '99999'; expected PORT from 0 to 65535, or ADDRESS:PORT"),
        (["--scale", "huge"], "scale 'huge'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(args: list[str], words: str, tmp_path: Path) -> None:
    code, said = refusal(*args, "--folder", tmp_path / "watch")
    assert code == 2 and words in said
    assert not (tmp_path / "watch").exists()


def test_a_target_that_nobody_confirmed_is_refused_and_nothing_is_left(
    live: Callable[..., Path], tmp_path: Path
) -> None:
    code, said = refusal("--config", live(), "--folder", tmp_path / "watch")
    assert code == 97 and "was not started by perfkit; to use it: --confirm" in said
    with pytest.raises(TargetRefused):
        perfkit.watch(config=live(), reports=tmp_path / "reports")
    assert list((tmp_path / "reports").iterdir()) == []


def test_it_does_not_start_a_service_on_a_database_of_the_users(live: Callable[..., Path]) -> None:
    settings = config.load(live(service='command = ["{python}"]'))
    with pytest.raises(UsageError, match=r"\[service\] is started by perfkit on a database of yours; expected its url"):
        plan_probes(settings, CONFIRMED)


def test_probes_keep_to_the_rate_that_the_target_is_limited_to(live: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"watch: 1 x 2/s; expected at most limits.rate = 1.5/s"):
        plan_probes(config.load(live("[limits]\nrate = 1.5")), CONFIRMED)


def test_only_requests_that_are_sent_need_a_permission(live: Callable[..., Path]) -> None:
    plan = plan_probes(config.load(live()), CONFIRMED)
    assert (list(plan.items), plan.live, plan.name) == (["page"], True, "http://127.0.0.1:9 and 127.0.0.1:9/shop")
    with pytest.raises(TargetRefused, match="request order may change data there"):
        plan_probes(config.load(live('[watch]\nsend = ["order"]')), CONFIRMED)
    plan_probes(config.load(live('[watch]\nsend = ["order"]', 'url = "http://127.0.0.1:9"\nwrites = true')), CONFIRMED)


def test_there_must_be_something_to_send(live: Callable[..., Path]) -> None:
    path = live()
    path.write_text(
        path.read_text().replace('name = "page"\npath = "/page"', 'name = "page"\npath = "/"\nmethod = "PUT"')
    )
    with pytest.raises(UsageError, match="watch: nothing to send; expected requests in 'send', or a GET or a query"):
        plan_probes(config.load(path), CONFIRMED)


def test_the_command_line_outranks_the_file_and_leaves_the_rest() -> None:
    own = Watch(every_s=20, rate=1, timeout_s=3)
    assert with_overrides(own) == own
    assert with_overrides(own, 5, 4, ["page-me"]) == Watch(every_s=5, rate=4, timeout_s=3, notify=("page-me",))


def test_the_line_that_is_rewritten_says_what_is_known() -> None:
    figures = {"p50_ms": 12.34, "p95_ms": None, "error_rate": 0.0123, "throughput": 3.996}
    assert status_line(150, figures, []) == "watching: 2 min 30 s, p50 12.3 ms, p95 –, errors 1.2 %, 4.00/s; no alert"
    standing = [event(rule="latency-1000", level="P1"), event(rule="\x1b[2J", level="P2")]
    assert status_line(5, {}, standing).endswith("errors –, –; P1 latency-1000, P2 ⟨1B⟩[2J")


def event(text: str = "p95 is 1,200 ms", **more: str) -> Event:
    return Event("raised", "w1-1", 30.0, watching.BEGAN + 30, text, **more)


def test_an_event_is_one_line_and_holds_nothing_that_a_terminal_obeys() -> None:
    assert event_line(event(level="P1", action="roll back")) == "09:00:30  P1 raised  p95 is 1,200 ms"
    assert event_line(event("\x1b]0;x\x07", level="P1")) == "09:00:30  P1 raised  ⟨1B⟩]0;x⟨07⟩"


def test_the_last_line_says_how_long_how_available_and_which_alerts() -> None:
    ended = WatchSummary(Path("live"), 3600.0, 0.99954, {"P1": 1, "P2": 0, "P3": 2}, ("a",))
    assert str(ended) == repr(ended) == ("watched for 1 h: availability 99.954 %; alerts: 1 P1, 2 P3 (a active); live")


def test_the_last_line_comes_from_the_folder(tmp_path: Path) -> None:
    store, ticks = Store.open(tmp_path, watching.about()), watching.quiet(0.05)
    assert "availability unknown; alerts: none; " in str(WatchSummary.of(tmp_path))
    raised = [
        replace(event(rule=name, level=level), id=name) for name, level in (("a", "P1"), ("b", "P3"), ("c", "P3"))
    ]
    for tick in ticks:
        store.append(tick)
    for one in (*raised, replace(raised[1], what="cleared"), replace(raised[2], what="cleared")):
        store.add(one)
    store.close()
    ended = WatchSummary.of(tmp_path)
    assert (ended.seconds, ended.availability) == (180.0, 1.0)
    assert (ended.raised, ended.standing) == ({"P1": 1, "P2": 0, "P3": 2}, ("a",))


# The dashboard's process


@pytest.fixture
def notes() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def made(tmp_path: Path, notes: list[tuple[str, str]]) -> Callable[[str], Renewal]:
    def make(code: str) -> Renewal:
        own = Renewal(tmp_path, 1.0, lambda *note: notes.append(note))
        own._command = [sys.executable, "-c", code]
        return own

    return make


@pytest.mark.process
def test_a_dashboard_is_written_at_once_and_then_every_half_minute(
    made: Callable[[str], Renewal], tmp_path: Path, notes: list[tuple[str, str]]
) -> None:
    own = made(f"open({str(tmp_path / 'n')!r}, 'a').write('x')")
    for now in range(0, 100, 5):
        own.due(float(now))
        until(lambda: not own._running())
    assert (tmp_path / "n").read_text() == "xxxx"
    own.close()
    assert (tmp_path / "n").read_text() == "xxxx" and notes == []


@pytest.mark.process
def test_the_last_page_says_that_nobody_watches_any_more(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "live", watching.about())
    for tick in watching.quiet(hours=0.02):
        store.append(tick)
    store.close()
    notifications.last_page(tmp_path / "live")
    assert "ENDED" in (tmp_path / "live" / "watch.html").read_text()


@pytest.mark.process
def test_a_dashboard_that_fails_is_a_note_with_its_last_words(
    made: Callable[[str], Renewal], notes: list[tuple[str, str]]
) -> None:
    own = made("import sys; sys.exit('perfkit: no room')")
    own.due(0.0)
    until(lambda: not own._running())
    assert notes == [("dashboard", "the dashboard cannot be written: perfkit: no room")]


@pytest.mark.process
def test_a_dashboard_with_many_words_on_its_way_to_failure_is_not_blocked_by_them(
    made: Callable[[str], Renewal], notes: list[tuple[str, str]]
) -> None:
    own = made("import sys; sys.stderr.write('w' * 300_000); sys.exit('\\nperfkit: no room')")
    own.due(0.0)
    until(lambda: not own._running())
    assert notes == [("dashboard", "the dashboard cannot be written: perfkit: no room")]


@pytest.mark.process
def test_a_dashboard_that_hangs_is_not_waited_for_and_ended_at_last(
    made: Callable[[str], Renewal], notes: list[tuple[str, str]]
) -> None:
    own = made("import time; time.sleep(600)")
    began = time.monotonic()
    for now in (0.0, 50.0, 299.0):
        own.due(now)
    assert notes == [] and time.monotonic() - began < 1
    own.due(301.0)
    assert notes == [("dashboard", f"the dashboard took longer than {notifications.PATIENCE_S:g} s")]
    own.due(302.0)  # the next one
    own.close()
    assert not own._running() and len(notes) == 1


# Interrupts, and the whole of it


def test_an_interrupt_asks_for_the_end_and_a_second_one_breaks_off() -> None:
    loop = Loop.__new__(Loop)
    loop.stopped = False
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping(loop):
        signal.raise_signal(signal.SIGTERM)
        assert loop.stopped
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_without_a_configuration_it_watches_the_booking_system_that_it_starts(
    tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    told = shlex.join([sys.executable, "-c", "pass"])
    ended = perfkit.watch("6s", "2s", folder=tmp_path / "watch", scale="seed", rate=10.0, metrics="0", notify=told)
    record = read(tmp_path / "watch")
    assert (ended.availability, ended.standing, round(ended.seconds)) == (1.0, (), 6)
    assert record.about.target == "after-full, started by perfkit"
    assert record.about.kinds == {"book": "request", "upcoming": "request", "conflict_check": "query"}
    assert [round(tick.seconds) for tick in record.ticks] == [2, 2, 2]
    assert all(probe.failed == 0 and probe.sent >= 10 for tick in record.ticks for probe in tick.probes.values())
    assert record.ticks[-1].scans["idx_appointments_org_contact_date"] > 0
    assert "metrics: http://127.0.0.1:" in capsys.readouterr().out
    assert (tmp_path / "watch" / "watch.html").exists()
    assert not (tmp_path / "watch" / "audit.jsonl").exists()  # nothing foreign was touched

    with pytest.raises(PerfkitError, match="expected"):  # other settings are another watch
        perfkit.watch("2s", "1s", folder=tmp_path / "watch", scale="seed")

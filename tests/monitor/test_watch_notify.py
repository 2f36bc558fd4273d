"""A command that is told of alerts: what it gets, and that nobody waits for one that fails or hangs."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from perfkit.base.errors import UsageError
from perfkit.monitor import notifications
from perfkit.monitor.model import Event, What
from perfkit.monitor.notifications import Notifier, require_program

KEEP = "import json, os, sys; print(json.dumps([sys.stdin.read(), dict(os.environ)]), file=open(sys.argv[1], 'a'))"


def event(id: str = "w1-latency-3", what: What = "raised") -> Event:
    return Event(what, id, 30.0, 1768467630.0, "p95 is 1,200 ms: \x1b[31m", "latency", "P1", 20.0, 1200.0, 1000.0, "go")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def notes() -> list[tuple[str, str]]:
    return []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "AGAIN_S", (0.01, 0.01))


@pytest.fixture
def made(notes: list[tuple[str, str]]) -> Iterator[Callable[..., Notifier]]:
    started: list[Notifier] = []

    def make(*command: str | Path, timeout_s: float = 10.0) -> Notifier:
        started.append(Notifier([str(part) for part in command], timeout_s, lambda *note: notes.append(note)))
        return started[-1]

    yield make
    for own in started:
        own.close(0.0)


def told(path: Path) -> list[tuple[dict[str, object], dict[str, str]]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(json.loads(text), environment) for text, environment in lines]


@pytest.mark.process
def test_it_gets_the_event_as_json_and_its_id_in_the_environment(made: Callable[..., Notifier], tmp_path: Path) -> None:
    notifier = made(sys.executable, "-c", KEEP, tmp_path / "told")
    notifier.tell(event())
    notifier.tell(event(what="cleared"))
    notifier.close(10.0)
    (raised, environment), (cleared, then) = told(tmp_path / "told")
    assert Event.of(raised) == event()
    assert (environment["PERFKIT_EVENT_ID"], environment["PERFKIT_EVENT"]) == ("w1-latency-3", "raised")
    assert (then["PERFKIT_EVENT_ID"], then["PERFKIT_EVENT"]) == ("w1-latency-3", "cleared")
    assert cleared["what"] == "cleared"
    assert environment.keys() - os.environ.keys() <= {"PERFKIT_EVENT_ID", "PERFKIT_EVENT", "LC_CTYPE"}


def test_it_is_not_told_of_notes(made: Callable[..., Notifier], tmp_path: Path) -> None:
    notifier = made(sys.executable, "-c", KEEP, tmp_path / "told")
    notifier.tell(event(what="note"))
    notifier.close(10.0)
    assert told(tmp_path / "told") == []


@pytest.mark.process
def test_a_command_that_fails_is_told_three_times_with_the_same_id(
    made: Callable[..., Notifier], notes: list[tuple[str, str]], tmp_path: Path
) -> None:
    notifier = made(sys.executable, "-c", f"{KEEP}; sys.exit(3)", tmp_path / "told")
    notifier.tell(event())
    wait_for(lambda: len(notes) == 3)
    assert [environment["PERFKIT_EVENT_ID"] for _, environment in told(tmp_path / "told")] == ["w1-latency-3"] * 3
    assert {kind for kind, _ in notes} == {"notify-failed"}
    assert notes[0][1].endswith("failed with status 3; for alert w1-latency-3")


@pytest.mark.process
def test_a_command_that_hangs_is_ended_with_what_it_started_and_delays_nobody(
    made: Callable[..., Notifier], notes: list[tuple[str, str]], tmp_path: Path
) -> None:
    script = f"(sleep 600 & echo $! >> {tmp_path}/pids); echo $$ >> {tmp_path}/pids; sleep 600"
    notifier = made("/bin/sh", "-c", script, timeout_s=0.5)
    began = time.monotonic()
    notifier.tell(event())
    assert time.monotonic() - began < 0.1
    wait_for(lambda: len(notes) == 3)
    assert notes[0] == ("notify-took", "notify: /bin/sh took longer than 0.5 s; for alert w1-latency-3")
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 6
    wait_for(lambda: not any(lives(pid) for pid in pids))


@pytest.mark.process
def test_the_end_of_the_watch_ends_a_command_that_hangs(made: Callable[..., Notifier], tmp_path: Path) -> None:
    notifier = made("/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 600")
    notifier.tell(event())
    wait_for(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    notifier.close(0.1)
    wait_for(lambda: not lives(int((tmp_path / "pid").read_text())))


@pytest.mark.process
def test_more_events_than_can_wait_are_left_out_and_noted(
    made: Callable[..., Notifier], notes: list[tuple[str, str]]
) -> None:
    notifier = made("/bin/sleep", "600")
    for number in range(notifications.WAITING + 3):
        notifier.tell(event(f"w1-{number}"))
    assert {kind for kind, _ in notes} == {"notify-full"}
    assert notes[-1][1].endswith(f"w1-{notifications.WAITING + 2} is dropped")


def test_a_program_that_is_gone_is_a_note(made: Callable[..., Notifier], notes: list[tuple[str, str]]) -> None:
    made("/nowhere/to/be/found").tell(event())
    wait_for(lambda: len(notes) == 3)
    assert notes[0][0] == "notify-cannot"


def test_a_program_that_is_not_there_is_said_before_anything_begins() -> None:
    with pytest.raises(UsageError, match="no program 'no-such-program'; expected a command that can be run"):
        require_program(("no-such-program", "--loud"))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

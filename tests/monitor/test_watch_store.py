"""A watch on disk: whole lines whatever happens, one writer, and the time line across restarts."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import watching
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit.base.errors import BundleError, PerfkitError, UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.monitor.alerts import Alerts
from perfkit.monitor.figures import find_gaps
from perfkit.monitor.model import Event, Probe, Record, Tick
from perfkit.monitor.store import Store, read, timeline

ABOUT = watching.about()
TICKS = watching.quiet(0.1)
EVENT = Event("raised", "abc", 10.0, 1e9, "p95 712 ms ⟨ü⟩ \ud800", "latency-600", "P2", 5.0, 712.0, 600.0, "deploy")


def written(folder: Path, ticks: list[Tick] = TICKS) -> Path:
    store = Store.open(folder, ABOUT)
    for tick in ticks:
        store.append(tick)
    store.add(EVENT)
    store.close()
    return folder


# What was written is read


def test_a_watch_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    found = read(written(tmp_path / "new" / "watch"))
    assert found == Record(ABOUT, TICKS, [EVENT])


def test_an_interval_without_an_answer_of_the_server_is_not_one_that_nobody_asked_for() -> None:
    for server in (None, {}):
        given = replace(TICKS[0], server=server, probes={"book": Probe({"ok": 1}, {}, (0.1 + 0.2,))})
        assert Tick.of(json.loads(given.line())) == given


def test_an_interval_is_on_the_disk_before_the_next_begins(tmp_path: Path) -> None:
    store = Store.open(tmp_path, ABOUT)
    for n, tick in enumerate(TICKS):
        store.append(tick)
        assert len(read(tmp_path).ticks) == n + 1
    store.close()


@pytest.mark.process
def test_a_day_takes_a_fifth_of_50_mb_on_disk_and_is_read_in_bounded_memory(tmp_path: Path) -> None:
    day = watching.quiet(24)
    Store.open(tmp_path, ABOUT).close()
    (tmp_path / "ticks.jsonl").write_text("".join(f"{tick.line()}\n" for tick in day))
    assert (tmp_path / "ticks.jsonl").stat().st_size < 10e6
    script = """
import pathlib, re, sys
from perfkit.monitor.store import read
mb = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
before = mb()
record = read(pathlib.Path(sys.argv[1]))
print(len(record.ticks), round(mb() - before))
"""
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    ticks, mb = map(int, out.stdout.split())
    assert ticks == 8640
    assert mb < 100


# What a crash leaves


@pytest.mark.parametrize("torn", ['{"n": 99, "t"', '{"n": 99}', "\x00" * 100, "ü"])
def test_a_torn_last_line_is_counted_when_read_and_cut_off_when_written(tmp_path: Path, torn: str) -> None:
    path = written(tmp_path) / "ticks.jsonl"
    with path.open("a") as file:
        file.write(torn)
    assert (read(tmp_path).ticks, read(tmp_path).damaged) == (TICKS, 1)
    store = Store.open(tmp_path, ABOUT)
    following = replace(TICKS[-1], n=36, t=TICKS[-1].t + 10)
    assert store.last == TICKS[-1]
    store.append(following)
    store.close()
    assert read(tmp_path) == Record(ABOUT, [*TICKS, following], [EVENT])


def test_a_last_line_longer_than_a_block_is_cut_off_whole(tmp_path: Path) -> None:
    path = written(tmp_path) / "ticks.jsonl"
    with path.open("a") as file:
        file.write("x" * 200_000)
    Store.open(tmp_path, ABOUT).close()
    assert read(tmp_path).damaged == 0


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "null",
        "{",
        "7" * 5000,
        "[" * 100_000,
        '{"n": 1}',
        '{"n":5,"t":60.0,"at":1e999,"seconds":10,"probes":{}}',
        '{"n":5,"t":NaN,"at":1,"seconds":10,"probes":{}}',
        '{"n":5,"t":60.0,"at":1,"seconds":10,"probes":{"book":{"ms":["1"]}}}',
        '{"n":5,"t":60.0,"at":1,"seconds":10,"probes":{"book":{"outcomes":{"ok":-1}}}}',
        '{"n":5,"t":60.0,"at":1,"seconds":10,"probes":{},"server":{"started":null}}',
        '{"n":5,"t":1.0,"at":1,"seconds":10,"probes":{}}',  # goes back in time
        '{"n":5,"t":60.0,"at":1,"seconds":-1,"probes":{}}',
        '{"n":5,"t":60.0,"at":1,"seconds":0,"probes":{}}',
        '{"n":5,"t":60.0,"at":1,"seconds":99,"probes":{}}',
        '{"n":5,"t":60.0,"at":1e15,"seconds":10,"probes":{}}',  # no date
        '{"n":5,"t":60.0,"at":1,"seconds":10,"probes":{"book":{"ms":[1e200]}}}',
        '{"n":5,"t":60.0,"at":1,"seconds":10,"probes":{"book":{"outcomes":{"ok":1},"statuses":{"201":2}}}}',
    ],
)
def test_a_damaged_line_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    path = written(tmp_path) / "ticks.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], line, *lines[5:]]) + "\n")
    assert read(tmp_path) == Record(ABOUT, TICKS, [EVENT], damaged=1)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"what":"shout","id":"a","t":1,"at":1,"text":"x"}',
        '{"what":"note","id":"a","t":1,"at":-1,"text":"x"}',
        "not json",
    ],
)
def test_a_damaged_event_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    with (written(tmp_path) / "events.jsonl").open("a") as file:
        file.write(f"{line}\n{replace(EVENT, text='whole').line()}\n")
    assert read(tmp_path) == Record(ABOUT, TICKS, [EVENT, replace(EVENT, text="whole")], damaged=1)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bytes_that_were_overwritten_cost_the_lines_they_are_in_at_most(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = written(tmp_path_factory.mktemp("watch"), TICKS[:5])
    path = folder / "ticks.jsonl"
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=50))
    content[start : start + len(junk)] = junk
    path.write_bytes(content)
    found = read(folder)
    assert len([tick for tick in TICKS[:5] if tick in found.ticks]) >= 3 - junk.count(b"\n")
    assert [tick.t for tick in found.ticks] == sorted(tick.t for tick in found.ticks)


WRITER = """
import sys
from pathlib import Path
import watching
from dataclasses import replace
from perfkit.monitor.store import Store
store = Store.open(Path(sys.argv[1]), watching.about())
first = store.last.n + 1 if store.last else 0
[tick] = watching.quiet(10 / 3600)
for n in range(first, 1_000_000):
    store.append(replace(tick, n=n, t=10.0 * (n + 1)))
"""


def writer(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(CHECKOUT / "tests" / "support"), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def increase(path: Path, least: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < least:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.process
def test_kill_9_in_the_middle_of_writing_loses_at_most_one_interval_each_time(tmp_path: Path) -> None:
    for size in (30_000, 90_000, 200_000):
        process = writer(tmp_path)
        increase(tmp_path / "ticks.jsonl", size)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = read(tmp_path)
        assert found.damaged <= 1
        assert [tick.n for tick in found.ticks] == list(range(len(found.ticks)))


# One writer


def test_a_second_watcher_is_told_which_folder_is_taken(tmp_path: Path) -> None:
    store = Store.open(tmp_path, ABOUT)
    with pytest.raises(UsageError, match=f"^{tmp_path}: another watch writes here; expected a folder of its own$"):
        Store.open(tmp_path, ABOUT)
    store.append(TICKS[0])
    store.close()
    Store.open(tmp_path, ABOUT).close()


@pytest.mark.process
def test_a_watcher_in_another_process_holds_the_folder_until_it_is_killed(tmp_path: Path) -> None:
    process = writer(tmp_path)
    increase(tmp_path / "ticks.jsonl", 2_000)
    with pytest.raises(UsageError, match="another watch"):
        Store.open(tmp_path, ABOUT)
    process.kill()
    process.communicate()
    Store.open(tmp_path, ABOUT).close()


def test_reading_does_not_let_go_of_the_folder(tmp_path: Path) -> None:
    store = Store.open(tmp_path, ABOUT)
    read(tmp_path)
    with pytest.raises(UsageError, match="another watch"):
        Store.open(tmp_path, ABOUT)
    store.close()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"every_s": 5.0}, "every_s 10, not 5"),
        ({"rate": 1.0}, "rate 2, not 1"),
        ({"kinds": {"book": "request"}}, "sends book, upcoming, conflict_check, not book"),
    ],
)
def test_other_settings_are_refused_in_one_line(tmp_path: Path, given: dict[str, object], line: str) -> None:
    written(tmp_path)
    with pytest.raises(UsageError) as refused:
        Store.open(tmp_path, ABOUT.model_copy(update=given))
    assert str(refused.value) == f"{tmp_path}/watch.json: {line}; expected the same settings, or another folder"
    Store.open(tmp_path, ABOUT).close()  # and the folder is free


def test_what_is_gone_on_with_keeps_its_name_and_its_beginning(tmp_path: Path) -> None:
    written(tmp_path)
    store = Store.open(tmp_path, ABOUT.model_copy(update={"id": "other", "began": 5.0}))
    assert (store.about, store.last) == (ABOUT, TICKS[-1])
    store.close()


# A full disk


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_lines_wait_and_are_written_in_order_when_there_is_room(tmp_path: Path) -> None:
    store = Store.open(tmp_path, ABOUT)
    for tick in TICKS[:3]:
        store.append(tick)
    assert store.trouble == ""
    size = (tmp_path / "ticks.jsonl").stat().st_size
    with no_file_above(size + 300):  # room for a part of a line
        for n, tick in enumerate(TICKS[3:10], 1):
            store.append(tick)
            waits = "1 line waits" if n == 1 else f"{n} lines wait"
            assert store.trouble == f"{tmp_path}: cannot be written (File too large); {waits} in memory"
            assert (tmp_path / "ticks.jsonl").stat().st_size == size
        assert read(tmp_path) == Record(ABOUT, TICKS[:3], [])
    store.append(TICKS[10])
    assert store.trouble == ""
    store.close()
    assert read(tmp_path).ticks == TICKS[:11]


def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    store = Store.open(tmp_path, ABOUT)
    with no_file_above(10):
        store.append(TICKS[0])
        store.add(EVENT)
    store.close()
    assert store.trouble == ""
    assert read(tmp_path) == Record(ABOUT, TICKS[:1], [EVENT])


def test_of_more_than_an_hour_the_oldest_are_given_up_and_leave_a_gap(tmp_path: Path) -> None:
    about = ABOUT.model_copy(update={"every_s": 600.0})
    ticks = watching.quiet(3, every_s=600.0)
    store = Store.open(tmp_path, about)
    store.append(ticks[0])
    with no_file_above(10):
        for tick in ticks[1:10]:
            store.append(tick)
        assert store.trouble.endswith("6 lines wait in memory, 3 given up")
    store.append(ticks[10])
    store.close()
    found = read(tmp_path).ticks
    assert found == [ticks[0], *ticks[5:11]]
    assert find_gaps(found) == [(ticks[0].t, ticks[5].start)]


def test_a_line_that_did_not_reach_the_disk_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path, ABOUT)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        store.append(TICKS[0])
        assert "(Input/output error)" in store.trouble
    store.append(TICKS[1])
    store.close()
    assert read(tmp_path) == Record(ABOUT, TICKS[:2], [])


# What is no watch's folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged (Expecting value: line 1 column 1 (char 0)); expected JSON written by perfkit"),
        ("[" * 100_000, "damaged (nested deeper than 10,000 values); expected JSON written by perfkit"),
        ("[]", "format None; expected a watch of format 1"),
        ('{"format": 2}', "format 2; expected a watch of format 1"),
        ('{"format": 1}', "damaged (id: Field required); expected what perfkit wrote"),
        ("About", "damaged (Expecting value: line 1 column 1 (char 0)); expected JSON written by perfkit"),
    ],
)
def test_a_damaged_watch_json_is_one_clear_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "watch.json").write_text(content)
    for act in (lambda: read(tmp_path), lambda: Store.open(tmp_path, ABOUT)):
        with pytest.raises(BundleError) as error:
            act()
        assert str(error.value) == f"{tmp_path}/watch.json: {said}"


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({"kinds": []}, "kinds: Input should be a valid dictionary"),
        ({"kinds": {"a": "z"}}, "kinds.a: Input should be 'request' or 'query'"),
        ({"every_s": "1"}, "every_s: Input should be a valid number"),
        ({"rate": 0}, "rate: Input should be greater than 0"),
        ({"title": 1}, "title: Input should be a valid string"),
        ({"began": 10**400}, "began: "),
    ],
)
def test_a_watch_json_with_wrong_values_is_one_line_that_names_the_key(
    tmp_path: Path, broken: dict[str, object], fault: str
) -> None:
    path = written(tmp_path) / "watch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **broken}))
    with pytest.raises(BundleError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{path}: damaged ({fault}")
    assert str(error.value).endswith("; expected what perfkit wrote")


def test_a_folder_that_is_none_or_a_runs_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none: no such folder; expected the folder of a watch$"):
        read(tmp_path / "none")
    with pytest.raises(BundleError, match=r"watch.json: no such file; expected the folder of a watch$"):
        read(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds a run; expected a folder of its own for a watch$"):
        Store.open(tmp_path, ABOUT)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot be written \(File exists\); expected a writable folder$"):
        Store.open(tmp_path / "file", ABOUT)
    (tmp_path / "ticks.jsonl").mkdir()
    with pytest.raises(PerfkitError, match="cannot be written"):
        Store.open(tmp_path, ABOUT)


def test_a_watch_that_has_written_nothing_yet_has_no_intervals(tmp_path: Path) -> None:
    Store.open(tmp_path, ABOUT).close()
    assert read(tmp_path) == Record(ABOUT, [], [])
    (tmp_path / "ticks.jsonl").unlink()
    assert read(tmp_path) == Record(ABOUT, [], [])


# The time line


@pytest.mark.parametrize(
    ("passed", "gap"),
    [(120.0, 120.0), (3600.0 + 120, 3720.0), (0.0, 1.0), (-3600.0, 1.0)],
    ids=["clock right", "put on by an hour", "restarted at once", "put back by an hour"],
)
def test_the_time_line_goes_on_after_a_gap_whatever_the_wall_clock_did(passed: float, gap: float) -> None:
    last = TICKS[-1]
    begun = timeline(last, last.at + passed)
    assert begun == last.t + gap
    assert find_gaps([last, replace(last, t=begun + 10)]) == [(last.t, begun)]


def test_a_new_watch_begins_its_time_line() -> None:
    assert timeline(None, 1e9) == 0.0


def test_a_record_read_back_gives_back_the_alerts_that_stand(tmp_path: Path) -> None:
    ticks = watching.with_incident(watching.quiet(0.5), "service-down", 600, 900)
    store, alerts = Store.open(tmp_path, ABOUT), Alerts(watching.config.load().watch, ABOUT)
    for tick in ticks[:100]:
        store.append(tick)
        for event in alerts.step(tick):
            store.add(event)
    store.close()
    assert Alerts(watching.config.load().watch, ABOUT, read(tmp_path)).active == alerts.active != []

"""A run: interleaved rounds on fresh clones, everything in the bundle, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import psutil
import pytest

from perfkit import config
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.explain.comparison import in_words, scans
from perfkit.postgres import embedded
from perfkit.runs.experiment import measure
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection

pytestmark = pytest.mark.slow  # the module takes more than a minute

ARMS = ["before", "control", "after-index", "after-full"]
QUERIES = ["conflict_check", "upcoming_for_contact", "clinic_day", "status_counts"]


def test_a_block_is_one_round_of_every_arm_and_the_floor_under_every_scenario(bundle):
    for _, block in groupby(sorted(bundle.rounds(), key=lambda r: r.position), key=lambda r: r.block):
        rounds = list(block)
        scenarios = [name for name, _ in groupby(r.scenario for r in rounds)]
        assert scenarios == ["single", "ramp-up", "ten", "burst", "sustained", "queries"]
        for scenario in scenarios:
            assert {r.arm for r in rounds if r.scenario == scenario} == {*ARMS, "floor"}


def test_the_order_of_arms_differs_from_round_to_round(bundle):
    rounds = sorted(bundle.rounds(), key=lambda r: r.position)
    orders = {tuple(r.arm for r in group) for _, group in groupby(rounds, key=lambda r: (r.block, r.scenario))}
    assert len(orders) > 20  # of 36


def test_every_block_starts_from_the_same_state(bundle):
    first, *others = [block.state for block in bundle.run.blocks]
    assert len(others) == 5
    assert all(state == first for state in others)
    assert first["before"] == first["control"]
    assert first["before"]["appointments"]["rows"] == first["after-full"]["appointments"]["rows"] == 15_000
    assert first["before"]["appointments"]["bytes"] == first["after-full"]["appointments"]["bytes"]


def test_the_same_number_of_requests_is_answered_in_every_arm(bundle):
    sent = {}
    for round_ in bundle.rounds():
        assert set(round_.columns.outcome) == {"ok"}, (round_.name, round_.columns.detail)
        sent.setdefault((round_.block, round_.scenario), set()).add(len(round_.columns.item))
    assert all(len(counts) == 1 for counts in sent.values())


def test_every_arm_of_a_block_is_asked_for_the_same_bookings(tmp_path, server_home, monkeypatch):
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    settings = {"log_min_duration_statement": "0", "shared_buffers": "256MB"}
    booking = config.load()
    database = booking.database.model_copy(update={"settings": settings})
    one = booking.model_copy(update={"database": database, "profiles": {"quick": 1}, "check": ()})
    options = RunSpec(profile="quick", scale="seed", arms=("before", "after-index"), scenarios=("single",))
    with embedded.start(18, settings, server_home) as server:
        measure(Selection(one, options), tmp_path / "run")
        log = (server.data_dir / "log" / "server.json").read_text()
    inserts = {}
    for entry in map(json.loads, log.splitlines()):
        if "INSERT INTO appointments (" in entry.get("message", "") and "detail" in entry:  # a booking has parameters
            inserts.setdefault(entry["dbname"], []).append(entry["detail"].split("= ", 1)[1])
    before, after = (booked[-14:] for booked in inserts.values())
    assert len(before) == 14
    assert before == after


def test_conflicts_are_the_exception(bundle):
    statuses = [s for r in bundle.rounds() if r.arm != "floor" and r.scenario != "queries" for s in r.columns.detail]
    assert statuses.count("201") > 0.9 * len(statuses)
    assert set(statuses) <= {"201", "409"}


def test_every_arm_shows_the_plan_its_rounds_used(bundle):
    for arm in ARMS:
        for query in QUERIES:
            assert scans(bundle.plan(arm, query).plan), (arm, query)
    assert "Seq Scan on appointments" in in_words(bundle.plan("before", "conflict_check").plan)
    assert "Index Scan using idx_appointments_" in in_words(bundle.plan("after-index", "conflict_check").plan)


def test_the_server_counts_the_scans_of_every_booking(bundle):
    for block in bundle.run.blocks:
        booked = block.http_requests
        assert block.http_scans["before"]["seq:appointments"] == booked["before"]["book"]
        for arm in ("after-index", "after-full"):
            scans = block.http_scans[arm]
            assert sum(n for name, n in scans.items() if "appointments" in name) == booked[arm]["book"]
            assert scans["seq:appointments"] == 0


def test_the_seven_indexes_are_built_valid_and_their_cost_is_known(bundle):
    indexes = bundle.run.arms["after-index"].indexes
    assert len(indexes) == 7
    assert all(i.valid and i.bytes > 0 and i.wal_bytes > 0 and i.seconds > 0 for i in indexes)
    assert bundle.run.arms["after-full"].indexes == indexes
    assert bundle.run.arms["before"].indexes == []


def test_run_json_says_what_was_run_on_what_and_holds_no_secret(bundle):
    run = bundle.run
    assert run.status == "complete"
    assert run.parameters.blocks == 6
    assert run.server.version.startswith("18.")
    assert {"fsync", "shared_buffers", "autovacuum", "compute_query_id"} <= set(run.server.settings)
    assert run.database.rows["appointments"] == 15_000
    assert run.host["cores"] >= 1
    text = (bundle.path / "run.json").read_text().lower()
    for word in ("password", "passfile", os.environ.get("HOME", "/nonexistent/home").lower() + "/"):
        assert word not in text


def test_all_functional_checks_pass_and_say_what_came(bundle):
    for arm in ("before", "after-index", "after-full"):
        checks = bundle.run.checks[arm]
        assert [check.group for check in checks] == ["smoke"] * 3 + ["acceptance"] * 4
        assert all(check.passed for check in checks)
        contested = next(check for check in checks if check.name.startswith("Concurrent bookings"))
        assert contested.got == "book: 1 x 201, 4 x 409"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "fast"}, "profile 'fast' is unknown; expected one of: quick, standard, thorough"),
        ({"scale": "huge"}, "scale 'huge' is unknown; expected one of: seed, small, standard, large"),
        (
            {"arms": ("before", "after")},
            "arm 'after' is unknown; expected one of: before, control, after-index",
        ),
        ({"arms": ("after-index",)}, "arms: after-index; expected 'before' among them"),
        ({"scenarios": ("peak",)}, "scenario 'peak' is unknown; expected one of: single, ramp-up"),
        ({"rtt_ms": -1.0}, "rtt_ms = -1; expected 0 to 10000"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_before_anything_starts(tmp_path, options, message):
    with pytest.raises(UsageError) as caught:
        measure(Selection(config.load(), RunSpec(**options)), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


# Faults: each run is a process of its own, stopped in the middle of its load.


@pytest.fixture
def running(tmp_path, server_home):
    """A run at its third round or later; yields its process and its folder."""
    script = (
        "import sys; from perfkit.app.cli import main;"
        "main(['report', '--scale', 'seed', '--profile', 'thorough', '--reports', sys.argv[1]])"
    )
    home = server_home / tmp_path.name
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PERFKIT_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever started the tests with nohup
    )
    wait_for(lambda: len(list(tmp_path.glob("*/rounds/*.json"))) > 2, 60)
    yield process, next(tmp_path.glob("*/"))
    process.kill()
    process.communicate()


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def left_over(folder: Path) -> list[str]:
    """Processes that belong to a run: its server, its services, its workers."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        environment = process.info["environ"] or {}
        if folder.name in environment.get("PERFKIT_HOME", "") or folder.name in str(process.info["cmdline"]):
            found.append(" ".join(process.info["cmdline"] or []))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_leaves_a_readable_bundle_and_nothing_running(running, how):
    process, folder = running
    process.send_signal(how)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 105
    assert errors.splitlines()[-1] == f"perfkit: stopped; what was measured so far is in {folder}"
    assert "Traceback" not in errors
    wait_for(lambda: not left_over(folder.parent), 2)
    bundle = Bundle.open(folder)
    assert bundle.run.status == "interrupted"
    assert len(list(bundle.rounds())) > 2


def test_a_killed_run_leaves_a_readable_bundle_and_nothing_running(running):
    process, folder = running
    process.kill()
    process.communicate()
    wait_for(lambda: not left_over(folder.parent), 5)
    assert len(list(Bundle.open(folder).rounds())) > 2


def test_a_server_killed_under_a_run_is_one_line_and_the_bundle_says_so(running):
    process, folder = running
    for candidate in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(candidate.info["cmdline"] or [])
        if candidate.info["name"] == "postgres" and folder.parent.name in command:
            candidate.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("perfkit: ")
    assert Bundle.open(folder).run.status == "failed"
    wait_for(lambda: not left_over(folder.parent), 5)


def test_a_full_disk_is_one_line_and_what_came_before_is_kept(tmp_path):
    script = (
        "import resource, sys; from pathlib import Path; from perfkit.load.samples import Samples;"
        "from perfkit.runs.records import Bundle, Round; from perfkit.base.errors import BundleError;"
        "from perfkit.config import load; from perfkit.runs.selection import RunSpec, Selection;"
        "bundle = Bundle.create(Path(sys.argv[1]) / 'run', Selection(load(), RunSpec()).describe());"
        "row = ('x', 1, 0, True, 0, 0, 0, 1, 'ok', '', 1);"
        "small, big = (Samples(*([value] * n for value in row)) for n in (10, 100_000));"
        "bundle.add_round(Round(0, 0, 'burst', 'before', small, {}));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "bundle.add_round(Round(1, 1, 'burst', 'before', big, {}))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "BundleError" in done.stderr.splitlines()[-1]
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert [r.block for r in Bundle.open(tmp_path / "run").rounds()] == [0]
    assert [p.name for p in (tmp_path / "run" / "rounds").iterdir()] == ["000.burst.before.json"]


def test_what_lies_in_the_current_folder_is_not_taken_for_a_part_of_it(tmp_path, server_home):
    for name in ("json.py", "signal.py", "perfkit.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "perfkit", "check", "--scale", "seed", "--arm", "before"],
        cwd=tmp_path,
        env={**os.environ, "PERFKIT_HOME": str(server_home)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "7 of 7 checks passed"), done.stderr


def test_an_unwritable_reports_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerfkitError, match="cannot be created"):
        measure(Selection(config.load(), RunSpec()), tmp_path / "file" / "run")


def test_a_run_file_survives_a_reader_at_any_moment(bundle):
    assert json.loads((bundle.path / "run.json").read_text())["status"] == "complete"

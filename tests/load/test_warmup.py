"""Before a round counts, a pooled connection has run its statement often enough to keep its plan."""

import json
import re
from collections import Counter

from perfkit import config
from perfkit.postgres import embedded
from perfkit.runs.experiment import measure
from perfkit.runs.selection import RunSpec, Selection

SETTINGS = {"log_min_duration_statement": "0", "shared_buffers": "256MB"}


def test_every_pooled_connection_sees_the_statement_ten_times_before_the_first_round(
    tmp_path, server_home, monkeypatch
):
    monkeypatch.setenv("PERFKIT_HOME", str(server_home))
    booking = config.load()
    quiet = booking.model_copy(
        update={
            "database": booking.database.model_copy(update={"settings": SETTINGS}),
            "profiles": {"quick": 1},
            "check": (),
        }
    )
    options = RunSpec(profile="quick", scale="seed", arms=("before", "after-full"), scenarios=("single",))
    with embedded.start(18, SETTINGS, server_home) as server:
        measure(Selection(quiet, options), tmp_path / "run")
        log = (server.data_dir / "log" / "server.json").read_text()
    entries = [json.loads(line) for line in log.splitlines()]
    executed = re.compile(r"ms +(execute [^:]*|statement): .*FROM book_appointment", re.DOTALL)
    booked = Counter(entry["pid"] for entry in entries if executed.search(entry.get("message", "")))
    after_full = next(arm for arm in quiet.arm if arm.name == "after-full")
    measured = next(s.requests for s in quiet.scenario if s.name == "single")
    assert booked.total() == after_full.warmup + measured
    assert len(booked) == 10
    assert min(booked.values()) - -(-measured // 10) >= 10, booked

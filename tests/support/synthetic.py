"""A made-up run on disk with every part a report shows; a seed decides the numbers."""

import json
from pathlib import Path
from random import Random
from typing import Any

from perfkit import config
from perfkit.explain.capture import Capture
from perfkit.explain.plan import read_plan
from perfkit.load.samples import COLUMNS, Samples
from perfkit.postgres.sqltext import comment
from perfkit.runs.records import BlockRecord, Bundle, Round, RunRecord

SPEED = {"before": 6.0, "control": 6.0, "after-index": 1.0, "after-full": 0.45, "floor": 0.12}
SETTINGS = {"shared_buffers": "512MB", "fsync": "off", "autovacuum": "off", "max_parallel_workers": "0"}


def make_run(folder: Path, *, blocks: int = 6, status: str = "complete", fail: str = "", name: str = "") -> Bundle:
    """A bundle of the booking configuration; `fail` is an error's text, `name` replaces names and SQL."""
    booking, random = config.load(), Random(1)
    queries = {q.name: {"sql": q.file.read_text(), "comment": comment(q.file.read_text())} for q in booking.query}
    if name:
        queries = {"conflict_check": {"sql": name, "comment": name}}
    run = {
        "title": name or booking.title,
        "started": "2026-01-15T09:00:00+00:00",
        "command": "perfkit report --profile quick --seed 1",
        "perfkit": "0.1.0",
        "parameters": {
            "profile": "quick",
            "scale": "standard",
            "blocks": blocks,
            "seed": 1,
            "rtt_ms": 0.0,
            "connect_rtts": 6,
            "postgres": 18,
            "arms": [a.name for a in booking.arm],
            "scenarios": [s.name for s in booking.scenario],
        },
        "config": {
            **booking.model_dump(include={"thresholds", "limits", "margin", "claim"}),
            "request": [r.model_dump(include={"name", "runs", "expect"}) for r in booking.request],
        },
        "roles": {a.name: a.role for a in booking.arm},
        "scenarios": [s.model_dump(mode="json") for s in booking.scenario],
        "queries": queries,
        "host": {
            "cpu": "Example CPU",
            "cores": 2,
            "memory_gb": 8.0,
            "system": "Linux 6 x86_64",
            "python": "3.11.9",
        },
        "packages": {"perfkit": "0.1.0", "psycopg": "3.3.1"},
        "server": {"kind": "embedded", "version": "18.4", "settings": SETTINGS},
        "database": {
            "scale": "standard",
            "rows": {"organizations": 400, "contacts": 60_000, "appointments": 500_000},
            "bytes": {"organizations": 65_536, "contacts": 5_000_000, "appointments": 61_000_000},
            "seconds": 7.1,
        },
        "arms": {a.name: _arm(a) for a in booking.arm},
        "checks": {a.name: _checks(booking, fail if a.name == "before" else "", name) for a in booking.arm},
        "blocks": [],
        "workers": 2,
        "timings": {"data": 7.1, "load": 61.3},
    }
    bundle = Bundle.create(folder, RunRecord(**run))
    for arm in run["roles"]:
        for query in queries:
            bundle.add_plan(arm, query, Capture((read_plan(_plan(arm)),)))
    position = 0
    for block in range(blocks):
        for scenario in booking.scenario:
            for arm in random.sample([*run["roles"], "floor"], 5):
                bundle.add_round(_round(scenario, block, position, arm, random, fail))
                position += 1
        bundle.run.blocks.append(BlockRecord(block=block, seconds=7.0, state={arm: {} for arm in run["roles"]}))
    bundle.update(status=status, finished="2026-01-15T09:02:00+00:00")
    return bundle


def record_of(roles: dict[str, str], **config: object) -> RunRecord:
    """The record of a run of these arms, of which nothing else is known."""
    parameters = {"blocks": 6, "arms": list(roles), "scenarios": []}
    return RunRecord(title="made up", parameters=parameters, roles=roles, scenarios=[], config=config, queries={})


def tuned(bundle: Bundle, part: str, **values: object) -> None:
    """Judge a run by other `thresholds`, `limits` or another `release`; nothing is written."""
    setattr(bundle.run.config, part, getattr(bundle.run.config, part).model_copy(update=values))


def _arm(arm: config.Arm) -> dict[str, Any]:
    names = ["idx_appointments_org_contact_date", "idx_appointments_org_id"] if arm.indexes else []
    indexes = [
        {
            "name": n,
            "table": "appointments",
            "definition": f"CREATE INDEX {n} ON appointments USING btree (org_id)",
            "seconds": 0.31,
            "bytes": 15_000_000,
            "wal_bytes": 14_800_000,
            "valid": True,
        }
        for n in names
    ]
    return {
        "title": arm.title,
        "postgres": 18,
        "role": arm.role,
        "indexes": indexes,
        "expected_indexes": names,
        "table_bytes": {"appointments": 61_000_000},
    }


def _checks(booking: config.Config, fail: str, name: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name or c.name,
            "group": c.group,
            "passed": not fail,
            "expected": "201 x1",
            "got": fail or "201 x1",
            "ms": 12.3,
        }
        for c in booking.check[: 1 if name else None]
    ]


def _round(scenario: config.Scenario, block: int, position: int, arm: str, random: Random, fail: str) -> Round:
    columns = Samples()
    drift = random.lognormvariate(0, 0.04)
    for batch in range(scenario.batches):
        for user in range(scenario.users):
            for item in scenario.send * scenario.requests:
                ms = SPEED[arm] * 18 * scenario.users**0.7 * drift * random.lognormvariate(0, 0.28)
                failed = bool(fail) and arm == "before" and random.random() < 0.01
                values = (
                    item,
                    user,
                    batch,
                    True,
                    0,
                    80_000,
                    90_000,
                    int(ms * 1e6),
                    "reset" if failed else "ok",
                    fail if failed else "",
                    1,
                )
                for column, value in zip(COLUMNS, values, strict=True):
                    getattr(columns, column).append(value)
    health = {"lag_p50_ms": 0.08, "lag_p99_ms": 0.4, "worker_cpu": 0.2, "wall_ms": 900.0}
    return Round(block, position, scenario.name, arm, columns, health)


def _plan(arm: str) -> Any:
    scan = {
        "Node Type": "Seq Scan",
        "Relation Name": "appointments",
        "Actual Rows": 1.0,
        "Actual Loops": 1,
        "Actual Total Time": 41.2,
        "Filter": "((org_id = 7) AND (contact_id = 1234))",
        "Rows Removed by Filter": 499_999,
        "Shared Hit Blocks": 6178,
        "Shared Read Blocks": 0,
    }
    if arm.startswith("after"):
        scan |= {
            "Node Type": "Index Scan",
            "Index Name": "idx_appointments_org_contact_date",
            "Shared Hit Blocks": 4,
            "Actual Total Time": 0.021,
            "Index Cond": "((org_id = 7) AND (contact_id = 1234))",
        }
        del scan["Filter"], scan["Rows Removed by Filter"]
    top = {
        "Node Type": "Limit",
        "Actual Rows": 1.0,
        "Actual Loops": 1,
        "Actual Total Time": scan["Actual Total Time"],
        "Shared Hit Blocks": scan["Shared Hit Blocks"],
        "Shared Read Blocks": 0,
        "Plans": [scan],
    }
    return json.loads(
        json.dumps([{"Plan": top, "Planning Time": 0.1, "Execution Time": scan["Actual Total Time"] + 0.02}])
    )

"""Watching a hosted database: a plain role with a password over TLS, directly and through PgBouncer."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hosted import Hosted, hosted
from watched import until

from perfkit import config
from perfkit.monitor.metrics import ServerProbe
from perfkit.monitor.prober import Prober, open_target, plan_probes
from perfkit.postgres.guards import Audit, Permission

pytestmark = [pytest.mark.system, pytest.mark.slow]

CONFIG = """
title = "A shop"
allow = ["127.0.0.1:{port}/shop", "127.0.0.1:{direct}/shop"]
[database]
target = "host=127.0.0.1 port={port} dbname=shop user={user}"
way = "in-place"
[parameters]
ids = "ids.sql"
[[query]]
name = "orders"
file = "orders.sql"
parameters = "ids"
[[scenario]]
name = "all"
label = "all"
send = ["orders"]
[[arm]]
name = "live"
role = "before"
[watch]
rate = 20
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


@pytest.fixture(autouse=True)
def passwords(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("way", ["direct", "pooled"])
def test_probes_and_figures_come_from_it_and_the_audit_says_what_was_done(
    server: Hosted, tmp_path: Path, way: str
) -> None:
    port = server.port if way == "direct" else server.pooled
    (tmp_path / "ids.sql").write_text("SELECT id AS customer FROM customers ORDER BY id LIMIT :rows")
    (tmp_path / "orders.sql").write_text("SELECT count(*) FROM sales.orders WHERE customer_id = %(customer)s")
    (tmp_path / "perfkit.toml").write_text(CONFIG.format(port=port, direct=server.port, user="shop"))
    settings = config.load(tmp_path / "perfkit.toml")
    plan = plan_probes(settings, Permission(confirm=(server.name(port=port), server.name())))
    seen: list[tuple[str, str, float]] = []
    notes: list[tuple[str, str]] = []
    audit = tmp_path / "audit.jsonl"
    with open_target(plan, Audit(audit), lambda _: None) as target:
        assert target.reach
        figures = ServerProbe(target.reach, 1.0, lambda *note: notes.append(note))
        prober = Prober(target, settings.watch, lambda *one: seen.append(one), lambda *note: notes.append(note))
        try:
            prober.start()
            until(lambda: len(seen) > 20)
            figures.ask()
            reading = figures.answer(5.0)
            server.leave_alone()  # every session is ended: the next ones are opened anew
            figures.ask()
            figures.answer(5.0)
            prober.cut()
            until(lambda: prober.cut()["orders"].outcomes.keys() == {"ok"})
            figures.ask()
            again = figures.answer(5.0)
        finally:
            prober.close()
            figures.close()
    assert reading and again
    assert reading.server.keys() >= {"connections", "connections_max", "waiting", "commits", "wal_bytes", "deadlocks"}
    assert "transaction_s" not in reading.server  # others' sessions are not this role's to see
    assert {"orders_pkey", "customers_pkey"} <= {name.split(".")[-1] for name in reading.scans}
    assert (
        "rights",
        "the role may not see active, idle_in_transaction, transaction_s; pg_read_all_stats shows them",
    ) in (notes)
    said = [json.loads(text)["statement"] for text in audit.read_text().splitlines() if "statement" in text]
    assert said and not [text for text in said if "xact_commit" in text]
    assert "Secret" not in audit.read_text()


def test_a_role_that_may_not_read_the_table_is_told_so_at_the_start(server: Hosted, tmp_path: Path) -> None:
    (tmp_path / "ids.sql").write_text("SELECT id AS customer FROM sales.orders LIMIT :rows")
    (tmp_path / "orders.sql").write_text("SELECT %(customer)s")
    (tmp_path / "perfkit.toml").write_text(CONFIG.format(port=server.port, direct=server.port, user="clerk"))
    settings = config.load(tmp_path / "perfkit.toml")
    plan = plan_probes(settings, Permission(confirm=(server.name(),)))
    with open_target(plan, Audit(None), lambda _: None) as target:
        prober = Prober(target, settings.watch, lambda *_: None, lambda *_: None)
        try:
            with pytest.raises(Exception, match="permission denied for table orders"):
                prober.start()
        finally:
            prober.close()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        server.run("SELECT 1 FROM sales.orders", user="clerk")

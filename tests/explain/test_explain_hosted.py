"""Explaining on a hosted PostgreSQL 15 as a plain role: directly, through PgBouncer, and where little may be read."""

from collections.abc import Iterator

import pytest
from commands import perfkit
from hosted import Hosted, hosted

from perfkit.app.session import Session, connect
from perfkit.app.specs import ConnectSpec
from perfkit.base.errors import PerfkitError

pytestmark = [pytest.mark.system, pytest.mark.slow]

QUERY = "SELECT * FROM sales.orders WHERE customer_id = {}"


@pytest.fixture(scope="module")
def server() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


@pytest.fixture(params=["directly", "through the pooler"])
def session(server: Hosted, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    port = server.pooled if request.param == "through the pooler" else 0
    confirmed = (server.name(port=port), server.name())
    with connect(ConnectSpec(server.db(port=port), confirm=confirmed, tls=False)) as session:
        yield session


def test_a_statement_is_executed_and_its_tables_are_known(session: Session) -> None:
    found = session.explain(QUERY.format("%(customer)s"), {"customer": 7}, analyze=True)
    assert found.plan.analyzed and found.plan.rows == 20
    orders = found.capture.facts.named("orders", "sales")
    assert orders and orders.rows == 4000
    assert not found.findings  # 22 pages: no index would be worth it


@pytest.mark.parametrize("mark", ["$1", "%(customer)s"])
def test_before_16_a_generic_plan_is_that_of_a_prepared_statement(session: Session, mark: str) -> None:
    found = session.explain(QUERY.format(mark), generic=True)
    assert not found.plan.analyzed
    assert found.plan.root.filter.endswith("= $1)")
    assert "plan_cache_mode" not in found.plan.settings


def test_a_generic_plan_can_be_had_again_and_again_on_connections_that_are_shared(session: Session) -> None:
    plans = [session.explain(QUERY.format("$1"), generic=True).plan for _ in range(5)]
    assert len({plan.root.filter for plan in plans}) == 1


def test_a_statement_that_would_write_is_refused_before_it_is_executed(session: Session, server: Hosted) -> None:
    with pytest.raises(PerfkitError, match="a statement writes"):
        session.explain("DELETE FROM sales.orders", analyze=True)
    assert server.run("SELECT count(*) FROM sales.orders") == [(4000,)]


def test_no_option_that_15_does_not_have_is_sent(session: Session) -> None:
    found = session.explain(QUERY.format("7"), analyze=True, serialize=True)
    assert "Serialization" not in found.plan.document and found.plan.timed


def test_the_command_does_the_same(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    done = perfkit(
        "explain", QUERY.format("$1"), "--param", "7", "--analyze", "--db", server.db(), "--confirm", server.name()
    )
    assert done.exit_code == 0, done.stderr
    assert "Seq Scan on orders" in done.stdout


def test_a_role_that_may_read_one_table_gets_its_plan_and_one_line_for_another(
    server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with connect(ConnectSpec(server.db("clerk"), confirm=(server.name(),), tls=False)) as session:
        found = session.explain("SELECT * FROM customers WHERE name = 'x'", analyze=True)
        assert found.plan.analyzed and found.capture.facts.named("customers")
        with pytest.raises(PerfkitError, match="cannot be planned: permission denied for table orders"):
            session.explain(QUERY.format("7"), analyze=True)

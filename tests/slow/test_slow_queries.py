"""From a slow statement to evidence: found, named, explained, advised, tried, measured, reported, in one call each."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hosted import Hosted, hosted
from psycopg import ClientCursor

from perfkit import config as configuration
from perfkit.app import api
from perfkit.app.session import Session, SlowTable, connect
from perfkit.app.specs import ConnectSpec
from perfkit.base.errors import PlanError, ServerError, TargetRefused, UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.postgres import databases
from perfkit.postgres.commands import numbered
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer
from perfkit.postgres.sqltext import substitute
from perfkit.slow.statements import Example, SlowQueries, SlowStatement

#: What the index that is advised for each query of the booking system may begin with, of what it finds.
LEADING = {
    "clinic_day": {"scheduled_at", "org_id"},
    "conflict_check": {"contact_id"},
    "status_counts": {"org_id"},
    "upcoming_for_contact": {"contact_id"},
}
SECRET = "<script>alert('x')</script> \x1b[31m"


def booking(server: EmbeddedServer, name: str, scale: str) -> Session:
    settings = configuration.load()
    assert settings.database
    databases.create(server, name)
    databases.prepare(server, name, settings.database.prepare, settings.database.scales[scale])
    databases.freeze(server, name)
    return Session(Database(server, name), opened=ConnectSpec(scale=scale, arm="before"))


@pytest.fixture(scope="module")
def session(server: EmbeddedServer) -> Iterator[Session]:
    """The booking system's data without its indexes; nothing in it is changed."""
    try:
        yield booking(server, "slow", "small")
    finally:
        databases.drop(server, "slow")


def text(query: str) -> str:
    """A query of the booking system as a server counts or logs it: with `$1`, `$2`, ..."""
    return numbered((CHECKOUT / "sql" / "queries" / f"{query}.sql").read_text()).text


def table(session: Session | None, *texts: str, example: Example | None = None) -> SlowTable:
    found = (SlowStatement(f"id-{n}", one, 10, 100.0 / n, example=example) for n, one in enumerate(texts, 1))
    return SlowTable(SlowQueries("a test", tuple(found)), session)


# every query of the booking system, without a value given


@pytest.mark.parametrize("query", LEADING)
def test_a_statement_of_which_only_the_text_is_known_leads_to_the_right_index(session: Session, query: str) -> None:
    slow = table(session, text(query))[1]
    planned = slow.explain()
    assert planned.note == "using sampled values" and repr(planned).startswith("using sampled values")
    assert not planned.plan.analyzed
    executed = slow.explain(analyze=True)
    assert executed.plan.rows > 0  # the values find something
    assert slow.findings() == executed.findings
    (proposal,) = slow.advise().proposals
    assert proposal.design.table == "appointments" and proposal.design.keys[0] in LEADING[query]
    found = slow.whatif(proposal.statement)
    assert found.used and found.after.plan.buffers < found.before.plan.buffers / 5


def test_its_examples_show_where_they_are_from(session: Session) -> None:
    slow = table(session, text("clinic_day"))[1]
    shown = slow.example_parameters(2)
    assert [list(row) for row in shown.rows] == [[1, 2], [1, 2]]
    assert "$2" in repr(shown) and "a row of appointments" in repr(shown) and "<table>" in shown._repr_html_()
    assert slow.example_parameters(2).rows == shown.rows
    mixed = slow.example_parameters(given={2: "2026-01-01"})
    assert mixed.rows[0][2] == "2026-01-01" and mixed.sets[0][1].origin == "given"
    with pytest.raises(UsageError, match=r"statement 1: no \$3; expected \$1, \$2"):
        slow.example_parameters(given={3: "x"})


# values: given, logged, sampled, none


def test_the_values_of_a_logged_execution_come_first(session: Session) -> None:
    sql = "SELECT count(*) FROM appointments WHERE status = $1 AND duration_minutes >= $2"
    logged = "select count(*) from appointments where status='no_show' and duration_minutes>=30"
    slow = table(session, sql, example=Example(logged, (), 9.0))[1]
    found = slow.explain()
    assert found.note == "using the parameters of the slowest logged execution"
    (scan,) = [node for node in found.plan.nodes if node.table]
    assert "'no_show'" in scan.filter and "30" in scan.filter
    (first, second) = slow.example_parameters(2).sets
    assert [value.text for value in first] == ["no_show", "30"]
    assert {value.origin for value in first} == {"the slowest logged execution"}
    assert second[0].origin == "a row of appointments"


def test_what_a_client_sent_as_a_constant_stays_one(session: Session) -> None:
    sql = "SELECT * FROM appointments WHERE status = $1 AND notes LIKE $2 AND duration_minutes = $3 LIMIT $4"
    sent = "SELECT * FROM appointments WHERE status = 'no_show' AND notes LIKE 'A%' AND duration_minutes = $1 LIMIT 7"
    slow = table(session, sql, example=Example(sent, ("30",)))[1]
    assert [list(row) for row in slow.example_parameters(3).rows] == [[1], [1], [1]]
    assert slow.example_parameters().rows == [{1: "30"}]
    planned = repr(slow.explain())
    assert "'no_show'" in planned and "A%" in planned and "'no_show'" in repr(slow.explain(generic=True))
    assert "LIMIT 7" in slow._repr_html_()
    cut_off = table(session, sql, example=Example(sent))[1]  # its values were too long for the log
    assert cut_off.explain().note == "using sampled values" and "'no_show'" in repr(cut_off.explain())


def test_a_logged_execution_that_differs_from_the_text_is_explained_as_it_was(session: Session) -> None:
    sql = "SELECT count(*) FROM appointments WHERE duration_minutes IN ($1 /*, ... */) AND notes LIKE $2"
    text = "SELECT count(*) FROM appointments WHERE duration_minutes IN (5, 10, 15) AND notes LIKE {}"
    for example in (Example(text.format("'%a%'")), Example(text.format("$1"), ("%a%",))):
        found = table(session, sql, example=example)[1].explain()
        assert found.note == "using the parameters of the slowest logged execution"
        assert "{5,10,15}" in repr(found) and "%a%" in repr(found)


def test_where_the_text_cannot_be_prepared_what_was_logged_is_explained(session: Session) -> None:
    sql = "SELECT status FROM appointments GROUP BY status ORDER BY count(*) FILTER (WHERE notes ~ $1) $2 LIMIT 1"
    example = Example(sql.replace("$1", "'a'").replace("$2", "DESC"))
    assert (
        table(session, sql, example=example)[1].explain().note == "using the parameters of the slowest logged execution"
    )
    with pytest.raises(PlanError, match="syntax error"):
        table(session, sql)[1].explain()


def test_logged_values_go_where_one_constant_had_several_numbers(session: Session) -> None:
    sql = """SELECT date_trunc($1, created_at) FROM appointments WHERE status = $2
        GROUP BY date_trunc($3, created_at) LIMIT $4"""
    logged = sql.replace("$1", "'month'").replace("$2", "'booked'").replace("$3", "'month'").replace("$4", "7")
    slow = table(session, sql, example=Example(logged))[1]
    assert slow.example_parameters().rows == [{1: "month", 2: "booked", 3: "7"}]
    assert "'booked'" in repr(slow.explain(analyze=True))


def test_a_plan_that_was_logged_is_shown(session: Session, tmp_path: Path) -> None:
    found = session.explain("SELECT * FROM appointments").capture.documents[0]
    one = SlowStatement("1", "SELECT * FROM appointments", 1, 1.0, plan=found)
    slow = SlowTable(SlowQueries("a log", (one,)), session)[1]
    assert slow.logged_plan and repr(slow.logged_plan).startswith("as logged") and "Seq Scan" in repr(slow.logged_plan)
    assert "as logged" in slow.report(tmp_path / "slow.html").read_text()
    assert table(session, "SELECT 1")[1].logged_plan is None


def test_values_can_be_given_by_position_or_number(session: Session) -> None:
    slow = table(session, "SELECT * FROM appointments WHERE status = $1 AND notes LIKE 'a%' LIMIT $2")[1]
    for given in (["booked", 3], {1: "booked", 2: "3"}):
        found = slow.explain(given, analyze=True)
        assert found.note == "using your values" and "'booked'" in repr(found)
        assert slow.whatif("CREATE INDEX ON appointments (status)", given).before.plan.analyzed
    with pytest.raises(UsageError, match=r"statement 1: parameters \$1; expected \$1, \$2"):
        slow.explain(["booked"])


def test_where_no_values_can_be_had_the_plan_is_for_any(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise PlanError("EXPLAIN failed: canceling statement due to statement timeout")

    slow = table(session, text("status_counts"))[1]
    assert "$1" in repr(slow.explain(generic=True))
    monkeypatch.setattr("perfkit.app.evidence.example_rows", refused)
    found = slow.explain()
    assert found.note == "generic plan, for any values" and "$1" in repr(found)
    with pytest.raises(PlanError, match=r"statement timeout; expected explain\(parameters=...\)"):
        slow.explain(analyze=True)


def test_a_statement_without_parameters_is_explained_as_it_is(session: Session) -> None:
    slow = table(session, "SELECT count(*) FROM appointments WHERE notes LIKE '%a$1%' -- $2")[1]
    assert slow.explain(analyze=True).note == "" and slow.example_parameters().rows == []
    assert "the statement has no parameters" in repr(slow.example_parameters())


def test_a_text_whose_constants_were_taken_away_is_mended(session: Session) -> None:
    sql = """SELECT id FROM appointments WHERE org_id = $1::uuid AND scheduled_at > $2::timestamptz - interval $3
        AND scheduled_at < ($4::date + $5)::timestamp AT TIME ZONE $6 AND extract($7 FROM scheduled_at) > $8
        AND notes LIKE '%%' LIMIT $9"""
    slow = table(session, sql)[1]
    assert "$3::interval" in slow.text and "$5::integer" in slow.text and "date_part($7," in slow.text
    assert slow.explain(analyze=True).plan.analyzed
    assert slow.whatif("CREATE INDEX ON appointments (org_id)").before.plan.analyzed


def test_an_insert_is_explained_and_leaves_nothing(session: Session) -> None:
    sql = "INSERT INTO appointments (org_id, contact_id, scheduled_at, duration_minutes) VALUES ($1,$2,$3,$4)"
    count = "SELECT * FROM appointments"
    before = session.explain(count, analyze=True).plan.rows
    assert table(session, sql)[1].explain(analyze=True).plan.root.name.startswith("Insert")
    assert session.explain(count, analyze=True).plan.rows == before


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "VACUUM appointments",
            "statement 1: VACUUM cannot be explained; expected SELECT, INSERT, UPDATE, DELETE or MERGE",
        ),
        ("CREATE TABLE t AS SELECT $1", "statement 1: CREATE cannot be explained; expected SELECT"),
        ("SELECT 1; SELECT $1", "statement 1: EXPLAIN takes one statement; found 2"),
        ("SELECT * FROM appointments WHERE org_id = $1 AND (status", "this text is truncated"),
        ("SELECT * FROM appointments WHERE org_id = $1 AND (status…", "this text is truncated"),
        ("SELECT * FROM appointments WHERE notes = 'abc", "SQL that cannot be read"),
    ],
)
def test_what_cannot_be_explained_is_one_clear_line(session: Session, sql: str, said: str) -> None:
    slow = table(session, sql)[1]
    for call in (slow.explain, slow.advise, slow.findings, lambda: slow.whatif("CREATE INDEX ON appointments (id)")):
        with pytest.raises(PlanError, match=re.escape(said)) as error:
            call()
        assert "\n" not in str(error.value)


# the table


def test_a_statement_is_found_by_position_id_or_a_part_of_its_text() -> None:
    slow = table(None, "SELECT 1 FROM a", "SELECT 2 FROM b", "SELECT 3 FROM b")
    assert len(slow) == 3 and [one.position for one in slow] == [1, 2, 3]
    assert slow[2] is slow["id-2"] is slow["2 from"] is slow["select\n 2 from b"]
    longer = table(None, "SELECT 1 FROM a WHERE b", "SELECT 1 FROM a")
    assert longer["SELECT 1 FROM a"] is longer[2]
    for key, said in {
        0: "0: no statements match; expected one of 1 (SELECT 1 FROM a), 2 (SELECT 2 FROM b), 3 (SELECT 3 FROM b)",
        "FROM b": "'FROM b': 2 statements match; expected one of 2 (SELECT 2 FROM b), 3 (SELECT 3 FROM b)",
    }.items():
        with pytest.raises(UsageError, match=re.escape(said)):
            slow[key]
    with pytest.raises(UsageError, match="expected one of none"):
        table(None)["x"]


def test_it_shows_itself_and_is_a_frame() -> None:
    slow = table(None, "SELECT 1", SECRET)
    assert "a test" in repr(slow) and "\x1b" not in repr(slow)
    assert "<script>" not in slow._repr_html_() and "<table>" in slow._repr_html_()
    frame = slow.frame
    assert list(frame.index) == [1, 2] and frame.loc[1, "total_ms"] == 100.0 and frame.loc[2, "share"] == 1 / 3
    assert list(table(None).frame.columns) == list(frame.columns)
    assert "SELECT 1" in slow[1]._repr_html_() and "67 %" in repr(slow[1])


def test_without_a_session_statements_are_only_shown() -> None:
    with pytest.raises(UsageError, match=r"statement 1: from a log file; connect to a database"):
        table(None, "SELECT 1")[1].explain()


# the report and the measurement


def test_the_report_is_one_page_with_what_was_found_out(session: Session, tmp_path: Path) -> None:
    slow = table(session, f"SELECT * FROM appointments WHERE notes = $1 AND notes <> $$ {SECRET} $$")[1]
    page = slow.report(tmp_path / "first.html").read_text()
    assert "<h2>Plan</h2>" in page and "Seq Scan" in page and "<h2>What if</h2>" not in page
    slow.whatif("CREATE INDEX ON appointments (notes)")
    slow.advise()
    page = slow.report(tmp_path / "second.html").read_text()
    assert "<h2>What if</h2>" in page and "<h2>Advice</h2>" in page and "would be used" in page
    assert "&lt;script&gt;" in page and "<script" not in page and "\x1b" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\((?!data:)|@import""", page)
    assert "default-src 'none'" in page


def test_a_measurement_needs_an_index_and_no_way_on_a_server_of_perfkits_own(session: Session, tmp_path: Path) -> None:
    slow = table(session, text("status_counts"))[1]
    with pytest.raises(UsageError, match="measure: no index; expected one CREATE INDEX"):
        slow.measure(reports=tmp_path)
    with pytest.raises(UsageError, match="expected one CREATE INDEX statement"):
        slow.measure("DROP TABLE appointments", reports=tmp_path)
    with pytest.raises(UsageError, match="way = 'whole'; expected none"):
        slow.measure("CREATE INDEX ON appointments (id)", way="whole", reports=tmp_path)
    with pytest.raises(UsageError, match="profile 'no' is unknown"):
        slow.measure("CREATE INDEX ON appointments (id)", profile="no", reports=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_is_measured_on_clones_which_are_gone_afterwards(
    session: Session, server: EmbeddedServer, tmp_path: Path
) -> None:
    slow = table(session, text("upcoming_for_contact"))[1]
    slow.advise()
    with server.connect() as connection:
        before = connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
        run = slow.measure(users=2, reports=tmp_path)
        assert connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall() == before
    assert run.analysis.comparisons and "faster" in repr(run.levels)
    page = slow.report(tmp_path / "slow.html").read_text()
    assert "<h2>Measured</h2>" in page and "faster" in page
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    again = configuration.load(folder / "perfkit.toml")  # from files, where the server is gone
    assert [arm.name for arm in again.arm] == ["before", "control", "after"] and again.database.scale == "standard"
    assert "--scale small" in run.bundle.run.command
    assert f'"{folder.name}' not in page and str(tmp_path) not in page


# where it is looked for


def run_slow(session: Session, times: int = 3) -> None:
    with session.database.connect() as connection:
        for _ in range(times):
            connection.execute("SELECT count(*) FROM appointments WHERE notes LIKE %s", ["%found me%"])


def test_without_pg_stat_statements_the_servers_log_is_read_and_says_why(session: Session) -> None:
    with session.query_logging(ms=0):
        run_slow(session)
        found = session.slow()
    slow = found["notes LIKE"]
    assert slow.statement.calls == 3 and slow.explain(analyze=True).plan.rows == 1
    assert any("no pg_stat_statements in this database" in note for note in found.found.notes)
    with pytest.raises(ServerError, match="no pg_stat_statements in this database; expected CREATE EXTENSION"):
        session.slow("statements")


@pytest.mark.slow
def test_with_seconds_only_what_ends_meanwhile_counts(session: Session) -> None:
    with session.query_logging(ms=0):
        run_slow(session, 2)
        later = threading.Timer(0.5, run_slow, (session, 5))
        later.start()
        found = session.slow("log", seconds=2)
        later.join()
    assert found["notes LIKE"].statement.calls == 5


def test_an_interrupt_ends_the_wait_and_shows_what_there_is(session: Session) -> None:
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    found = session.slow("log", seconds=120)
    assert time.monotonic() - began < 60
    assert any(re.match(r"Interrupted after \d", note) for note in found.found.notes)


def test_a_log_file_is_a_source_too(session: Session, tmp_path: Path) -> None:
    with session.query_logging(ms=0):
        run_slow(session)
        log = tmp_path / "server.json"
        log.write_bytes((session.database.server.data_dir / "log" / "server.json").read_bytes())  # type: ignore[attr-defined]
    assert session.slow(log)["notes LIKE"].explain(analyze=True).plan.rows == 1
    alone = api.slow(log)
    assert alone.session is None and len(alone) == len(session.slow(str(log)))
    with pytest.raises(UsageError, match=r"source = 'nowhere\.json'; expected 'statements', 'log', or"):
        session.slow("nowhere.json")
    with pytest.raises(UsageError, match="source = ''; expected"):
        api.slow()
    with pytest.raises(UsageError, match="seconds = -1; expected 0 or more"):
        session.slow(seconds=-1)


def test_what_runs_now_shows_itself(session: Session) -> None:
    with session.database.connect() as other:
        other.execute("BEGIN")
        other.execute("SELECT 'here I am'")
        assert "here I am" in repr(session.activity())


# a database of the user's, with pg_stat_statements and HypoPG


@pytest.fixture(scope="module")
def foreign() -> Iterator[Hosted]:
    with hosted() as running:
        yield running


@pytest.fixture
def shop(foreign: Hosted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("PGPASSFILE", foreign.environment["PGPASSFILE"])
    foreign.run("GRANT USAGE ON SCHEMA extensions TO shop")
    with connect(ConnectSpec(foreign.db(), confirm=(foreign.name(),), tls=False)) as session:
        yield session


@pytest.mark.system
def test_pg_stat_statements_is_the_source_where_it_is_there(foreign: Hosted, shop: Session) -> None:
    foreign.run(
        "SELECT count(*) FROM sales.orders WHERE customer_id = 7 AND total > 5",
        "SELECT * FROM sales.orders WHERE total = 96 ORDER BY id LIMIT 2",
        user="shop",
    )
    found = shop.slow()
    assert found.found.source.startswith("pg_stat_statements of ")
    slow = found["customer_id = $1"]
    assert slow.explain(analyze=True).plan.root.kind == "Aggregate"
    (row,) = slow.example_parameters().sets
    assert {value.origin for value in row} == {"a row of orders"}
    trial = slow.whatif("CREATE INDEX ON sales.orders (customer_id)")
    assert trial.used and trial.evidence == "estimated"
    assert [p.design.keys[0] for p in slow.advise().proposals] == ["customer_id"]
    assert found["ORDER BY id"].explain(analyze=True).plan.rows > 0
    later = threading.Timer(0.3, foreign.run, ("SELECT count(*) FROM sales.orders WHERE total > 5",), {"user": "shop"})
    later.start()
    delta = shop.slow(seconds=1.5)
    later.join()
    assert [slow.statement.calls for slow in delta if "orders" in slow.statement.text] == [1]


@pytest.mark.system
def test_every_query_of_the_booking_system_is_explained_from_its_counted_text(
    foreign: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", foreign.environment["PGPASSFILE"])
    settings = configuration.load()
    foreign.run("CREATE DATABASE clinic OWNER shop", dbname="postgres")
    foreign.run("GRANT pg_read_all_stats TO shop", "CREATE EXTENSION pg_stat_statements", dbname="clinic")
    for path in settings.database.prepare:
        foreign.run(substitute(path.read_text(), settings.database.scales["seed"]), user="shop", dbname="clinic")
    foreign.run("ANALYZE", user="shop", dbname="clinic")
    values = {"org_id": UUID(int=1), "contact_id": UUID(int=2), "day": "2026-01-01", "duration_minutes": 30}
    with foreign.connect("shop", "clinic") as connection:
        for query in LEADING:
            sql = (CHECKOUT / "sql" / "queries" / f"{query}.sql").read_text()
            ClientCursor(connection).execute(sql, values | {"scheduled_at": "2026-01-01 12:00Z"})  # constants
    with connect(ConnectSpec(foreign.db(dbname="clinic"), confirm=(foreign.name("clinic"),), tls=False)) as session:
        found = session.slow("statements")
        for query in LEADING:
            words = (CHECKOUT / "sql" / "queries" / f"{query}.sql").read_text().splitlines()[1]
            slow = found[words]
            assert len(slow.example_parameters().rows[0]) > 0
            assert slow.explain(analyze=True).plan.rows > 0, slow.text


@pytest.mark.system
def test_no_volatile_function_is_called_to_find_values(foreign: Hosted, shop: Session, tmp_path: Path) -> None:
    foreign.run(
        "CREATE FUNCTION noisy(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN $1 > 0; END'", user="shop"
    )
    slow = table(shop, "SELECT * FROM sales.orders WHERE noisy(id) AND customer_id = $1 AND total = $2")[1]
    shop.database.server.audit.path = tmp_path / "audit.jsonl"  # type: ignore[attr-defined]
    (row,) = slow.example_parameters().sets
    assert {value.origin for value in row} == {"a row of orders"}
    sent = [json.loads(line).get("statement", "") for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    sampled = [statement for statement in sent if "TABLESAMPLE" in statement and not statement.startswith("EXPLAIN")]
    assert sampled and not any("noisy" in statement for statement in sampled)


@pytest.mark.system
@pytest.mark.slow
def test_a_database_of_the_users_is_measured_in_a_private_copy(shop: Session, tmp_path: Path) -> None:
    with shop.database.connect() as connection:
        connection.execute("SELECT count(*) FROM sales.orders WHERE customer_id = 7")
    slow = shop.slow()["SELECT count(*) FROM sales.orders WHERE customer_id = $1"]
    run = slow.measure("CREATE INDEX ON sales.orders (customer_id)", users=2, reports=tmp_path)
    assert run.analysis.comparisons and "private copy" in run.bundle.run.origin.way


@pytest.mark.system
def test_without_permission_nothing_is_found(foreign: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", foreign.environment["PGPASSFILE"])
    with pytest.raises(TargetRefused, match="was not started by perfkit"):
        api.slow(db=foreign.db(), tls=False)
    with pytest.raises(ServerError, match=r"no pg_stat_statements in this database; .*; expected jsonlog or stderr"):
        api.slow(db=foreign.db(dbname="bare"), confirm=foreign.name("bare"), tls=False)

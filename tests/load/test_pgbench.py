"""pgbench as the engine of a scenario: what it sends, and its log read back as samples."""

import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import run_all

from perfkit.base.errors import LoadError, ServerError, UsageError
from perfkit.config import Scenario
from perfkit.load import pgbench
from perfkit.load.pgbench import ABORTED, ScriptQuery, Transaction, TransactionLog, read, script
from perfkit.load.pool import WorkerPool, sql_target
from perfkit.load.samples import Caps
from perfkit.load.schedule import Batch
from perfkit.postgres import databases

pytestmark = pytest.mark.slow  # the module takes more than a minute

NASTY = [
    "",
    "NULL",
    "0042",
    "'",
    '"',
    "\\",
    "a:b",
    ":a",
    "{x,y}",
    ",",
    "two\nlines",
    "ünïcode ☃",
    "%(a)s",
    "E'\\n",
    "; --",
]
UPDATE = "UPDATE counter SET n = n + length(%(word)s) + (SELECT 0 FROM pg_sleep(0.001)) WHERE name = 'one'"
ISOLATED = {"default_transaction_isolation": "repeatable read"}
PEOPLE = """
    CREATE TABLE people (id int PRIMARY KEY, phone text, key uuid, born date, at timestamptz);
    INSERT INTO people SELECT n, '+49 ' || n, md5(n::text)::uuid, '2000-01-01'::date + n,
        '2020-01-01 00:00Z'::timestamptz + n * interval '1 minute' FROM generate_series(1, 20000) n;
    CREATE INDEX by_phone ON people (phone);
    CREATE INDEX by_key ON people (key);
    CREATE INDEX by_born ON people (born);
    CREATE INDEX by_at ON people (at);
    CREATE TABLE seen (client int, number int, text text, exact numeric);
    CREATE TABLE counter (id int PRIMARY KEY, name text, n int);
    INSERT INTO counter VALUES (1, 'one', 0), (2, 'two', 0);
    ANALYZE;
"""


class Bench:
    """A database of one server, and short rounds by the pgbench that came with it."""

    def __init__(self, server, name):
        self.server, self.name, self.program = server, name, pgbench.program(server.bin_dir)

    def sql(self, text, *params):
        with self.server.connect(self.name) as connection:
            cursor = connection.execute(text, params) if params else run_all(connection, text)
            return cursor.fetchall() if cursor.description else []

    def target(self, timeout_s=10, statement_timeout_s=10, user="", **options):
        return sql_target(self.server.conninfo(self.name, user), timeout_s, statement_timeout_s, **options)

    def run(self, *work, seed="1", target=None, samples=100_000, watch=lambda: None, program=None, **scenario):
        queries = tuple(own.item for own in work if isinstance(own, ScriptQuery))
        sent = {"send": queries} if queries else {"script": work}
        chosen = Scenario(name="round", label="", engine="pgbench", **{"seconds": 0.4, **sent, **scenario})
        target = target or self.target(retries=chosen.retries)
        program = program or self.program
        return pgbench.run(program, target, chosen, work, seed, samples=samples, watch=watch)

    def seen(self):
        found = self.sql("SELECT client, number, text, exact FROM seen")
        self.sql("TRUNCATE seen")
        return found


@pytest.fixture(scope="module", params=["server16", "server"])
def bench(request):
    server = request.getfixturevalue(request.param)
    databases.create(server, "pgbench_engine")
    made = Bench(server, "pgbench_engine")
    made.sql(PEOPLE)
    yield made
    databases.drop(server, made.name)


@pytest.fixture(scope="module")
def newest(server):
    """For what does not depend on the version."""
    databases.create(server, "pgbench_newest")
    made = Bench(server, "pgbench_newest")
    made.sql(PEOPLE)
    yield made
    databases.drop(server, made.name)


@pytest.fixture
def own(tmp_path):
    """A script of the user's, from its text."""

    def write(text, name="own"):
        path = tmp_path / f"{name}.sql"
        path.write_text(text)
        return path

    return write


def responses(load):
    stamps = zip(load.columns.scheduled, load.columns.done, load.columns.outcome, strict=True)
    return [(done - due) / 1e6 for due, done, outcome in stamps if outcome == "ok"]


def services(load):
    stamps = zip(load.columns.started, load.columns.done, load.columns.outcome, strict=True)
    return [(done - began) / 1e6 for began, done, outcome in stamps if outcome == "ok"]


def outcomes(load):
    return Counter(load.columns.outcome)


class TestALogLine:
    def written(self, tmp_path, *lines, **kind):
        path = tmp_path / "log.1"
        path.write_text("".join(f"{line}\n" for line in lines))
        given = {"paced": False, "retried": False, "warm": 0, "seconds": 60.0, "separate_lookups": (), **kind}
        return TransactionLog([path], ["first", "second"], **given)

    def test_counts_back_from_its_end_to_its_begin(self, tmp_path):
        written = self.written(tmp_path, "0 1 2000 0 100 500000", "1 1 1500 1 100 500700")
        found = read(written, [], 100)
        first, second = zip(*found.columns.lists.values(), strict=True)
        assert first == ("first", 0, 0, True, 0, 0, 0, 2_000_000, "ok", "", 1)
        assert second == ("second", 1, 0, True, 1_200_000, 1_200_000, 1_200_000, 2_700_000, "ok", "", 1)

    def test_with_a_rate_counts_from_when_it_was_due_and_gives_how_much_later_it_began(self, tmp_path):
        written = self.written(tmp_path, "0 1 5000 0 100 500000 3000 2", paced=True, retried=True)
        columns = read(written, [], 100).columns
        assert (columns.scheduled, columns.started, columns.done) == ([0], [3_000_000], [5_000_000])
        assert columns.attempts == [3]

    def test_of_a_failure_or_a_transaction_that_was_skipped_has_its_end_alone(self, tmp_path):
        lines = ("0 1 1000 0 100 1000 0 0", "0 2 serialization 0 100 2000 0 3", "0 3 deadlock 0 100 3000 0 3")
        skipped = "0 4 skipped 0 100 4000 0 4294967295"
        columns = read(self.written(tmp_path, *lines, skipped, paced=True, retried=True), [], 100).columns
        assert columns.outcome == ["ok", "sqlstate_40001", "sqlstate_40P01", "skipped"]
        assert columns.scheduled[1:] == columns.done[1:] == [2_000_000, 3_000_000, 4_000_000]
        assert columns.attempts == [1, 4, 4, 0]

    def test_that_waited_for_its_client_is_late_but_that_is_not_the_programs_lag(self, tmp_path):
        lines = ("0 1 9000 0 100 9000 0", "0 2 8000 0 100 10000 7050")
        found = read(self.written(tmp_path, *lines, paced=True), [], 100)
        assert found.columns.started[1] - found.columns.scheduled[1] == 7_050_000
        assert list(found.lags) == [0, 50_000]

    def test_of_a_lookup_is_no_sample_even_where_its_query_failed_and_came_again(self, tmp_path):
        took = ["11", "500", "12", "serialization", "501", "13", "502"]  # lookup, query, lookup, query twice, ...
        lines = [f"0 {n} {word} 0 100 {n * 1000}" for n, word in enumerate(took, 1)]
        columns = read(self.written(tmp_path, *lines, separate_lookups={0}), [], 100).columns
        spans = [done - due for due, done in zip(columns.scheduled, columns.done, strict=True)]
        assert spans == [500_000, 0, 501_000, 502_000]

    def test_counts_after_the_warm_ones_of_its_client_and_within_the_time(self, tmp_path):
        lines = [f"{client} 1 100 0 {100 + second} 0" for second in range(4) for client in (0, 1)]
        columns = read(self.written(tmp_path, *lines, warm=1, seconds=2.5), [], 100).columns
        assert columns.counted == [False] * 2 + [True] * 4 + [False] * 2

    def test_beyond_those_kept_goes_into_a_histogram(self, tmp_path):
        lines = [f"0 {n} {n * 1000} 0 100 {n * 1000}" for n in range(1, 101)]
        found = read(
            self.written(tmp_path, *lines), [Transaction(0, 0, ABORTED, *[100_200_000_000] * 3, detail="gone")], 10
        )
        assert len(found.columns.item) == 10 + 1
        values = found.rest["first"].values_ms(1000)
        assert len(values) == 90
        assert (min(values), max(values)) == (pytest.approx(11, rel=0.001), pytest.approx(100, rel=0.001))


class TestRows:
    @pytest.mark.parametrize("rate", [None, 400])
    def test_of_any_text_reach_the_server_as_they_are_dealt_to_the_clients_in_turn(self, bench, rate):
        rows = [{"text": text, "number": n, "exact": n / 8} for n, text in enumerate(NASTY)]
        insert = "INSERT INTO seen VALUES (%(number)s, %(number)s, %(text)s, %(exact)s)"
        load = bench.run(ScriptQuery("insert", insert, rows), users=3, rate=rate)
        found = bench.seen()
        assert outcomes(load) == {"ok": len(found)}
        assert {(row["number"], row["text"], float(row["exact"])) for row in found} == {
            (n, text, n / 8) for n, text in enumerate(NASTY)
        }

    def test_of_numbers_need_no_lookup_and_none_is_taken_twice_before_all_were_taken_once(self, bench):
        rows = [{"n": n * 7 - 500, "x": n / 3 if n % 2 else -1e-7 * n} for n in range(1000)]
        for row in rows:
            row["x"] = float(f"{row['x']:.15g}")
        load = bench.run(ScriptQuery("insert", "INSERT INTO seen VALUES (0, %(n)s, '', %(x)s)", rows), users=1)
        found = bench.seen()
        assert "lookup_ms" not in load.health
        assert {(row["number"], float(row["exact"])) for row in found} <= {(row["n"], row["x"]) for row in rows}
        assert len({row["number"] for row in found}) == min(len(found), 1000)

    def test_that_are_but_one_are_written_into_the_statement(self, bench):
        row = {"none": None, "number": -5, "text": "".join(NASTY), "exact": 0.1}
        sql = "INSERT INTO seen VALUES (%(none)s, 7 -%(number)s, %(text)s, %(exact)s)"
        assert "lookup_ms" not in bench.run(ScriptQuery("insert", sql, [row])).health
        assert {(row["client"], row["number"], row["text"], float(row["exact"])) for row in bench.seen()} == {
            (None, 12, "".join(NASTY), 0.1)
        }

    def test_are_those_that_perfkits_own_users_send(self, newest):
        rows = [{"text": text, "number": n} for n, text in enumerate(NASTY)]
        insert = "INSERT INTO seen VALUES (0, %(number)s, %(text)s, 10 %% 7)"
        newest.run(ScriptQuery("insert", insert, rows))
        by_pgbench = {tuple(row.values()) for row in newest.seen()}
        with WorkerPool(1) as crew:
            messages = tuple({"item": "insert", "sql": insert, "params": row} for row in rows)
            crew.run(newest.target(), [Batch((messages,))])
        assert by_pgbench == {tuple(row.values()) for row in newest.seen()}

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=40))
    def test_of_numbers_are_chosen_by_halving(self, values):
        made = script(ScriptQuery("q", "SELECT %(n)s", [{"n": value} for value in values]), 0, 1, paced=False)
        (choice,) = re.findall(r"^\\set n (.*)$", made.text, re.MULTILINE)
        for row, value in enumerate(values, 1):
            left = choice
            while found := re.match(r"case when :perfkit_row <= (\d+) then ", left):
                then, other = branches(left[found.end() :])
                left = then if row <= int(found[1]) else other
            assert int(left) == value

    def test_with_a_null_among_several_are_refused(self):
        query = ScriptQuery("people", "SELECT %(a)s::text", [{"a": "x"}, {"a": None}])
        with pytest.raises(UsageError, match=r"query 'people': a parameter without a value \(null\)"):
            script(query, 0, 1, paced=False)

    @pytest.mark.parametrize(
        ("sql", "said"),
        [
            ("SELECT 'a:b', %(a)s", "':b' would be a variable"),
            ("SELECT (ARRAY[1])[%(a)s:%(b)s]", "'b' would be no variable"),
            ("SELECT %(c)s", "'c' is not a column"),
            ("SELECT 5 % 2, %(a)s", "expected %\\(name\\)s"),
        ],
    )
    def test_are_refused_for_a_statement_that_pgbench_would_take_for_another(self, sql, said):
        with pytest.raises(UsageError, match=said):
            script(ScriptQuery("odd", sql, [{"a": 1, "b": 2}] * 2), 0, 1, paced=False)

    def test_of_every_type_find_their_index_with_prepared_statements(self, bench):
        picked = bench.sql("SELECT id, phone, key::text, born::text, at::text FROM people WHERE id % 400 = 0")
        queries = [ScriptQuery(n, f"SELECT * FROM people WHERE {n} = %({n})s", picked) for n in picked[0]]
        before = scans(bench)
        load = bench.run(*queries, users=2)
        wanted = {"id": "people_pkey", "phone": "by_phone", "key": "by_key", "born": "by_born", "at": "by_at"}
        sent = Counter(load.columns.item)
        assert outcomes(load) == {"ok": sum(sent.values())}
        expected = {wanted[item]: count for item, count in sent.items()}
        assert len(expected) == 5
        deadline = time.monotonic() + 10  # statistics come when a session has ended
        while (found := scans(bench) - before) != Counter(expected) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found == expected


def branches(text):
    """What follows `then`, split at its own `else` and without its own `end`."""
    depth, words = 0, text.split(" ")
    for index, word in enumerate(words):
        if word == "else" and depth == 0:
            return " ".join(words[:index]), " ".join(words[index + 1 : -1])
        depth += {"case": 1, "end": -1}.get(word, 0)
    raise AssertionError(text)


def scans(bench):
    indexes = bench.sql("SELECT indexrelname AS name, idx_scan AS n FROM pg_stat_user_indexes WHERE relname = 'people'")
    tables = bench.sql("SELECT 'seq' AS name, seq_scan AS n FROM pg_stat_user_tables WHERE relname = 'people'")
    return Counter({row["name"]: row["n"] for row in indexes + tables})


class TestARound:
    def told(self, tmp_path, bench):
        """A pgbench that leaves its own report behind, and that report; progress makes it average every latency."""
        report, program = tmp_path / "report", tmp_path / "told"
        program.write_text(
            f'#!/bin/bash\nset -o pipefail\n"{bench.program}" -P 99 "$@" 2>"{tmp_path}/said" | tee "{report}"\n'
        )
        program.chmod(0o755)
        return program, lambda name: float(re.search(rf"{name} *[=:]? *([\d.]+)", report.read_text())[1])

    @pytest.mark.parametrize("rate", [None, 200])
    def test_has_the_figures_of_pgbenchs_own_report(self, bench, own, tmp_path, rate):
        program, figure = self.told(tmp_path, bench)
        said = tmp_path / "said"
        load = bench.run(own("SELECT pg_sleep(0.002);"), users=2, rate=rate, program=program)
        assert {len(column) for column in load.columns.lists.values()} == {len(load.columns)}
        assert "executing script" not in said.read_text()  # what each client does: 16 would tell it if asked wrongly
        assert len(responses(load)) == figure("number of transactions actually processed:")
        assert statistics.mean(responses(load)) == pytest.approx(figure("latency average"), abs=0.002)
        if rate:
            lags = [r - s for r, s in zip(responses(load), services(load), strict=True)]
            assert statistics.mean(lags) == pytest.approx(figure(r"rate limit schedule lag: avg"), abs=0.002)
        assert min(load.columns.scheduled) == 0

    def test_keeps_a_lookup_out_of_its_querys_time_and_says_what_it_took(self, bench, tmp_path):
        program, figure = self.told(tmp_path, bench)
        rows = [{"phone": f"+49 {n}"} for n in range(1, 500)]
        slow = ScriptQuery("slow", "SELECT pg_sleep(0.05) FROM people WHERE phone = %(phone)s", rows)
        load = bench.run(slow, users=2, program=program)
        processed = figure("number of transactions actually processed:")
        assert processed / 2 - 2 <= len(responses(load)) <= processed / 2  # the other half are lookups
        assert min(responses(load)) >= 50
        assert 0 < load.health["lookup_ms"] < 50

    def test_runs_each_query_as_often_as_the_others_whether_it_looks_up_or_not(self, newest):
        rows = [{"phone": f"+49 {n}"} for n in range(1, 500)]
        phone = ScriptQuery("phone", "SELECT * FROM people WHERE phone = %(phone)s", rows)
        load = newest.run(phone, ScriptQuery("one", "SELECT 1"), users=2, seconds=0.49)
        sent = Counter(load.columns.item)
        assert sent["phone"] / sent["one"] == pytest.approx(1, abs=0.35)

    def test_has_the_same_arrivals_with_the_same_seed(self, newest):
        one, again, other = (
            newest.run(ScriptQuery("one", "SELECT 1"), users=1, rate=200, seed=seed) for seed in ("a", "a", "b")
        )

        def apart(left, right):
            pairs = zip(left.columns.scheduled, right.columns.scheduled, strict=False)
            return statistics.median(abs(a - b) for a, b in pairs)

        assert apart(one, again) < apart(one, other) / 5

    def test_counts_what_is_due_within_its_time_after_each_clients_warm_requests(self, newest):
        load = newest.run(ScriptQuery("one", "SELECT pg_sleep(0.002)"), users=3, warm=5, rate=500)
        by_client = defaultdict(list)
        rows = zip(*(getattr(load.columns, name) for name in ("user", "counted", "scheduled")), strict=True)
        for user, counted, scheduled in rows:
            by_client[user].append((counted, scheduled))
        assert len(by_client) == 3
        for found in by_client.values():
            assert [counted for counted, _ in found] == [
                n >= 5 and scheduled < 0.4e9 for n, (_, scheduled) in enumerate(found)
            ]
        assert max(load.columns.scheduled) > 0.4e9  # so that what was due before had the time to begin

    def test_of_any_length_keeps_so_many_times_and_histograms_of_the_rest(self, newest):
        load = newest.run(ScriptQuery("one", "SELECT pg_sleep(0.001)"), users=2, samples=100)
        assert len(load.columns.item) == 100
        rest = load.rest["one"]
        assert rest.outcomes["ok"] == len(rest.values_ms(10**9)) > 0

    def test_on_which_a_lock_falls_shows_it_to_all_who_were_due_meanwhile(self, newest, own):
        """The same second, in the open model and in the closed one."""
        query = own("SELECT count(*) FROM counter;")

        def locked():
            with psycopg.connect(newest.server.conninfo(newest.name)) as connection:
                time.sleep(0.5)
                connection.execute("LOCK TABLE counter IN ACCESS EXCLUSIVE MODE")
                time.sleep(1)

        found = {}
        for model, rate in (("open", 300), ("closed", None)):
            holder = threading.Thread(target=locked)
            holder.start()
            found[model] = newest.run(query, users=4, seconds=2, rate=rate)
            holder.join()
        waited = {model: sum(ms > 200 for ms in responses(load)) for model, load in found.items()}
        assert waited["closed"] <= 4 < 150 < waited["open"]
        assert sum(ms > 200 for ms in services(found["open"])) <= 4
        assert found["open"].health["lag_p99_ms"] < 200  # the clients were busy, not late

    def test_skips_what_could_not_begin_within_the_time_limit_for_requests(self, newest, own):
        slow = own("SELECT pg_sleep(0.02);")
        load = newest.run(slow, rate=500, target=newest.target(timeout_s=0.05))
        assert outcomes(load)["skipped"] > 20
        assert all(
            attempts == (outcome != "skipped")
            for outcome, attempts in zip(load.columns.outcome, load.columns.attempts, strict=True)
        )


class TestConflicts:
    @pytest.mark.parametrize("retries", [0, 30])
    def test_are_counted_or_tried_again_and_only_what_succeeded_is_in_the_table(self, bench, retries):
        """Three characters each; rows are looked up, which conflicts must not put out of step."""
        bench.sql("UPDATE counter SET n = 0")
        rows = [{"word": word} for word in ("abc", "def", "ghi")]
        target = bench.target(settings=ISOLATED, retries=retries)
        load = bench.run(ScriptQuery("update", UPDATE, rows), users=4, retries=retries, target=target)
        (row,) = bench.sql("SELECT n FROM counter WHERE name = 'one'")
        assert row["n"] == 3 * outcomes(load)["ok"] > 0
        assert set(outcomes(load)) <= {"ok", "sqlstate_40001"}
        if retries:
            assert max(load.columns.attempts) > 1
        else:
            assert outcomes(load)["sqlstate_40001"] > 0
            assert set(load.columns.attempts) == {1}

    def test_that_are_deadlocks_are_called_that(self, bench, own):
        text = "BEGIN;\nUPDATE counter SET n = n + 1 WHERE id = {};\n\\sleep 5 ms\n"
        text += "UPDATE counter SET n = n + 1 WHERE id = {};\nCOMMIT;\n"
        one, two = own(text.format(1, 2), "one"), own(text.format(2, 1), "two")
        superuser = bench.target(user="postgres", settings={"deadlock_timeout": "10ms"})
        load = bench.run(one, two, users=4, target=superuser)
        assert outcomes(load)["sqlstate_40P01"] > 0 < outcomes(load)["ok"]
        assert set(load.columns.item) == {"one", "two"}


class TestAnError:
    def test_ends_its_client_and_no_other_and_is_told_in_the_servers_words(self, bench, own):
        some = own("\\if :client_id = 1\nSELECT 1 / 0;\n\\else\nSELECT pg_sleep(0.01);\n\\endif\n")
        load = bench.run(some, users=3)
        rows = zip(*(getattr(load.columns, name) for name in ("outcome", "user", "item", "detail")), strict=True)
        assert [row for row in rows if row[0] != "ok"] == [("client_aborted", 1, "own", "division by zero")]
        assert {0, 2} < set(load.columns.user)
        assert outcomes(load)["ok"] > 20

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("SELECT * FROM nothing", 'relation "nothing" does not exist'),
            ("SELEC 1", 'syntax error at or near "SELEC"'),
            ("SELECT pg_sleep(10)", "canceling statement due to statement timeout"),
            ("SELECT pg_terminate_backend(pg_backend_pid())", "terminating connection due to administrator command"),
            ("INSERT INTO counter VALUES (1)", "duplicate key value violates unique constraint"),
        ],
    )
    def test_of_any_kind_is_one_sample_for_every_client(self, bench, text, said):
        load = bench.run(ScriptQuery("wrong", text), users=2, target=bench.target(statement_timeout_s=0.2))
        assert outcomes(load) == {"client_aborted": 2}
        assert all(detail.startswith(said) for detail in load.columns.detail)

    def test_in_a_script_names_its_file_and_line(self, newest, own):
        path = own("SELECT 1;\n\\set x random(1,\n")
        with pytest.raises(LoadError, match=rf'{re.escape(str(path))}:2: syntax error in command "set"'):
            newest.run(path)

    def test_in_connecting_is_one_line(self, newest):
        target = sql_target(newest.server.conninfo("no_such_database"), 10, 10)
        with pytest.raises(LoadError, match=r'^pgbench: .*database "no_such_database" does not exist$'):
            newest.run(ScriptQuery("one", "SELECT 1"), target=target)

    def test_is_a_program_that_is_not_there(self, tmp_path):
        with pytest.raises(ServerError, match="pgbench does not exist; expected pgbench among"):
            pgbench.program(tmp_path)


class TestRefused:
    def test_is_a_server_that_perfkit_did_not_start(self, newest):
        with pytest.raises(UsageError, match="no circuit breaker; expected engine 'asyncio'"):
            newest.run(ScriptQuery("one", "SELECT 1"), target=newest.target(limits=Caps(rate=5)))

    @pytest.mark.parametrize(
        ("scenario", "said"),
        [({"arrivals": "constant"}, "expected 'poisson'"), ({"connections": 2}, "2 connections for 5 users")],
    )
    def test_is_what_pgbench_cannot_do(self, newest, scenario, said):
        with pytest.raises(UsageError, match=said):
            newest.run(ScriptQuery("one", "SELECT 1"), users=5, rate=10, **scenario)


class TestStopped:
    def sessions(self, bench):
        return bench.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'perfkit load' AND datname = %s", bench.name
        )

    def gone(self, bench):
        deadline = time.monotonic() + 10
        while self.sessions(bench) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.sessions(bench)

    def test_by_its_watch_it_leaves_no_process_and_no_file(self, newest, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        found = []

        def watch():
            found.append((len(self.sessions(newest)), len(list(tmp_path.iterdir()))))
            raise TimeoutError("enough")

        with pytest.raises(TimeoutError, match="enough"):
            newest.run(ScriptQuery("nap", "SELECT pg_sleep(0.1)"), users=2, seconds=60, watch=watch)
        assert found == [(2, 1)]
        assert self.gone(newest)
        assert not list(tmp_path.iterdir())

    def test_by_ctrl_c_it_leaves_no_process_and_no_file(self, newest, tmp_path):
        code = f"""
from pathlib import Path
from perfkit.config import Scenario
from perfkit.load import pgbench
from perfkit.load.pool import sql_target
from perfkit.load.pgbench import ScriptQuery as Query
scenario = Scenario(name="long", label="", send=("nap",), users=2, seconds=60, engine="pgbench")
target = sql_target({newest.server.conninfo(newest.name)!r}, 10, 10)
pgbench.run(Path({str(newest.program)!r}), target, scenario, [Query("nap", "SELECT pg_sleep(0.1)")], "1")
"""
        env = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while len(self.sessions(newest)) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(self.sessions(newest)) == 2
            process.send_signal(signal.SIGINT)
            assert process.wait(10) != 0
        finally:
            process.kill()
            process.wait()
        assert self.gone(newest)
        assert not list(tmp_path.iterdir())


def test_the_users_own_script_may_have_any_name(newest, tmp_path):
    folder = tmp_path / "a folder @ home"
    folder.mkdir()
    path = Path(folder, "my@script.sql")
    path.write_text("SELECT 1;")
    assert set(newest.run(path, seconds=0.1).columns.item) == {"my@script"}

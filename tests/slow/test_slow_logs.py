"""Slow statements out of logs: what is counted, grouped and kept, and that nothing in a file breaks the reader."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_all
from watched import until

from benchmarks import logs as benchmark
from perfkit.base.errors import UsageError
from perfkit.postgres import databases, embedded
from perfkit.postgres.sqltext import Normals, normal
from perfkit.slow.digest import parameters
from perfkit.slow.log_sources import follow, read
from perfkit.slow.logs import LogReader
from perfkit.slow.statements import SlowQueries, SlowStatement

WHEN = "2026-03-02 08:00:0{} UTC"


def record(message: str, second: int = 0, pid: int = 7, query_id: int = 0, **more: Any) -> bytes:
    """A line of a jsonlog."""
    fields = {"timestamp": WHEN.format(f"{second}.250"), "user": "app", "dbname": "shop", "pid": pid,
              "error_severity": "LOG", "message": message, **more, "query_id": query_id}  # fmt: skip
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def line(message: str, second: int = 0, pid: int = 7, level: str = "LOG", zone: str = "UTC") -> bytes:
    """A record of a plain log with Debian's prefix."""
    head = f"2026-03-02 08:00:0{second}.250 {zone} [{pid}] app@shop {level}:  "
    return (head + message.replace("\n", "\n\t") + "\n").encode()


def plan(ms: float, text: str) -> str:
    document = {"Query Text": text, "Plan": {"Node Type": "Result", "Total Cost": 0.01}}
    return f"duration: {ms} ms  plan:\n{json.dumps(document, indent=2)}"


def of(data: bytes, **options: Any) -> SlowQueries:
    reader = LogReader(**options)
    reader.feed(data)
    return reader.result()


def only(found: SlowQueries) -> SlowStatement:
    assert len(found.statements) == 1, [statement.text for statement in found.statements]
    return found.statements[0]


class TestANormalisedText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("SELECT  1,\n 'a'", "SELECT $1, $2"),
            ("SELECT a -- why\nFROM t /* and /* so */ on */ WHERE b=2;", "SELECT a FROM t WHERE b = $1"),
            (r"SELECT E'it\'s', $$a'b$$, $x$ $$ $x$, B'1', X'1F', 'it''s'", "SELECT $1, $2, $3, $4, $5, $6"),
            ("SELECT '-- no comment', '/*' || b", "SELECT $1, $2 || b"),
            ("SELECT t1.c2, x_3 FROM t1", "SELECT t1.c2, x_3 FROM t1"),
            ('SELECT "a 1", "b""2" FROM t', 'SELECT "a 1", "b""2" FROM t'),
            ("WHERE a = '7'::int AND b = 7::text", "WHERE a = $1::int AND b = $2::text"),
            ("WHERE a IN (1, 2, 3) AND b IN ('x')", "WHERE a IN ($1) AND b IN ($2)"),
            ("WHERE a IN ($1, $2) AND b = $3", "WHERE a IN ($1) AND b = $2"),
            ("WHERE a IN ('x'::uuid, 'y'::uuid)", "WHERE a IN ($1::uuid)"),
            ("WHERE a IN (1, b)", "WHERE a IN ($1, b)"),
            ("WHERE a = ANY (ARRAY[1, 2, 3])", "WHERE a = ANY (ARRAY[$1])"),
            ("WHERE a = -5 AND b - 5 > +3", "WHERE a = $1 AND b - $2 > $3"),
            ("SELECT a-5, (a)-5, -5, 2*-5, a<-5", "SELECT a - $1, (a) - $2, $3, $4 * $5, a < $6"),
            ("SELECT 1.5, .5, 1e-3, 0x1F, 1_000", "SELECT $1, $2, $3, $4, $5"),
            ("SELECT v <-> '[1,2]', j->>'k', j @> '{}'", "SELECT v <-> $1, j ->> $2, j @> $3"),
            ("WHERE a = $2 AND b = $1 AND c = $2", "WHERE a = $1 AND b = $2 AND c = $1"),
            ("VALUES (1, 'a'), (2, 'b'), (3, 'c')", "VALUES ($1, $2)"),
            ("VALUES (1, now()), (2, 3)", "VALUES ($1, now()), ($2, $3)"),
            ("SELECT a, b FROM t ORDER BY 2 DESC, 1 LIMIT 10", "SELECT a, b FROM t ORDER BY 2 DESC, 1 LIMIT $1"),
            ("SELECT 'a'\n 'b'", "SELECT $1"),
            ("SELECT 'never closed", "SELECT $1"),
            ("", ""),
        ],
    )
    def test_has_numbers_for_values_and_one_space(self, text: str, expected: str) -> None:
        assert normal(text) == expected
        assert normal(expected) == expected

    @settings(max_examples=500)
    @given(st.text(alphabet=st.sampled_from(list("aB1 .,;:'\"$\\-/*+=<>()[]%?@&eExXuU_\n\té\x00 INVALUESBY"))))
    def test_stays_as_it_is_whatever_it_was_made_from(self, text: str) -> None:
        assert normal(normal(text)) == normal(text)

    @settings(max_examples=200)
    @given(st.data())
    def test_is_the_same_for_texts_that_differ_in_values_blanks_and_comments_alone(self, data: st.DataObject) -> None:
        first, second = (_written(data.draw(st.just(SHAPE)), data) for _ in range(2))
        assert normal(first) == normal(second) == normal(SHAPE.format(*["1"] * 9, *[" "] * 6))

    @settings(max_examples=500)
    @given(st.lists(st.sampled_from(PIECES := [
        "SELECT ", "a", " b1", "'x'", "'y y'", "'", '"a 1"', '"', "5", "-7", "1.5", "$1", "$x$", "--", "/*", "\\", "?",
        " IN (", ")", ", ", "ORDER BY ", " LIMIT ", "VALUES ", "E'", "::int", ";", " ", "=", "\n",
    ]), max_size=12), st.lists(st.sampled_from(["1", "22", "'z'", "'w w'"]), min_size=30, max_size=30))  # fmt: skip
    def test_is_remembered_without_mistaking_one_for_another(self, pieces: list[str], values: list[str]) -> None:
        normals = Normals()
        others = [value if piece in ("5", "'x'") else piece for piece, value in zip(pieces, values, strict=False)]
        for text in ("".join(pieces), "".join(others), "".join(pieces)):
            assert normals.of(text) == normal(text)


SHAPE = (
    "SELECT a1, count(*){9}FROM t_2{10}WHERE a = {0} AND b{11}= {1}::text AND c IN ({2}) AND d BETWEEN {3} AND {4} "
    "AND e <> ALL (ARRAY[{5}]) AND f ={12}{6}{13}AND g LIKE {7} ORDER BY 1{14}LIMIT {8}"
)


def _written(shape: str, data: st.DataObject) -> str:
    number = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)).map(str)
    word = st.text(alphabet=st.characters(exclude_characters="'\\$\x00", exclude_categories=["Cs"]), max_size=8)
    text = st.one_of(
        word.map("'{}'".format),
        word.map("E'\\'{}'".format),
        word.map("$q${}$q$".format),
        word.map(lambda own: f"'it''s {own}'"),
    )
    value = st.one_of(number, text)
    listed = st.lists(value, min_size=1, max_size=4).map(", ".join)
    blank = st.sampled_from([" ", "\n\t", " /* 'c' /* \" */ 7 */ ", " -- it's 5\n"])
    kinds = [value, text, listed, number, number, listed, value, text, number, *[blank] * 6]
    return shape.format(*(data.draw(kind) for kind in kinds))


class TestAJsonLog:
    def test_is_grouped_by_query_id_and_the_slowest_execution_is_the_example(self) -> None:
        data = record("duration: 1.5 ms  statement: SELECT 1 FROM t WHERE a = 1", 1, query_id=42)
        data += record("duration: 3.25 ms  statement: SELECT 1 FROM t  WHERE a = 2", 2, query_id=42)
        data += record("duration: 2.5 ms  statement: SELECT 1 FROM t WHERE a = 3", 3, query_id=42)
        data += record("duration: 9 ms  statement: SELECT 1 FROM t WHERE a = 4", 4, query_id=43)
        first, second = of(data).statements
        assert (first.id, first.calls, first.total_ms) == ("43", 1, 9)
        assert (second.id, second.calls, second.total_ms) == ("42", 3, 7.25)
        assert second.text == "SELECT $1 FROM t WHERE a = $2"
        assert second.example and second.example.sql.endswith("a = 2") and second.example.ms == 3.25
        assert second.first == datetime(2026, 3, 2, 8, 0, 1, 250_000, UTC)
        assert second.last == datetime(2026, 3, 2, 8, 0, 3, 250_000, UTC)

    def test_without_query_ids_is_grouped_by_the_normalised_text(self) -> None:
        data = record("duration: 1 ms  statement: SELECT 1") + record("duration: 2 ms  statement: select 1")
        data += record("duration: 4 ms  statement: SELECT   2 -- two")
        first, second = of(data).statements
        assert (first.text, first.calls, second.text) == ("SELECT $1", 2, "select $1")
        assert len(first.id) == 16

    def test_several_statements_in_one_text_are_not_taken_for_the_last_of_them(self) -> None:
        data = record("duration: 5 ms  statement: SELECT 1; SELECT x", query_id=9)
        data += record("duration: 1 ms  statement: SELECT x", query_id=9)
        assert {s.text: s.calls for s in of(data).statements} == {"SELECT $1; SELECT x": 1, "SELECT x": 1}

    def test_parse_and_bind_are_no_calls_and_the_rest_of_a_cursor_is_none_either(self) -> None:
        data = record("duration: 7 ms  parse <unnamed>: SELECT $1") + record(
            "duration: 5 ms  bind <unnamed>: SELECT $1"
        )
        data += record("duration: 1 ms  execute S_1/C_2: SELECT $1")
        data += record("duration: 2 ms  execute fetch from S_1/C_2: SELECT $1")
        found = of(data)
        assert (only(found).calls, only(found).total_ms) == (1, 3)
        assert "excludes 12 ms of parse and bind time (2 entries)" in found.notes

    def test_what_log_statement_wrote_has_the_duration_that_follows_in_its_session(self) -> None:
        data = record("statement: SELECT 1", pid=1) + record(
            "execute <unnamed>: SELECT $1", pid=2, detail="Parameters: $1 = 'x'"
        )
        data += record("duration: 5 ms", pid=2) + record("duration: 1 ms", pid=1) + record("duration: 3 ms", pid=1)
        found = of(data)
        assert (only(found).calls, only(found).total_ms) == (2, 6)
        assert only(found).example and only(found).example.parameters == ("x",)
        assert sum(found.unread.values()) == 1 and "durations had no statement" in next(iter(found.unread))

    def test_one_database_is_read_alone_where_it_is_named(self) -> None:
        data = record("duration: 5 ms  statement: SELECT 1") + record("duration: 5 ms  statement: SELECT 1", dbname="x")
        assert only(of(data, database="shop")).calls == 1
        assert only(of(data)).calls == 2

    def test_a_percentile_is_given_where_there_are_executions_enough_and_within_two_percent(self) -> None:
        times = [1.13**n for n in range(100)]
        data = b"".join(record(f"duration: {ms:.3f} ms  statement: SELECT 1", query_id=3) for ms in times)
        found = only(of(data)).p95_ms
        assert found == pytest.approx(times[94], rel=0.021)
        assert only(of(b"".join(data.splitlines(True)[:71]))).p95_ms is None

    def test_too_many_statements_leave_the_largest_and_one_line_of_others(self) -> None:
        texts = [f"SELECT c{n}" for n in range(100)]
        data = b"".join(record(f"duration: {n + 1} ms  statement: {text}") for n, text in enumerate(texts))
        found = of(data * 2, limit=10)
        assert len(found.statements) == 11 and found.total_ms == pytest.approx(2 * 5050)
        assert {"SELECT c99", "others"} <= {statement.text for statement in found.statements}
        assert sum(statement.calls for statement in found.statements) == 200
        assert any(note.startswith("more than 10 statements") for note in found.notes)

    def test_it_says_that_a_log_holds_only_what_was_logged(self) -> None:
        assert (
            "only logged statements (fastest: 250.5 ms)"
            in of(record("duration: 250.500 ms  statement: SELECT 1")).notes[0]
        )
        assert "no durations of statements" in of(record("connection received")).notes[0]


class TestParameters:
    @pytest.mark.parametrize(
        ("detail", "values"),
        [
            ("parameters: $1 = '7', $2 = NULL", ("7", None)),
            ("Parameters: $1 = 'it''s, $2 = ''x''', $2 = ''", ("it's, $2 = 'x'", "")),
            ("Parameters: $1 = 'a\nb'", ("a\nb",)),
            ("Parameters: $1 = 'long...', $2 = '1'", ()),
            ("Parameters: $1 = 'cut", ()),
            ("Parameters: $2 = '1'", ()),
            ("", ()),
        ],
    )
    def test_are_read_where_they_are_all_there(self, detail: str, values: tuple[str | None, ...]) -> None:
        assert parameters(detail) == values


class TestAPlan:
    @pytest.mark.parametrize("first", ["plan", "duration"])
    @pytest.mark.parametrize("query_id", [0, 5])
    def test_and_the_duration_of_one_execution_are_counted_once(self, first: str, query_id: int) -> None:
        pair = [record(plan(9, "SELECT 1"), query_id=query_id),
                record("duration: 10 ms  statement: SELECT 1", query_id=query_id)]  # fmt: skip
        data = b"".join(pair if first == "plan" else reversed(pair))
        found = only(of(data * 3 + record("duration: 2 ms  statement: SELECT 2", query_id=query_id) * 2))
        assert (found.calls, found.total_ms) == (5, 34)
        assert found.plan["Plan"]["Node Type"] == "Result"

    def test_of_another_session_is_not_the_duration_s(self) -> None:
        data = record(plan(9, "SELECT 1"), pid=1) + record("duration: 10 ms  statement: SELECT 1", pid=2)
        assert only(of(data)).calls == 2

    def test_alone_counts_its_execution_and_joins_the_statement_of_its_text(self) -> None:
        data = record(plan(9, "SELECT 1"), pid=1, query_id=5)
        data += record("duration: 10 ms  statement: SELECT 1", pid=2, query_id=5)
        found = only(of(data))
        assert (found.id, found.calls, found.total_ms, found.plan is None) == ("5", 2, 19, False)

    def test_of_a_function_s_own_statement_is_not_the_calling_statement_s(self) -> None:
        data = record(plan(3, "SELECT inner_one"), query_id=5) + record(plan(8, "SELECT f()"), query_id=5)
        data += record("duration: 9 ms  statement: SELECT f()", query_id=5)
        assert {s.text: (s.calls, s.total_ms) for s in of(data).statements} == {
            "SELECT f()": (1, 9), "SELECT inner_one": (1, 3),
        }  # fmt: skip

    def test_that_is_no_json_or_was_cut_off_is_counted_as_unread(self) -> None:
        data = record("duration: 9 ms  plan:\nQuery Text: SELECT 1\nResult  (cost=0.00..0.01 rows=1 width=4)")
        data += record('duration: 9 ms  plan:\n{"Query Text": "SELECT 1", "Pl')
        reasons = of(data).unread
        assert len(reasons) == 2 and set(reasons.values()) == {1}
        assert any("auto_explain.log_format = json" in reason for reason in reasons)


class TestAPlainLog:
    def test_is_grouped_by_text_with_its_times_parameters_and_many_lines(self) -> None:
        data = line("duration: 5 ms  execute <unnamed>: SELECT a\nFROM t\n\nWHERE b = $1", 1)
        data += line("Parameters: $1 = 'x\ny'", 1, level="DETAIL") + line("checkpoint starting: time", 2)
        data += line("duration: 6 ms  statement: SELECT a FROM t WHERE b = 'z'", 3)
        data += line("duration: 2 ms  execute q: SELECT a FROM t WHERE b = $1", 4)
        data += line("some other's detail", 4, level="ERROR") + line("Parameters: $1 = 'n'", 4, level="DETAIL")
        found = only(of(data))
        assert (found.text, found.calls, found.total_ms) == ("SELECT a FROM t WHERE b = $1", 3, 13)
        assert found.first == datetime(2026, 3, 2, 8, 0, 1, 250_000, UTC)
        assert found.example and found.example.sql.endswith("'z'")
        slowest = only(of(data.replace(b"duration: 5", b"duration: 7")))
        assert slowest.example and slowest.example.parameters == ("x\ny",)
        assert slowest.example.sql == "SELECT a\nFROM t\n\nWHERE b = $1"

    @pytest.mark.parametrize(
        ("prefix", "head"),
        [
            ("", "2026-03-02 08:00:01.250 UTC [7] "),
            ("", "2026-03-02 08:00:01 UTC [7]: [3-1] user=app,db=shop,app=my app 1/2,client=10.1.1.1 "),
            ("", "2026-03-02 08:00:01 UTC:10.1.1.1(5432):app@shop:[7]:"),
            ("", "10.1.1.1 2026-03-02 08:00:01.250 UTC [7] app@shop "),
            ("", "-- who knows <2026-03-02 09:00:01.250 CET> [7] "),
            ("%m [%p] %q%u@%d %a ", "2026-03-02 10:00:01.250 +02 [7] app@shop web "),
            ("%n|%p|", "1772438401.250|7|"),
        ],
    )
    def test_has_its_prefix_guessed_or_given(self, prefix: str, head: str) -> None:
        found = only(of(f"{head}LOG:  duration: 5 ms  statement: SELECT 1\n".encode(), prefix=prefix))
        assert found.last and found.last.replace(microsecond=0) == datetime(2026, 3, 2, 8, 0, 1, tzinfo=UTC)

    def test_with_query_ids_in_its_prefix_is_grouped_by_them(self) -> None:
        data = b"2026-03-02 08:00:01.250 UTC [7] -42 LOG:  duration: 5 ms  statement: SELECT 1\n"
        assert only(of(data)).id == only(of(data, prefix="%m [%p] %Q ")).id == "-42"

    def test_gives_plans_to_their_statements(self) -> None:
        found = only(of(line(plan(9, "SELECT 1\nFROM t")) + line("duration: 10 ms  statement: SELECT 1\nFROM t")))
        assert found.calls == 1 and found.plan["Query Text"] == "SELECT 1\nFROM t"

    def test_a_zone_that_has_no_one_meaning_is_said(self) -> None:
        assert any(
            "time zone (IST) has an unknown offset" in note
            for note in of(line("duration: 1 ms  statement: SELECT 1", zone="IST")).notes
        )

    def test_a_prefix_that_cannot_be_read_back_is_refused(self) -> None:
        with pytest.raises(UsageError, match="log_line_prefix '%m %m'"):
            LogReader("stderr", "%m %m")


GOOD = [
    record("duration: 1.5 ms  statement: SELECT 'é' FROM t WHERE a = 1", 1, query_id=42),
    record("duration: 2.5 ms  execute <unnamed>: SELECT $1", 2, pid=8, detail="Parameters: $1 = 'x'"),
    record(plan(1.0, "SELECT 'é' FROM t WHERE a = 1"), 1, query_id=42),
    record("connection received: host=[local]"),
]
PLAIN = [
    line("duration: 1.5 ms  statement: SELECT 'é'\nFROM t WHERE a = 1", 1),
    line("duration: 2.5 ms  execute <unnamed>: SELECT $1", 2) + line("Parameters: $1 = 'x'", 2, level="DETAIL"),
    line(plan(1.0, "SELECT 'é'\nFROM t WHERE a = 1")),
    line("connection received: host=[local]"),
]


class TestTheReader:
    @settings(max_examples=100)
    @given(st.sampled_from(["json", "stderr", ""]), st.data())
    def test_gives_the_same_however_the_bytes_are_cut(self, form: str, data: st.DataObject) -> None:
        records = data.draw(st.lists(st.sampled_from(PLAIN if form == "stderr" else GOOD), min_size=1, max_size=8))
        whole = b"".join(records)[: data.draw(st.integers(-40, -1))]
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
        reader = LogReader(form)
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            reader.feed(whole[start:end])
            if data.draw(st.booleans()):
                reader.result()  # looking changes nothing
        assert reader.result() == of(whole, form=form)

    @settings(max_examples=150)
    @given(st.sampled_from(["json", "stderr", ""]), st.lists(st.binary(max_size=60), max_size=6))
    def test_takes_garbage_between_records_and_counts_it(self, form: str, garbage: list[bytes]) -> None:
        records = PLAIN if form == "stderr" else GOOD
        garbage = [own.replace(b"\n", b"").lstrip(b"\t") + b"#" for own in garbage]
        data = records[1] + b"".join(own + b"\n" + records[1] for own in garbage)
        found = of(data, form=form)
        assert only(found).calls == len(garbage) + 1
        assert sum(found.unread.values()) == len(garbage)

    @pytest.mark.parametrize("cut", [10, 150, 190])
    def test_counts_a_record_that_the_end_cut_off(self, cut: int) -> None:
        found = of(GOOD[0] + GOOD[0][:cut])
        assert only(found).calls == 1 and found.unread == {"entries were cut off at the end of the log": 1}
        assert only(of(GOOD[0] + GOOD[0].rstrip())).calls == 2  # whole but for its line's end

    def test_reads_the_record_behind_one_that_a_crash_cut_off(self) -> None:
        found = of(GOOD[0] * 2 + GOOD[0][:150] + GOOD[0])
        assert only(found).calls == 3 and sum(found.unread.values()) == 1

    def test_reads_invalid_utf8_and_nul_bytes_in_a_statement(self) -> None:
        for own in (
            record("duration: 1 ms  statement: SELECT 'a~b', c~d"),
            line("duration: 1 ms  statement: SELECT 'a~b', c~d"),
        ):
            for byte in (b"\xff", b"\x00"):
                found = of(own.replace(b"~", byte))
                assert only(found).text.startswith("SELECT $1, c") and not found.unread

    def test_reads_a_record_of_20_mb_and_leaves_out_one_of_40(self) -> None:
        def large(size: int) -> bytes:
            return record(f"duration: 5 ms  statement: SELECT '{'x' * size}' FROM t")

        found = of(large(20_000_000) + large(1) + large(40_000_000) + large(1))
        assert only(found).calls == 3 and only(found).text == "SELECT $1 FROM t"
        assert found.unread == {"entries were larger than 32 MB": 1}

    def test_of_nothing_has_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "empty").write_bytes(b"")
        found = read(tmp_path / "empty")
        assert not found.statements and not found.unread and found.since is None

    def test_of_another_kind_of_file_counts_what_it_could_not_read(self) -> None:
        found = of(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20 + b"\nid,name\n1,x\n")
        assert not found.statements and sum(found.unread.values()) >= 3

    def test_takes_json_for_json_behind_noise(self) -> None:
        assert only(of(b"\x00\x01\n\n" + GOOD[0])).id == "42"

    def test_refuses_a_csv_log_in_one_line(self) -> None:
        data = b'2026-03-02 08:00:01.250 UTC,"app","shop",7,"10.1.1.1:5432",67c4.7,1,"SELECT",LOG,00000,"duration"\n'
        with pytest.raises(UsageError, match=r"^a log: is a CSV log; expected log_destination = jsonlog .* or stderr$"):
            of(data)

    def test_refuses_what_is_no_file_saying_why(self, tmp_path: Path) -> None:
        for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
            with pytest.raises(UsageError, match=f"{why}.*expected a log file"):
                read(path)
        with pytest.raises(UsageError, match="'csv'; expected json or stderr"):
            LogReader("csv")

    def test_refuses_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "log").touch(0o000)
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(UsageError, match="Permission denied"):
                read(tmp_path / "log")
        finally:
            os.seteuid(user)

    def test_keeps_its_memory_where_every_statement_is_another(self) -> None:
        reader = LogReader("json", limit=50)
        for n in range(3_000):
            reader.feed(record(f"duration: {n % 7} ms  statement: SELECT c{n} -- {'x' * 3000}", pid=n, query_id=n))
        held = reader._digest
        assert len(held._groups) <= 100 and len(held._before) <= 1_024
        assert held._held == sum(len(g.example) + len(g.detail) + len(g.plan) for g in held._groups.values())
        assert reader.result().statements[-1].calls + 50 <= 3_000


class TestFollowing:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        path = tmp_path / "server.json"
        path.write_bytes(GOOD[0])
        return path

    def following(self, log: Path, **options: Any) -> Iterator[int]:
        """How many executions are known at each look."""
        for found in follow(log, every_s=0, **options):
            yield sum(statement.calls for statement in found.statements)

    def test_reads_on_and_keeps_a_partial_line_until_it_is_whole(self, log: Path) -> None:
        looks = self.following(log)
        assert next(looks) == 1
        with log.open("ab", buffering=0) as file:
            file.write(GOOD[0][:100])
            assert next(looks) == 1
            file.write(GOOD[0][100:])
            assert next(looks) == 2

    def test_reads_what_was_written_before_a_rotation_and_the_new_file(self, log: Path) -> None:
        looks = self.following(log)
        next(looks)
        with log.open("ab") as file:
            log.rename(log.with_suffix(".1"))
            assert next(looks) == 1  # no file has the name
            file.write(GOOD[0])
        log.write_bytes(GOOD[0] * 3)
        assert next(looks) == 5

    def test_begins_anew_in_a_file_that_was_emptied(self, log: Path) -> None:
        looks = self.following(log)
        next(looks)
        with log.open("r+b") as file:
            file.truncate(0)
        assert next(looks) == 1
        with log.open("ab") as file:
            file.write(GOOD[0])
        assert next(looks) == 2

    def test_begins_at_the_end_where_that_is_wanted(self, log: Path) -> None:
        looks = self.following(log, whole=False)
        assert next(looks) == 0
        with log.open("ab") as file:
            file.write(GOOD[0])
        assert next(looks) == 1


def test_a_server_s_own_log_gives_what_was_run_with_its_parameters(server: embedded.EmbeddedServer) -> None:
    databases.create(server, "perfkit_logs")
    try:
        with server.connect("perfkit_logs", "postgres") as connection:
            run_all(connection, "SET log_min_duration_statement = 0; SET compute_query_id = on")
            connection.execute("CREATE TABLE t (a int, b text)")
            for n in range(5):
                connection.execute("SELECT * FROM t WHERE a = %s AND b = %s", (n, None))
                connection.execute(f"SELECT count(*)\nFROM t WHERE a IN ({n}, 7) AND b = 'it''s'".encode())
        path = server.data_dir / "log" / "server.json"
        until(lambda: path.read_text().count("FROM t WHERE a IN (4, 7)"))  # its last entry
        reader = LogReader(database="perfkit_logs")
        reader.feed(path.read_bytes())
        found = {statement.text: statement for statement in reader.result().statements}
    finally:
        databases.drop(server, "perfkit_logs")
    sent = found["SELECT * FROM t WHERE a = $1 AND b = $2"]
    assert sent.calls == 5 and sent.example
    assert sent.example.parameters[0] in set("01234") and sent.example.parameters[1] is None
    assert found["SELECT count(*) FROM t WHERE a IN ($1) AND b = $2"].calls == 5
    assert not sent.id.isalpha() and abs(int(sent.id)) > 1_000_000


@pytest.mark.system
def test_the_top_ten_is_pgbadger_s(tmp_path: Path) -> None:
    if not shutil.which("pgbadger"):
        assert "CI" not in os.environ, "pgbadger is part of CI's machine"
        pytest.skip("no pgbadger")
    log = tmp_path / "postgresql.log"
    benchmark.write(log, "stderr", 1_500_000)
    assert benchmark.agreeing(read(log, prefix=benchmark.PREFIX), benchmark.pgbadger(log, tmp_path)) == 10

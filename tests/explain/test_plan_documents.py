"""Plans from elsewhere: whatever psql, a client's table or a server's log made of EXPLAIN's JSON."""

import csv
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.bundle import dumps
from perfkit.base.errors import PlanError
from perfkit.explain.comparison import fingerprint
from perfkit.explain.documents import read_documents
from perfkit.explain.plan import read_plan

DOCUMENT = {
    "Plan": {
        "Node Type": "Seq Scan",
        "Relation Name": "visits",
        "Plan Rows": 5998,
        "Filter": "(note <> 'x|y + \n[{ \"QUERY PLAN\" plan: {'::text)",
    }
}
PRETTY = json.dumps([DOCUMENT], indent=2)
ALIGNED = """\
              QUERY PLAN
--------------------------------------
 [                                   +
   {                                 +
     "Plan": {                       +
       "Node Type": "Seq Scan",      +
       "Relation Name": "visits"     +
     }                               +
   }                                 +
 ]
(1 row)
"""
BOXED = """\
┌─────────────────────────────────┐
│           QUERY PLAN            │
├─────────────────────────────────┤
│ [                              ↵│
│   {                            ↵│
│     "Plan": {                  ↵│
│       "Node Type": "Seq Scan", ↵│
│       "Relation Name": "visits"↵│
│     }                          ↵│
│   }                            ↵│
│ ]                               │
└─────────────────────────────────┘
(1 row)
"""
EXPANDED = """\
-[ RECORD 1 ]--------------------------
QUERY PLAN | [                        +
           |   {                      +
           |     "Plan": {            +
           |       "Node Type": "Seq Scan", +
           |       "Relation Name": "visits" +
           |     }                    +
           |   }                      +
           | ]
"""
ENTRY = """\
2026-01-02 03:04:05.678 UTC [42] LOG:  duration: 1.234 ms  plan:
\t{
\t  "Query Text": "SELECT 'plan: {' FROM visits;",
\t  "Plan": {
\t    "Node Type": "Seq Scan",
\t    "Relation Name": "visits",
\t    "Filter": "(note = 'plan: {\\"Plan\\": {\\"Node Type\\": \\"Limit\\"}}'::text)"
\t  }
\t}
"""
NOISE = "2026-01-02 03:04:05.600 UTC [42] LOG:  checkpoint starting: time\n"


def relations(text: str) -> list[str]:
    return [read_plan(found).root.relation for found in read_documents(text)]


def refused(text: str) -> str:
    started = time.monotonic()
    with pytest.raises(PlanError) as caught:
        read_documents(text)
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value) and "expected EXPLAIN" in str(caught.value)
    return str(caught.value)


# JSON


@pytest.mark.parametrize("form", [PRETTY, json.dumps(DOCUMENT), json.dumps([DOCUMENT]), json.dumps(DOCUMENT["Plan"])])
@pytest.mark.parametrize("around", ["{}", "\ufeff{}", "\n\n  {}\n\n", "\ufeff\n{}\n(1 row)\n\n", "{}\nTime: 3.1 ms"])
def test_json_is_read_as_it_is_whatever_its_constants_say(form: str, around: str) -> None:
    assert read_documents(around.replace("{}", form, 1)) == [DOCUMENT]


def test_every_statement_of_an_array_is_found_and_every_array_of_a_file() -> None:
    assert len(read_documents(json.dumps([DOCUMENT, DOCUMENT]))) == 2
    assert len(read_documents(f"{PRETTY}\n{PRETTY}\n{json.dumps(DOCUMENT)}\n")) == 3


def test_windows_ends_of_lines_make_no_difference() -> None:
    assert read_documents(PRETTY.replace("\n", "\r\n")) == [DOCUMENT]
    assert relations(ALIGNED.replace("\n", "\r\n")) == ["visits"]


@pytest.mark.parametrize("quoted", [PRETTY, json.dumps(DOCUMENT)])
def test_a_cell_that_a_client_copied_with_its_quotes_is_read(quoted: str) -> None:
    cell = '"' + quoted.replace('"', '""') + '"'
    assert read_documents(cell) == [DOCUMENT]
    assert read_documents('"QUERY PLAN"\n' + cell) == read_documents("QUERY PLAN\n" + cell) == [DOCUMENT]


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
))  # fmt: skip
def test_what_is_written_is_read_again_value_for_value(value: Any) -> None:
    whole = {"Plan": {"Node Type": "Seq Scan", "Unknown": value}, "Later": value}
    text = dumps(whole)
    assert read_documents(text) == [whole] and dumps(read_documents(text)[0]) == text


def test_half_a_character_is_written_so_that_a_file_can_hold_it() -> None:
    text = dumps({"Plan": {"Node Type": "Seq Scan", "Alias": "\ud83d", "Other": "ü"}})
    assert read_documents(text.encode().decode())[0]["Plan"]["Alias"] == "\ud83d"


# psql


@pytest.mark.parametrize("text", [ALIGNED, BOXED, EXPANDED])
def test_psqls_frames_are_taken_off(text: str) -> None:
    assert relations(text) == ["visits"]
    assert relations("clinic=# EXPLAIN (FORMAT JSON) SELECT 1;\n" + text) == ["visits"]
    assert relations(text + "\n" + text) == ["visits", "visits"]


QUERY = """EXPLAIN (FORMAT JSON) SELECT note AS "a | b + ""c", 1 FROM visits
    WHERE note <> E'x|y +\\n[{ "QUERY PLAN" its plan: {' AND note <> 'QUERY PLAN'"""
FORMS = {
    f"{style} {border} {expanded}": ["-P", f"linestyle={style}", "-P", f"border={border}", "-P", f"expanded={expanded}"]
    for style in ("ascii", "old-ascii", "unicode")
    for border in (0, 1, 2)
    for expanded in ("off", "on")
}
FORMS |= {"unaligned": ["-A"], "unaligned expanded": ["-Ax"], "csv": ["--csv"], "csv expanded": ["--csv", "-x"]}
FORMS |= {"tuples": ["-t"], "bare": ["-At"], "tuples expanded": ["-tx"]}


@pytest.fixture(scope="module")
def psql() -> Iterator[tuple[list[str], Any]]:
    """A psql of the system's own, and the plan that the server gives without it."""
    with corpus.system_cluster() as (_, connect), connect() as connection:
        row = connection.execute(QUERY.encode()).fetchone()
        assert row
        where = ["-h", "127.0.0.1", "-p", str(connection.info.port), "-U", "postgres", "-d", "corpus"]
        yield [shutil.which("psql") or "psql", "-X", *where], row[0]


@pytest.mark.system
@pytest.mark.parametrize("form", FORMS)
def test_what_psql_prints_is_what_the_server_gave(psql: tuple[list[str], Any], form: str) -> None:
    command, expected = psql
    said = subprocess.run([*command, *FORMS[form], "-c", QUERY], capture_output=True, text=True, check=True).stdout
    assert read_documents(said) == expected


@pytest.mark.system
def test_psqls_other_formats_of_a_plan_are_told_apart_from_nonsense(psql: tuple[list[str], Any]) -> None:
    for form in ("TEXT", "XML", "YAML"):
        query = QUERY.replace("JSON", form)
        for style in ([], ["-At"], ["-x"], ["-P", "border=2"]):
            said = subprocess.run([*psql[0], *style, "-c", query], capture_output=True, text=True, check=True).stdout
            assert refused(said).startswith("a plan in text format"), (form, style)


# logs


def test_entries_of_a_log_are_found_among_its_other_lines() -> None:
    assert relations(NOISE + ENTRY + NOISE + ENTRY + NOISE) == ["visits", "visits"]
    assert relations("[42] " + ENTRY) == ["visits"]  # a prefix that begins like JSON
    assert relations(ENTRY.replace("\n", "\r\n")) == ["visits"]


def test_a_constant_that_looks_like_an_entry_is_none() -> None:
    assert [read_plan(found).root.kind for found in read_documents(ENTRY)] == ["Seq Scan"]


def test_an_entry_that_was_cut_off_is_left_out() -> None:
    assert relations(ENTRY + NOISE + ENTRY[:-30]) == ["visits"]
    assert relations(ENTRY[:-30] + "\n" + NOISE + ENTRY) == ["visits"]
    assert relations(ENTRY[150:] + NOISE + ENTRY) == ["visits"]
    assert refused(ENTRY[:-30]).startswith("no plan in it")


def message() -> str:
    return "duration: 1.234 ms  plan:\n" + json.dumps({"Query Text": 'SELECT "a"', **DOCUMENT}, indent=2)


def test_a_json_log_holds_plans_in_its_messages() -> None:
    lines = [json.dumps({"pid": 42, "message": text}) for text in ("checkpoint", message(), message())]
    assert relations("\n".join(lines)) == ["visits", "visits"]
    assert relations("\n".join(lines)[:-30]) == ["visits"]


def test_a_csv_log_holds_plans_in_its_cells() -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["2026-01-02", 42, "checkpoint"], ["2026-01-02", 42, message()]] * 2)
    assert relations(text.getvalue()) == ["visits", "visits"]
    assert relations(text.getvalue()[:-30]) == ["visits"]
    assert read_documents(text.getvalue())[0]["Plan"] == DOCUMENT["Plan"]


@pytest.mark.system
@pytest.mark.parametrize("ending", ["log", "csv", "json"])
def test_every_log_that_a_server_writes_has_the_plan_it_gave(logs: tuple[Path, list[str]], ending: str) -> None:
    folder, prints = logs
    (path,) = folder.glob(f"*.{ending}")
    found = read_documents(path.read_text())
    assert [fingerprint(read_plan(each)) for each in found] == prints
    assert all("Query Text" in each and read_plan(each).analyzed for each in found)
    half = path.read_text()[: int(path.stat().st_size * 0.6)]
    assert 0 < len(read_documents(half)) < len(found)


@pytest.fixture(scope="module")
def logs() -> Iterator[tuple[Path, list[str]]]:
    """The folder of a server's logs in all three formats, and the plans it should have in there."""
    auto = {"auto_explain.log_format": "json", "auto_explain.log_analyze": "on"}
    server = {"shared_preload_libraries": "auto_explain", "logging_collector": "on", "log_rotation_age": "0"}
    formats = {"log_destination": "stderr,csvlog,jsonlog", "log_directory": "log", "log_filename": "server.log"}
    queries = [
        "SELECT count(*) FROM visits WHERE note <> 'plan: {'",
        'SELECT name AS "a ""b"" \t," FROM clinics WHERE id = 7',
        "WITH w AS MATERIALIZED (SELECT day FROM visits) SELECT max(day) FROM w -- plan:\n",
    ]
    with corpus.system_cluster(**server, **formats, **{"auto_explain.log_min_duration": "-1"}) as (folder, connect):
        with connect() as connection:
            prints = []
            for query in queries:
                row = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()).fetchone()
                prints.append(fingerprint(read_plan(row[0] if row else None)))
            for name, value in auto.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
            prints = [*prints, *prints]
            connection.execute("SET auto_explain.log_min_duration = 0")
            for query in queries * 2:
                connection.execute(query.encode())
        end, logged = time.monotonic() + 10, folder / "data" / "log"
        while sum(path.read_text().count("duration:") >= 6 for path in logged.iterdir()) < 3 and time.monotonic() < end:
            time.sleep(0.05)  # the collector is a process of its own
        copied = Path(str(folder) + "-logs")
        shutil.copytree(logged, copied)
    try:
        assert len(list(copied.iterdir())) == 3
        yield copied, prints
    finally:
        shutil.rmtree(copied)


# what is no plan


@pytest.mark.parametrize(
    "text",
    [
        "Seq Scan on visits  (cost=0.00..129.00 rows=5998 width=13)\n  Filter: (note = 'x'::text)\n",
        " QUERY PLAN \n------\n Seq Scan on v  (cost=0.00..1.00 rows=5 width=1) (never executed)\n",
        "Seq Scan on visits (actual time=0.005..0.006 rows=1.00 loops=1)\n",
        '- Plan: \n    Node Type: "Seq Scan"\n',
        '<explain xmlns="http://www.postgresql.org/2009/explain">\n  <Query>\n',
        NOISE
        + "2026 LOG:  duration: 1 ms  plan:\n\tQuery Text: SELECT 1\n\tResult  (cost=0.00..0.01 rows=1 width=4)\n",
    ],
)
def test_a_plan_in_another_format_is_told_which_one_is_needed(text: str) -> None:
    assert refused(text) == "a plan in text format; expected EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) output"


@pytest.mark.parametrize(
    "text", ["", " \n", "\ufeff", "hello", "QUERY PLAN", "null", "42", "[]", "{}", '[{"a": 1}]', NOISE]
)
def test_what_has_no_plan_says_so(text: str) -> None:
    assert refused(text) == "no plan in it; expected EXPLAIN (FORMAT JSON) output, psql's or auto_explain's"


@pytest.mark.parametrize(
    "text",
    [
        PRETTY[:-20],
        "[" * 200_000,
        '{"a":' * 200_000,
        "{" * 1000,
        '[{"Plan": }]',
        '{"Plan": ' + "9" * 10_000 + "}",
    ],
)
def test_broken_json_says_what_is_wrong_quickly(text: str) -> None:
    assert refused(text).startswith(("not JSON (", "nested too deeply"))


@given(st.binary(max_size=200))
def test_binary_noise_is_no_plan(noise: bytes) -> None:
    for text in (noise.decode("latin-1"), noise.decode("utf-8", "replace"), "plan: {" + noise.decode("latin-1")):
        with pytest.raises(PlanError, match="expected EXPLAIN"):
            read_documents(text)


@given(st.text(alphabet='[]{}":,+|\n\t planPlanQUERY0', max_size=80))
def test_any_text_is_plans_or_one_line(text: str) -> None:
    try:
        found = read_documents(text)
    except PlanError as error:
        assert "\n" not in str(error)
    else:
        assert found


@given(st.integers(0, len(ALIGNED)), st.sampled_from([ALIGNED, BOXED, EXPANDED, ENTRY, PRETTY]))
def test_a_text_cut_off_anywhere_is_the_whole_plan_or_one_line(at: int, text: str) -> None:
    try:
        assert read_documents(text[:at]) == read_documents(text)
    except PlanError as error:
        assert "\n" not in str(error)


def test_every_file_of_the_corpus_is_read_from_every_wrapping() -> None:
    for path in corpus.committed():
        text = path.read_text()
        plan = json.loads(text)
        pretty = json.dumps(plan, indent=2, ensure_ascii=False)
        framed = "QUERY PLAN\n" + "\n".join(f"│ {line}↵│" for line in pretty.split("\n"))
        cell = '"' + pretty.replace('"', '""') + '"'
        logged = NOISE + "LOG:  duration: 1 ms  plan:\n\t" + json.dumps(plan[0], indent=2).replace("\n", "\n\t")
        for wrapped in (text, pretty, framed, cell, logged):
            assert read_documents(wrapped) == plan, path

"""Long statements and large plans: refused in one line or read in linear time, with no transaction open meanwhile."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from perfkit.app.evidence import Explained
from perfkit.base.errors import PlanError
from perfkit.explain import capture as capturing
from perfkit.explain import comparison, documents, plan
from perfkit.explain.capture import ExplainSpec, capture, effects, single
from perfkit.explain.comparison import fingerprint, typical_parameters
from perfkit.explain.plan import read_plan
from perfkit.postgres import databases
from perfkit.postgres.databases import Database
from perfkit.postgres.embedded import EmbeddedServer

NAME = "bounds_test"
Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture(scope="module")
def connect(server: EmbeddedServer) -> Iterator[Connect]:
    databases.create(server, NAME)
    with databases.connected(server, NAME) as connection:
        connection.execute("CREATE TABLE t (a text, b int)")
        connection.execute("INSERT INTO t SELECT 'x' || n, n FROM generate_series(1, 200) n")
        connection.execute("CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END'")
    yield lambda: server.connect(NAME)
    databases.drop(server, NAME)


def comparing(text: str) -> str:
    return f"SELECT * FROM t WHERE a = '{text}'"


LONG: dict[str, Callable[[int], str]] = {
    "one word": lambda n: comparing("a" * n),
    "a selected word": lambda n: f"SELECT '{'a' * n}' FROM t",
    "words": lambda n: comparing("ab " * (n // 3)),
    "doubled quotes": lambda n: comparing("''" * (n // 2)),
    "calls": lambda n: comparing("f( " * (n // 3)),
    "opened quotes": lambda n: comparing('" ' * (n // 2)),
    "symbols": lambda n: comparing("+" * n),
    "digits and letters": lambda n: comparing("1a" * (n // 2)),
    "a comment": lambda n: f"SELECT 1 /* {'x' * n} */",
    "blanks": lambda n: f"SELECT 1 {' ' * n} + b FROM t",
    "a list": lambda n: f"SELECT * FROM t WHERE b IN ({', '.join('1' * 98 for _ in range(n // 100))})",
    "numbers": lambda n: f"SELECT * FROM t WHERE b IN ({', '.join(str(k) for k in range(100_000, 100_000 + n // 8))})",
    "a folded constant": lambda n: f"SELECT repeat('a', {n})",
    "an operation of operations": lambda n: f"SELECT * FROM t WHERE {' + '.join(['b'] * (n // 500))} = 5",
    "alternatives": lambda n: f"SELECT * FROM t WHERE {' OR '.join(f'b = {k}' for k in range(n // 500))}",
}


def took(connect: Connect, sql: str) -> float:
    """Seconds for all that is done with a statement before and after it is executed."""
    begun = time.perf_counter()
    effects(connect, sql, None)
    found = Explained(capture(connect, sql, None, ExplainSpec(repeats=1)))
    assert found.findings is not None and fingerprint(found.plan) and repr(found) and found._repr_html_()
    return time.perf_counter() - begun


@pytest.mark.parametrize("kind", LONG)
def test_what_is_ten_times_as_long_takes_about_ten_times_as_long(connect: Connect, kind: str) -> None:
    short, long = (LONG[kind](n) for n in (100_000, 1_000_000))
    first = min(took(connect, short) for _ in range(2))
    second = min(took(connect, long) for _ in range(2))
    assert second < 25 * max(first, 0.05)  # a hundred times where it grows with the square
    assert second < 10  # ten times what it takes on a quiet machine


def test_a_statement_that_is_too_long_is_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match=re.escape("a statement of 2.1 MB; expected at most 2 MB")) as caught:
        single(comparing("é" * 1_050_000))
    assert "\n" not in str(caught.value)
    single(comparing("a" * 1_900_000))


def test_a_plan_that_is_too_large_is_refused_before_it_is_parsed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "PLAN", 3_000_000)
    monkeypatch.setattr(documents, "loads", lambda raw: pytest.fail("parsed"))
    for fetch in (effects, capture):
        with pytest.raises(PlanError, match=r"a plan of 4 MB; expected at most 3 MB") as caught:
            fetch(connect, "SELECT repeat('a', 4000000)", None)
        assert "\n" not in str(caught.value)


def test_no_transaction_is_open_while_a_plan_is_read(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    asked = "SELECT state FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() AND state IS NOT NULL"

    def reading(read: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            with connect() as other:
                states.extend(row["state"] for row in other.execute(asked, [NAME]))
            states.append("read")
            return read(*given)

        return watched

    for module in (capturing, plan):
        monkeypatch.setattr(module, "parse", reading(documents.parse))
    monkeypatch.setattr(capturing, "_called", reading(capturing._called))
    monkeypatch.setattr(comparison, "fingerprint", reading(fingerprint))
    sql = "SELECT count(*) FROM t WHERE b = %(b)s"
    effects(connect, sql, {"b": 1})
    capture(connect, sql, {"b": 1})
    typical_parameters(connect, sql, [{"b": 1}, {"b": 2}])
    assert states.count("read") >= 8
    assert set(states) <= {"read", "idle"}


def test_a_guard_sees_what_is_beyond_every_cut(connect: Connect) -> None:
    for text in (
        f"SELECT * FROM t WHERE a = '{'x' * 500_000}' AND b = tell()",
        f"SELECT * FROM t WHERE {' OR '.join(f'b = {k}' for k in range(20_000))} OR b = tell()",
        f"SELECT '{'x' * 500_000}', tell()",
    ):
        assert effects(connect, text, None).volatile == ("public.tell",)


def test_a_name_that_the_server_cuts_is_still_found(connect: Connect) -> None:
    name = "long_" * 20
    with connect() as connection:
        connection.execute(f"CREATE FUNCTION {name}() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'".encode())
    assert effects(connect, f"SELECT {name}()", None).volatile == (f"public.{name[:63]}",)


def node(**texts: Any) -> dict[str, Any]:
    return {"Plan": {"Node Type": "Seq Scan", "Relation Name": "t", **texts}}


@pytest.mark.parametrize("literal", ["a" * 1000, "''" * 500, "a" + "''" * 500, "(" * 1000, "\\\\" * 500, '"' * 999])
def test_a_long_constant_is_cut_and_stays_a_constant(literal: str) -> None:
    given = node(Filter=f"((a = '{literal}'::text) AND (b = 7))", Output=["a", f"'{literal}'::text"])
    root = read_plan(given).root
    assert re.fullmatch(r"\(\(a = '(?:[^']|'')*…'::text\) AND \(b = 7\)\)", root.filter)
    assert len(root.filter) < 300 and len(root.output[1]) < 300
    assert fingerprint(read_plan(given)) == fingerprint(read_plan(node(**(given["Plan"] | {"Filter": SHORT}))))
    assert literal in given["Plan"]["Filter"]  # what is kept is what came


SHORT = "((a = 'b'::text) AND (b = 7))"


def test_what_is_not_long_stays_as_it_is() -> None:
    given = node(Filter=SHORT, Output=["a", "b"])
    assert read_plan(given).root.raw is given["Plan"]


def test_a_guard_looks_names_up_past_the_search_path_of_an_arm(connect: Connect, server: EmbeddedServer) -> None:
    with connect() as connection:
        connection.execute("CREATE SCHEMA shadow")
        connection.execute("CREATE VIEW shadow.pg_proc AS SELECT * FROM pg_catalog.pg_proc WHERE false")
    place = Database(server, NAME, {"search_path": "shadow, public, pg_catalog"})
    assert effects(place.session, "SELECT tell()", None).volatile == ("public.tell",)
    whole = capture(place.session, "SELECT * FROM pg_proc", None, ExplainSpec(analyze=False)).plan
    assert not whole.root.relation  # the statement itself means what it means to the arm


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT f(1), \"G\"(2), s . h /* no x( */ (3), 'i(4)' -- j(5)", {"f", "G", "h"}),
        ('SELECT "a""b"(1), $$k(6)$$, E\'\\\'l(7)\'', {'a"b'}),
        ("SELECT U&'m(8)', count(*) FILTER (WHERE true)", {"count", "filter"}),
    ],
)
def test_the_names_that_a_statement_calls_are_those_before_a_parenthesis(sql: str, names: set[str]) -> None:
    assert capturing._called(sql) == names


def test_a_name_that_is_hidden_by_escapes_is_refused() -> None:
    with pytest.raises(PlanError, match="hides a name"):
        capturing._called('SELECT U&"\\0066"(1)')

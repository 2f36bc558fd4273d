"""SQL is cut into tokens as PostgreSQL cuts it, and its meaning comes from PostgreSQL's own parser or is unknown."""

import ast
import ctypes
from pathlib import Path
from threading import Thread
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfkit.base.errors import UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.postgres import parser
from perfkit.postgres.parser import parse_expression, parse_statements, parser_version
from perfkit.postgres.sqltext import normal, scan, tokens

pytest.importorskip("postgast", reason="no wheel of the parser for this machine")

PIECES = ["SELECT", "a", "_b1", "E'it\\'s'", "'it''s'", "$$x;$$", "$t$ $$ $t$", '"A ""q"""', "U&'x'", "B'1'", "1.5e-3",
          ".5", "0x1F", "1_000", "$1", "::", ":=", "<=", "->>", "@>", "=-", "+", "-", "*", "/", "(", ")", "[", "]", ",",
          ".", ";", " ", "\n", "--c\n", "/* /* n */ c */", "é", "nü", "'é'", "%", "||", "!", "?"]  # fmt: skip
UNCLOSED = ["'a", "E'\\'", '"a', "$$a", "$t$a$$", "/* a /* b */"]


def by_postgresql(text: str) -> list[str] | None:
    """The tokens of PostgreSQL's own scanner, without comments; None where it refuses the text."""
    import postgast

    try:
        found = postgast.scan(text).tokens
    except postgast.PgQueryError:
        return None
    sent = text.encode()
    comments = {postgast.pg_query_pb2.Token.Value(name) for name in ("SQL_COMMENT", "C_COMMENT")}
    return [sent[token.start : token.end].decode() for token in found if token.token not in comments]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_tokens_are_those_of_postgresqls_scanner(pieces: list[str]) -> None:
    text = "".join(pieces)
    wanted = by_postgresql(text)
    if wanted is None or ".." in text:  # two dots are one token, which only PL/pgSQL knows
        return
    found = [token.text for token in scan(text) if token.kind != "blank"]
    if len(found) != len(wanted):  # a string that continues on the next line is one token there
        assert "".join("".join(wanted).split()) == "".join("".join(found).split())
        return
    assert found == wanted


@pytest.mark.parametrize("path", sorted((CHECKOUT / "sql").rglob("*.sql")), ids=lambda path: path.stem)
def test_every_file_of_the_package_is_cut_as_postgresql_cuts_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if (wanted := by_postgresql(text)) is not None:  # :rows and %(name)s are for psql and psycopg
        assert [token.text for token in scan(text) if token.kind != "blank"] == wanted


@pytest.mark.parametrize("text", UNCLOSED)
def test_what_is_not_closed_reaches_to_the_end_and_is_refused_by_a_guard(text: str) -> None:
    *_, last = scan(f"SELECT 1, {text}; DROP TABLE t")
    assert last.kind == "open" and last.text == f"{text}; DROP TABLE t"
    with pytest.raises(UsageError, match="quotes and comments are closed"):
        list(tokens(f"SELECT 1, {text}; DROP TABLE t"))


@pytest.mark.alone
@pytest.mark.parametrize("piece", ["+", "=", "::", "''", "a ", "(1,'a'),", "E'a'\n", "$a$", "- ", "/", "<@"])
def test_a_text_of_any_length_takes_time_in_proportion(piece: str) -> None:
    def seconds(length: int) -> float:
        text, start = piece * (length // len(piece)), process_time()
        for _ in scan(text):
            pass
        normal(text)
        return process_time() - start

    assert seconds(200_000) < 40 * max(seconds(20_000), 0.002)


class TestMeaning:
    """What PostgreSQL's parser says, and what stays unknown."""

    def test_placeholders_of_every_kind_are_parameters_and_positions_stay(self) -> None:
        text = "SELECT 'é', a FROM t WHERE b =%(x)s AND c % 2 = 7 %% %(y)s AND d = %(x)s AND e = '%(z)s'"
        [statement] = parse_statements(text)
        found = [node for node in statement.walk() if node.kind == "ParamRef"]
        assert [node.number("number") for node in found] == [1, 2, 1]
        assert [text[node.number("location") :][:5] for node in found] == ["%(x)s", "%(y)s", "%(x)s"]
        columns = [node for node in statement.walk() if node.kind == "ColumnRef"]
        assert [text[node.number("location")] for node in columns] == [*"abcde"]

    @pytest.mark.parametrize(
        ("text", "marks"),
        [
            ("SELECT 1 FROM t WHERE a = %s AND b =%s AND c IN (%s, 5) LIMIT %s", ["%s"] * 4),
            ("SELECT a % s, a %s FROM t", []),
            ("SELECT 1 FROM t WHERE a = :a AND b > :b_2 AND c[1:n] = d::text LIMIT :rows", [":a", ":b_2", ":rows"]),
            ("SELECT 1 FROM t WHERE a = ? AND b ? 'key' AND c IN (?, ?)", ["?", "?", "?"]),
            ("SELECT '%(a)s', $1, \"%s\" FROM t -- %(b)s", ["$1"]),
        ],
    )
    def test_a_placeholder_is_told_from_an_operator(self, text: str, marks: list[str]) -> None:
        [statement] = parse_statements(text)
        found = [node.number("location") for node in statement.walk() if node.kind == "ParamRef"]
        assert [text[at:].lstrip("=")[: len(mark)] for at, mark in zip(found, marks, strict=True)] == marks

    @pytest.mark.parametrize(
        "text",
        ["SELECT 'cut", "SELECT FROM WHERE", "SELECT 1\0; DROP TABLE t", "SELECT 'a\0b'", "SELECT " + "(" * 1000,
         "SELECT " + "||".join(["'a'"] * 1000), "SELECT " + "||".join(["'a'"] * 100_000),
         "SELECT " + "(" * 100_000 + "1" + ")" * 100_000, "SELECT 1" + " UNION SELECT 1" * 50_000],
        ids=lambda text: text[:20],
    )  # fmt: skip
    def test_a_text_that_is_cut_off_wrong_or_too_deep_is_unknown(self, text: str) -> None:
        answers = []
        thread = Thread(target=lambda: answers.append((parse_statements(text), parse_expression(text))))
        thread.start()  # whose stack is smaller than that of the main thread
        thread.join()
        assert answers == [((), None)]

    def test_sixty_joins_or_a_hundred_unions_are_known(self) -> None:
        assert parse_statements("SELECT 1 FROM a0" + "".join(f" JOIN a{n} USING (id)" for n in range(1, 60)))
        assert parse_statements("SELECT 1" + " UNION SELECT 1" * 100)
        assert parse_statements(f"SELECT 1 WHERE a IN ({','.join(map(str, range(50_000)))})")

    @pytest.mark.parametrize("text", ["a FROM t", "a, b", "a AS b", "1; SELECT 2", "", "(", "DISTINCT a", "a -- '"])
    def test_only_an_expression_is_an_expression(self, text: str) -> None:
        known = text == "a -- '"
        assert (parse_expression(text) is not None) == known

    def test_without_a_parser_everything_is_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parser, "_library", lambda: None)
        parser._tree.cache_clear()
        assert (parse_statements("SELECT 1"), parse_expression("a"), parser_version()) == ((), None, "")
        parser._tree.cache_clear()

    def test_its_grammar_is_that_of_the_newest_server(self) -> None:
        assert parser_version().startswith("18.")
        assert ctypes.CDLL is type(parser._library())


GUARDS = {"postgres/commands.py", "postgres/guards.py", "postgres/databases.py", "postgres/index_sets.py",
          "postgres/index_builds.py", "postgres/servers.py", "postgres/sqltext.py", "postgres/copies.py",
          "explain/capture.py", "explain/comparison.py", "load/senders.py", "load/pgbench.py"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GUARDS))
def test_no_guard_asks_the_parser(name: str) -> None:
    tree = ast.parse((CHECKOUT / "perfkit" / name).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "perfkit.postgres.parser" not in modules


@pytest.mark.parametrize("value", ['\'{"password": "hunter2', "'\"hunter2", '$$"hunter2', "E'\"hunter2"])
def test_a_value_that_is_cut_off_is_still_a_value(value: str) -> None:
    assert "hunter2" not in normal(f"INSERT INTO t VALUES (1, {value}")

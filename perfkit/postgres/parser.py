"""What a SQL text means, by PostgreSQL's own parser (libpg_query).

A text that the parser does not know is not wrong: it may be newer, deeper or cut off, and only the server decides. So
no guard asks the parser, see docs/guarantees.md.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from perfkit.postgres.sqltext import ends_operand, scan

# The parser writes its tree by recursion, and a chain of 9,000 operators overflows the stack of a small thread. Nothing
# nests without an operator, a word or a bracket.
_MOST_WORDS, _DEEPEST = 3_000, 500
_NAMED = re.compile(r"%\(\w+\)[stb]")
_PLACEHOLDER = re.compile(r"(?P<named>%\(\w+\)[stb])|%[stb](?!\w)|:[A-Za-z_]\w*|\?")
# The kinds of the nodes that the tree does not name, because their field can hold no other.
_KINDS = {
    "relation": "RangeVar", "rel": "RangeVar", "larg": "SelectStmt", "rarg": "SelectStmt", "typeName": "TypeName",
    "over": "WindowDef", "withClause": "WithClause", "intoClause": "IntoClause", "onConflictClause": "OnConflictClause",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SqlNode:
    """A node of a parse tree, by the names of PostgreSQL's source: its kind, such as `SelectStmt`, and its fields.

    A `location` counts characters of the text.
    """

    kind: str
    fields: Mapping[str, object]

    def text(self, field: str) -> str:
        """Return a field's text; "" if it has none."""
        value = self.fields.get(field, "")
        return value if isinstance(value, str) else ""

    def number(self, field: str) -> int:
        """Return a field's number; 0 if it has none, as the parser leaves out what is 0."""
        value = self.fields.get(field, 0)
        return value if isinstance(value, int) else 0

    def nodes(self, field: str) -> list[SqlNode]:
        """Return the nodes in a field: none, one or several."""
        value = self.fields.get(field)
        made = (_node(field, item) for item in (value if isinstance(value, list) else [value]))
        return [node for node in made if node]

    def names(self, field: str) -> tuple[str, ...]:
        """Return the parts of a qualified name as the server stores them, without the system's schema."""
        return tuple(name for node in self.nodes(field) if (name := node.text("sval")) != "pg_catalog")

    def walk(self) -> Iterator[SqlNode]:
        """Yield this node and all nodes below it."""
        nodes = [self]
        while nodes:
            yield (node := nodes.pop())
            nodes += reversed([below for field in node.fields for below in node.nodes(field)])


def _node(field: str, value: object) -> SqlNode | None:
    if not isinstance(value, dict):
        return None
    kind = next(iter(value), "")
    return (
        SqlNode(kind, value[kind])
        if len(value) == 1 and kind[:1].isupper()
        else SqlNode(_KINDS.get(field, field), value)
    )


def parse_statements(text: str) -> tuple[SqlNode, ...]:
    """Return the statements of a text, of which placeholders may have names; none if the parser does not know it.

    >>> [statement.kind for statement in parse_statements("SELECT * FROM t WHERE id = %(id)s; TABLE t")]
    ['SelectStmt', 'SelectStmt']
    >>> parse_statements("SELECT FROM WHERE")
    ()
    """
    statements = _tree(text).get("stmts")
    listed = [_node("", item["stmt"]) for item in statements] if isinstance(statements, list) else []
    return tuple(node for node in listed if node)


def parse_expression(text: str) -> SqlNode | None:
    """Return the tree of an expression, whose locations begin at 7; None if the parser does not know it.

    >>> [node.names("fields") for node in parse_expression("(b.id)::int + 1").walk() if node.kind == "ColumnRef"]
    [('b', 'id')]
    """
    statements = parse_statements(f"SELECT {text}")
    alone = len(statements) == 1 and statements[0].fields.keys() == {"targetList", "limitOption", "op"}
    targets = statements[0].nodes("targetList") if alone else []
    return targets[0].nodes("val")[0] if len(targets) == 1 and not targets[0].text("name") else None


def parser_version() -> str:
    """Return the version of PostgreSQL whose grammar the parser has; "" if this machine has no parser."""
    version = _tree("SELECT 1").get("version")
    return f"{version // 10_000}.{version % 10_000}" if isinstance(version, int) else ""


@lru_cache(maxsize=32)  # findings, candidates and rewrites ask about the same statement and its conditions
def _tree(text: str) -> Mapping[str, object]:
    """Return the parser's answer for a text; an empty one if it refuses the text or is not there."""
    library, pieces = _library(), _pieces(text)
    if library is None or pieces is None:
        return {}
    plain = "".join(piece for piece, _ in pieces)
    answer = library.pg_query_parse(plain.encode("utf-8", "replace"))
    try:
        if answer.error:
            return {}
        positions = [] if plain.isascii() and plain == text else _positions(pieces)

        def hook(node: dict[str, object]) -> dict[str, object]:
            location = node.get("location")
            if positions and isinstance(location, int) and 0 <= location < len(positions):
                node["location"] = positions[location]
            return node

        tree: dict[str, object] = json.loads(answer.tree, object_hook=hook)
        return tree
    except RecursionError:
        return {}
    finally:
        library.pg_query_free_parse_result(answer)


def _pieces(text: str) -> list[tuple[str, int]] | None:
    """Return a text in pieces, each with its position, with `$1` for placeholders that the parser does not know.

    Return None if the parser must not read the text.
    """
    pieces: list[tuple[str, int]] = []
    numbers: dict[str, int] = {}
    end = words = depth = 0
    named, before = _NAMED.search(text), ""
    for token in scan(text):
        if token.start < end:
            continue
        if token.kind == "open" or "\0" in token.text:  # cut off; the parser would stop silently at a NUL
            return None
        words += token.kind in ("word", "quoted", "sign")
        depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
        if words > _MOST_WORDS or depth > _DEEPEST:
            return None
        end, piece = token.end, token.text
        operator = piece[:-1] if token.kind == "sign" else ""
        possible = token.kind == "sign" and (piece[-1] == "%" or piece in (":", "?"))
        found = _PLACEHOLDER.match(text, end - 1) if possible else None
        # `a % s`, `a[1:n]` and `a ? b` are operators: without a name, a placeholder follows no operand.
        if found and (found["named"] or operator or not ends_operand(before)):
            key = found[0] if len(found[0]) > 2 else f"{found[0]} {end}"  # %s and ? are another value each time
            pieces.append((f"{operator} ", token.start))
            piece = f"${numbers.setdefault(key, len(numbers) + 1)}"
            pieces.append((piece, end - 1))
            end = found.end()
        else:
            pieces.append((piece.replace("%%", "%") if named and token.kind == "sign" else piece, token.start))
        before = before if token.kind == "blank" else piece
    return pieces


def _positions(pieces: Sequence[tuple[str, int]]) -> list[int]:
    """Return the position in a text of each byte that the parser reads."""
    positions = []
    for (piece, start), (_, following) in pairwise([*pieces, ("", sys.maxsize)]):
        for offset, character in enumerate(piece):
            position = min(start + offset, following - 1)
            positions += [position] * len(character.encode("utf-8", "replace"))
    return positions


class _Answer(ctypes.Structure):
    """The result of a parse, as libpg_query returns it."""

    _fields_ = (("tree", ctypes.c_char_p), ("messages", ctypes.c_char_p), ("error", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL | None:
    """Return the parser: from the package postgast, else the system's; None if there is neither.

    The package itself is not imported: it needs a third of a second, and its own form of the tree refuses statements of
    60 joins.
    """
    package = find_spec("postgast")
    folders = list(package.submodule_search_locations or ()) if package else []
    files = (str(path) for folder in folders for path in Path(folder).glob("libpg_query.*"))
    path = next(files, None) or find_library("pg_query")
    if path is None:
        return None
    try:
        library = ctypes.CDLL(path)
        library.pg_query_parse.argtypes, library.pg_query_parse.restype = [ctypes.c_char_p], _Answer
        library.pg_query_free_parse_result.argtypes, library.pg_query_free_parse_result.restype = [_Answer], None
    except (OSError, AttributeError):  # built for another machine, or another library of this name
        return None
    return library

"""What a statement would do besides reading, found out without executing it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psycopg
import sqlglot
from psycopg.rows import tuple_row

from perfkit.errors import PlanError, TargetRefused
from perfkit.explain.capture import WRITING, Parameters, single
from perfkit.explain.plan import root, walk
from perfkit.postgres import catalog
from perfkit.postgres.statements import first_word

_CALLED = re.compile(r'("(?:[^"]|"")+"|[^\W\d][\w$]*)\s*\(')
_WORDS = frozenset({"VAR", "IDENTIFIER"})


@dataclass(frozen=True, slots=True)
class Effects:
    """Whether a statement writes or locks rows, and the volatile functions that it may call."""

    writes: bool
    locks: bool
    volatile: tuple[str, ...]


def effects(connection: psycopg.Connection[Any], sql: str, parameters: Parameters) -> Effects:
    """What one statement would do. Nothing is executed.

    Functions are found by name in the statement and in its verbose plan, where views and inlined functions
    show. What a function calls inside is not seen: PostgreSQL itself forbids writing to one that is not
    declared volatile. Raises PlanError where the statement cannot be planned.
    """
    text = single(sql)
    try:
        cursor = connection.cursor()
        cursor.row_factory = tuple_row
        cursor.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) {text}".encode(), parameters)
        document: Any = (cursor.fetchone() or ([],))[0]
        nodes = list(walk(root(document)))
        names = _called(text) | {name for node in nodes for name in _planned(node)}
        cursor.execute(catalog.get("volatile").encode(), {"names": sorted(names)})
        volatile = tuple(sorted(row[0] for row in cursor))
        connection.rollback()
    except psycopg.Error as error:
        raise PlanError(f"cannot be planned: {(str(error).splitlines() or [''])[0]}") from None
    kinds = {node["Node Type"] for node in nodes}
    return Effects("ModifyTable" in kinds or first_word(text) in WRITING, "LockRows" in kinds, volatile)


def require_harmless(found: Effects, *, writes_allowed: bool, volatile_allowed: Collection[str], where: str) -> None:
    """Raise TargetRefused for effects that nobody allowed, saying how to allow them."""
    if (found.writes or found.locks) and not writes_allowed:
        what = "writes" if found.writes else "locks rows"
        raise TargetRefused(f"{where}: a statement {what}; its owner can allow that with: perfkit allow --writes")
    allowed = {name.lower() for name in volatile_allowed}
    unknown = [name for name in found.volatile if not {name, name.split(".")[-1]} & allowed]
    if unknown:
        raise TargetRefused(
            f"{where}: a statement calls volatile {', '.join(unknown)}; if it may: 'volatile' in [database], or "
            f"--volatile {unknown[0]}"
        )


def _called(text: str) -> set[str]:
    """Names before a parenthesis in a statement; strings and comments hold none."""
    tokens = sqlglot.tokenize(text, read="postgres")
    found = set()
    for token, following in pairwise(tokens):
        if following.token_type.name == "L_PAREN" and re.fullmatch(r"[^\W\d][\w$]*|.*[^\w].*", token.text):
            quoted = text[token.start : token.end + 1].startswith('"')
            found.add(token.text if quoted else token.text.lower())
    if re.search(r"\bU&\"", text, re.IGNORECASE):
        raise PlanError('U&"..." hides a name; expected it written out')
    return found


def _planned(node: Mapping[str, Any]) -> Iterator[str]:
    """Names before a parenthesis in a node's expressions, and the function that a node scans."""
    if name := node.get("Function Name"):
        yield str(name)
    for key, value in node.items():
        if key != "Plans":
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, str):
                    yield from (_plain(match) for match in _CALLED.findall(part))


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()

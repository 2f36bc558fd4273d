"""What a statement would do besides reading, found out without executing it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from shlex import quote
from typing import Any

import psycopg
import sqlglot
from psycopg import sql
from psycopg.rows import tuple_row

from perfkit.errors import PlanError, TargetRefused
from perfkit.explain.capture import (
    WRITING,
    Capture,
    Connect,
    Options,
    Parameters,
    capture,
    cursor_for,
    marked,
    single,
)
from perfkit.explain.plan import read_plan
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import allowing
from perfkit.postgres.external import External
from perfkit.postgres.parameters import exact
from perfkit.postgres.site import Site
from perfkit.postgres.statements import first_word
from perfkit.text import first_line

_NAME = r'("(?:[^"]|"")+"|[^\W\d][\w$]*)'
_WORD, _CALLED, _SYMBOL = re.compile(_NAME), re.compile(rf"{_NAME}\s*\("), re.compile(r"[-+*/<>=~!@#%^&|`?]+")
# Volatile because their result changes; they change nothing.
_HARMLESS = frozenset(
    {"clock_timestamp", "gen_random_uuid", "random", "random_normal", "timeofday", "uuidv4", "uuidv7"}
)


@dataclass(frozen=True, slots=True)
class Effects:
    """Whether a statement writes or locks rows, and the volatile functions that it may call."""

    writes: bool
    locks: bool
    volatile: tuple[str, ...]


def guarded(
    site: Site, connect: Connect, sql: str, parameters: Parameters, options: Options, volatile: Collection[str] = ()
) -> Capture:
    """EXPLAIN where executing harms nothing: on a server that perfkit did not start, effects are looked for first.

    Raises PlanError, and TargetRefused for a statement that would write, or call what was not allowed.
    """
    writable = "writes" in site.permissions
    if isinstance(site, External) and options.analyze:
        with connect() as connection:
            found = effects(connection, sql, parameters)
        require_harmless(
            found,
            writes_allowed=writable,
            volatile_allowed=volatile,
            where=site.name,
            allow=allowing(site, "writes"),
        )
    return capture(connect, sql, parameters, replace(options, writes=writable))


def effects(connection: psycopg.Connection[Any], statement: str, parameters: Parameters) -> Effects:
    """What one statement would do, from its plan alone, made in a read-only transaction.

    Functions are found by name in the statement, in its verbose plan, and in the views, functions, operators,
    casts and domains that are named there, and so on. Not seen: what a function does in a language other than
    SQL and PL/pgSQL, or in a text that it puts together. Raises PlanError where the statement cannot be planned.
    """
    text = single(statement)
    try:
        cursor = connection.cursor(row_factory=tuple_row)
        cursor.execute("SET TRANSACTION READ ONLY")  # the planner may try functions that are not declared volatile
        planned = cursor_for(connection, text, parameters)
        planned.execute(f"EXPLAIN (VERBOSE, FORMAT JSON)\n{text}".encode(), exact(parameters))
        document: Any = (planned.fetchone() or ([],))[0]
        nodes = [node.raw for node in read_plan(document).nodes]
        volatile = _volatile(cursor, _called(text), [text, *(part for node in nodes for part in _planned(node))])
        connection.rollback()
    except psycopg.Error as error:
        raise marked(PlanError(f"cannot be planned: {first_line(error)}"), error) from None
    kinds = {node["Node Type"] for node in nodes}
    return Effects("ModifyTable" in kinds or first_word(text) in WRITING, "LockRows" in kinds, volatile)


def require_harmless(
    found: Effects, *, writes_allowed: bool, volatile_allowed: Collection[str], where: str, allow: str = "perfkit allow"
) -> None:
    """Raise TargetRefused for effects that nobody allowed; `allow` is the command with which an owner allows writes."""
    if (found.writes or found.locks) and not writes_allowed:
        what = "writes" if found.writes else "locks rows"
        raise TargetRefused(f"{where}: a statement {what}; its owner can allow that with: {allow}")
    allowed = {name.lower() for name in volatile_allowed}
    unknown = [name for name in found.volatile if not {name.lower(), name.lower().split(".")[-1]} & allowed]
    if unknown:
        raise TargetRefused(
            f"{where}: a statement calls volatile {', '.join(unknown)}; if it may: 'volatile' in [database], or "
            + " ".join(f"--volatile {quote(name)}" for name in unknown)
        )


def _volatile(cursor: psycopg.Cursor[Any], calls: set[str], texts: Iterable[str]) -> tuple[str, ...]:
    """Volatile functions among the calls and those in the texts, and in what stands behind them, and so on."""
    found: set[str] = set()
    seen: set[str] = set()
    while new := set(texts) - seen:
        seen |= new
        asked = {
            "calls": calls | {_plain(name) for text in new for name in _CALLED.findall(text)},
            "words": {_plain(name) for text in new for name in _WORD.findall(text)},
            "symbols": {cut for text in new for all_ in _SYMBOL.findall(text) for cut in (all_, all_.rstrip("+-"))},
        }
        cursor.execute(catalog.get("volatile").encode(), {name: sorted(values) for name, values in asked.items()})
        rows = cursor.fetchall()
        found |= {name for name, volatile, _ in rows if volatile}
        texts = {text for _, _, text in rows if text}
    return tuple(sorted(found - _HARMLESS))


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
    """A node's expressions, and the function that it scans as if it were called."""
    if name := node.get("Function Name"):
        yield f"{sql.Identifier(str(name)).as_string()}()"
    for key, value in node.items():
        if key != "Plans":
            yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str))


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()

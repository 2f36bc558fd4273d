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
from perfkit.explain.bounds import document, raw_json
from perfkit.explain.capture import (
    WRITING,
    Capture,
    Connect,
    ExplainSpec,
    Parameters,
    capture,
    cursor_for,
    marked,
    single,
)
from perfkit.explain.plan import whole_nodes
from perfkit.postgres import catalog
from perfkit.postgres.capabilities import allowing
from perfkit.postgres.extended import send
from perfkit.postgres.external import External
from perfkit.postgres.limits import holders
from perfkit.postgres.parameters import exact
from perfkit.postgres.site import Server
from perfkit.postgres.statements import first_word
from perfkit.text import first_line

# Every word is taken whole, so that a text is read once, however long its words are.
_WORD = re.compile(r'("(?:[^"]|"")++"|[^\W\d][\w$]*+)(\s*+\()?')
_SYMBOL = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_NAME_BYTES = 63  # the server cuts longer names
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
    site: Server,
    connect: Connect,
    sql: str,
    parameters: Parameters,
    options: ExplainSpec,
    volatile: Collection[str] = (),
) -> Capture:
    """EXPLAIN where executing harms nothing: on a server that perfkit did not start, effects are looked for first.

    Raises PlanError, and TargetRefused for a statement that would write, or call what was not allowed.
    """
    writable = "writes" in site.permissions
    if isinstance(site, External) and options.analyze:
        require_harmless(
            effects(connect, sql, parameters),
            writes_allowed=writable,
            volatile_allowed=volatile,
            where=site.name,
            allow=allowing(site, "writes"),
        )
    return capture(connect, sql, parameters, replace(options, writes=writable))


def effects(connect: Connect, statement: str, parameters: Parameters) -> Effects:
    """What one statement would do, from its plan alone, made in a read-only transaction.

    No transaction is open while the plan, or what was looked up, is read.
    Functions are found by name in the statement, in its verbose plan, and in the views, functions, operators,
    casts and domains that are named there, and so on. Not seen: what a function does in a language other than
    SQL and PL/pgSQL, or in a text that it puts together. Raises PlanError where the statement cannot be planned.
    """
    text = single(statement)
    try:
        with connect() as connection:
            connection.autocommit = False
            raw_json(connection)
            cursor = connection.cursor(row_factory=tuple_row)
            cursor.execute("SET TRANSACTION READ ONLY")  # the planner may try functions not declared volatile
            planned = cursor_for(connection, text, parameters)
            send(planned, f"EXPLAIN (VERBOSE, FORMAT JSON)\n{text}", exact(parameters))
            raw: bytes = (planned.fetchone() or (b"",))[0]
            connection.rollback()
            nodes = list(whole_nodes(document(raw)))
            volatile = _volatile(cursor, _called(text), [text, *(part for node in nodes for part in _planned(node))])
    except psycopg.Error as error:
        raise marked(PlanError(f"cannot be planned: {first_line(error)}{holders(connect, error)}"), error) from None
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
        words = [found for text in new for found in _WORD.findall(text)]
        asked = {
            "calls": calls | {_plain(name) for name, call in words if call},
            "words": {_plain(name) for name, _ in words},
            "symbols": {cut for text in new for all_ in _SYMBOL.findall(text) for cut in (all_, all_.rstrip("+-"))},
        }
        names = {name: sorted({_as_stored(value) for value in values}) for name, values in asked.items()}
        cursor.execute("SET LOCAL search_path = pg_catalog")  # an arm's may put other tables in front of the catalogue
        rows = cursor.execute(catalog.get("volatile").encode(), names).fetchall()
        cursor.connection.rollback()
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


def _as_stored(name: str) -> str:
    """A name as the server keeps it, without the end of one that is too long."""
    return name if len(name) <= _NAME_BYTES // 4 else name.encode()[:_NAME_BYTES].decode("utf-8", "ignore")


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()

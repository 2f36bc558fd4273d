"""What HypoPG's versions do wrong, and the statements for which that matters.

Before 1.4.5, a hypothetical index keeps the columns of its condition and its expressions as those of the first entry
of a statement's range table. The planner meets the table as that entry only where it is the statement's only one.
Elsewhere (after another in FROM, behind a view, in a subquery, as a partition) the condition is compared with another
table's columns: the index is ignored, and looking up their statistics can end the backend by a segmentation fault, so
that the server restarts and every session is lost. Seen: ignored by 1.3.1, crashes of 1.4.2 and 1.4.3. The changelog
of 1.4.5 has the remedy ("relid handling ..., that could lead to a crash").
"""

from __future__ import annotations

import re

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

# The first version without a fault, and the fault.
FAULTS = (
    (
        (1, 4, 5),
        "can ignore a partial or expression index, or crash the server for it, unless the statement reads only its "
        "table, and directly",
    ),
)
_ELSEWHERE = (exp.Join, exp.Lateral, exp.Values, exp.With, exp.Unnest, exp.Subquery, exp.SetOperation)


def fault(*versions: str | None) -> str:
    """Return what the oldest of these versions does wrong, as a clause; "" for nothing. An unknown one is the oldest.

    >>> fault("1.4.5", "1.5")
    ''
    >>> fault("1.4.5", "1.4.3").partition(" or ")[0]
    'HypoPG 1.4.3 can ignore a partial'
    >>> fault("1.4.5", None).partition(" or ")[0]
    'HypoPG of an unknown version can ignore a partial'
    """
    numbers = {version: _number(version) for version in versions}
    oldest = min(numbers, key=lambda version: numbers[version])
    named = f"HypoPG {oldest}" if numbers[oldest] else "HypoPG of an unknown version"
    return next((f"{named} {does}" for sound, does in FAULTS if numbers[oldest] < sound), "")


def only_table(text: str) -> str:
    """Return the name, as SQL writes it, of the one relation that a statement reads or changes; "" if unsure.

    >>> only_table('SELECT * FROM "Sales".orders o WHERE id = $1')
    '"Sales".orders'
    >>> only_table("SELECT * FROM orders WHERE id IN (SELECT id FROM orders)")
    ''
    """
    try:
        parsed = sqlglot.parse_one(text, read="postgres")
    except SqlglotError:
        return ""
    tables, selects = [*parsed.find_all(exp.Table)], [*parsed.find_all(exp.Select)]
    simple = isinstance(parsed, exp.Select | exp.Update | exp.Delete) and not parsed.find(*_ELSEWHERE)
    if not simple or len(tables) != 1 or selects != [parsed][: len(selects)]:
        return ""
    table = tables[0]
    if not isinstance(table.this, exp.Identifier) or table.args.get("catalog"):
        return ""
    return exp.Table(this=table.this, db=table.args.get("db")).sql(dialect="postgres")


def _number(version: str | None) -> tuple[int, ...]:
    """Return a version's numbers; none where it is no version."""
    return tuple(map(int, version.split("."))) if version and re.fullmatch(r"\d+(\.\d+)*", version) else ()

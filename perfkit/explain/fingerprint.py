"""Whether two plans are the same plan: their structure without numbers, constants and costs."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

from perfkit.explain.plan import Node, Plan

CONDITIONS = (
    *("Index Cond", "Order By", "Recheck Cond", "TID Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter"),
    *("One-Time Filter", "Run Condition", "Sort Key", "Presorted Key", "Group Key", "Grouping Sets", "Cache Key"),
    *("Function Call", "Conflict Filter"),
)
_CONSTANT = re.compile(
    r"""(?P<name>"(?:[^"]|"")*")"""  # whose digits and quotes are its own
    r"""|(?:(?<![\w$])[EBX])?'(?:[^']|'')*'|\$\d+|(?<![\w$.])\d+(?:\.\d+)?(?:e[+-]?\d+)?\b""",
    re.IGNORECASE,
)


def fingerprint(plan: Plan) -> str:
    """Sixteen characters that are the same for the same plan, whatever its constants, rows, costs and workers."""
    parts = [f"{node.depth}:{_shape(node)}" for node in plan.nodes]
    return blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def without_constants(expression: str) -> str:
    """An expression with a question mark for each constant and parameter.

    >>> without_constants("((day = 7) AND (note_2 = 'it''s'::text) AND (id = $1))")
    '((day = ?) AND (note_2 = ?::text) AND (id = ?))'
    """
    return _CONSTANT.sub(lambda m: m["name"] or "?", expression)


def conditions(node: Node) -> str:
    """What a node's rows must fulfil and how they are ordered, without constants."""
    said = [key for key in CONDITIONS if key in node.raw]
    return "; ".join([f"{key}: {', '.join(map(without_constants, node.texts(key)))}" for key in said]) if said else ""


def _shape(node: Node) -> str:
    get = node.raw.get
    sub = without_constants(node.text("Subplan Name")) if "Subplan Name" in node.raw else ""
    where = f"{get('Schema')}.{node.relation} {get('Index Name')}"
    return f"{get('Parent Relationship')} {sub} {node.name} {where} {conditions(node)}"

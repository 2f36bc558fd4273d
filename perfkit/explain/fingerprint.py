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
_TOKEN = re.compile(
    r"""(?P<kept>"(?:[^"]|"")*"|[^\W\d][\w$]*(?!'))"""  # names, quoted or not
    r"""|[EB]?'(?:[^']|'')*'|\$\d+|\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b""",
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
    return _TOKEN.sub(lambda m: m["kept"] or "?", expression)


def conditions(node: Node) -> str:
    """What a node's rows must fulfil and how they are ordered, without constants."""
    return "; ".join(
        f"{key}: {', '.join(without_constants(text) for text in found)}"
        for key in CONDITIONS
        if key in node.raw and (found := node.texts(key))
    )


def _shape(node: Node) -> str:
    where = f"{node.text('Schema')}.{node.relation} {node.text('Index Name')}"
    return f"{node.relationship} {without_constants(node.text('Subplan Name'))} {node.name} {where} {conditions(node)}"

"""EXPLAIN's JSON as an indented tree: what each node did, how often, how long, and the pages it touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perfkit.display import numbers

_DETAILS = ("Index Cond", "Recheck Cond", "Hash Cond", "Join Filter", "Filter", "Sort Key", "Group Key")


def plan_text(raw: Any) -> str:
    """The tree of one plan as EXPLAIN returned it; rows and times are averages per loop, buffers totals."""
    try:
        document = raw[0]
        lines = list(_node(document["Plan"], 0))
    except (TypeError, KeyError, IndexError, AttributeError):
        return "no plan was captured"
    for key in ("Planning Time", "Execution Time"):
        if key in document:
            lines.append(f"{key}: {numbers.significant(float(document[key]))} ms (measured once)")
    return "\n".join(lines)


def _node(node: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "   " * depth
    yield f"{indent}{'└─ ' if depth else ''}{_title(node)}  {_actuals(node)}".rstrip()
    inner = indent + ("      " if depth else "   ")
    for key in _DETAILS:
        if key in node:
            value = node[key]
            yield f"{inner}{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
    if removed := node.get("Rows Removed by Filter"):
        yield f"{inner}Rows removed by filter: {numbers.count(float(removed))}"
    for child in node.get("Plans", []):
        yield from _node(child, depth + 1)


def _title(node: dict[str, Any]) -> str:
    parts = [str(node.get("Node Type", "?"))]
    if "Index Name" in node:
        parts.append(f"using {node['Index Name']}")
    if "Relation Name" in node:
        parts.append(f"on {node['Relation Name']}")
    return " ".join(parts)


def _actuals(node: dict[str, Any]) -> str:
    if "Actual Loops" not in node:
        return f"(estimated: {numbers.count(float(node.get('Plan Rows', 0)))} rows)"
    if not node["Actual Loops"]:
        return "(never executed)"
    rows, loops = float(node.get("Actual Rows", 0)), float(node["Actual Loops"])
    said = [f"{rows:,.10g} rows × {numbers.count(loops)}"]
    if "Actual Total Time" in node:
        said.append(f"{numbers.significant(float(node['Actual Total Time']))} ms")
    pages = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
    said.append(f"{numbers.count(pages)} buffers")
    return f"({', '.join(said)})"

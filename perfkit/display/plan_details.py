"""What EXPLAIN gave beyond a node's figures: first the line that says most, then every other key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perfkit import numbers
from perfkit.display.plan_figures import ms, plural
from perfkit.errors import PlanError
from perfkit.explain.fingerprint import CONDITIONS
from perfkit.explain.plan import COUNTERS, Node
from perfkit.nested import dumps

SHORT = 160  # characters of a condition in the line that says most
_LONG = 1_000  # characters of any value
_OUTPUT = 6  # columns that are named
_WORKERS = 16
_IN_TITLE = (  # texts that a node's title is made of
    *("Node Type", "Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name"),
    *("Alias", "Index Name", "Join Type", "Strategy", "Partial Mode", "Scan Direction", "Subplan Name", "Command"),
)
_REMOVED = {
    "Rows Removed by Filter": "removed by the filter",
    "Rows Removed by Join Filter": "removed by the join filter",
    "Rows Removed by Index Recheck": "removed when rechecked",
    "Rows Removed by Conflict Filter": "removed by the conflict filter",
}
_SAID = (*_REMOVED, "Heap Fetches", "Workers Planned", "Workers Launched")  # numbers that the first line has
_KILOBYTES = {"Peak Memory Usage": "in memory", "Disk Usage": "on disk"}


def brief(node: Node) -> str:
    """The conditions, and what became of rows, memory and workers, in one line; "" for none of it."""
    told = [f"{key}: {shortened(', '.join(texts), SHORT)}" for key in CONDITIONS if (texts := node.texts(key))]
    for key, words in _REMOVED.items():
        if count := node.value(key) * max(node.loops, 1.0):
            told.append(f"{plural(count, 'row')} {words}")
    told += _memory(node)
    if "Heap Fetches" in node.raw:
        told.append(plural(node.value("Heap Fetches"), "heap fetch", "heap fetches"))
    if lossy := node.value("Lossy Heap Blocks"):
        told.append(f"{plural(lossy, 'lossy page')}, {numbers.count(node.value('Exact Heap Blocks'))} exact")
    if hits := node.value("Cache Hits") + node.value("Cache Misses"):
        told.append(f"{numbers.count(node.value('Cache Hits'))} of {numbers.count(hits)} found in the cache")
    if "Workers Planned" in node.raw:
        launched = f", {numbers.count(node.value('Workers Launched'))} launched" if node.executed else ""
        told.append(f"{plural(node.value('Workers Planned'), 'worker')} planned{launched}")
    return " · ".join(told)


def details(node: Node) -> Iterator[tuple[str, str]]:
    """Everything else that EXPLAIN gave of a node, named; counts of 0, `false` and what `brief` says in full aside."""
    raw, done = node.raw, {"Plans", *(key for key in _IN_TITLE if node.text(key))}
    done |= {key for key in CONDITIONS if (texts := node.texts(key)) and len(", ".join(texts)) <= SHORT}
    done |= {key for key in _SAID if _plain(raw, key)}
    if node.text("Sort Method") and _plain(raw, "Sort Space Used"):
        done |= {"Sort Method", "Sort Space Used", "Sort Space Type"}
    if _plain(raw, "Total Cost"):
        yield "Cost", _cost(node)
        done |= {"Startup Cost", "Total Cost", "Plan Rows", "Plan Width"}
    if _plain(raw, "Actual Loops") and node.executed:
        yield "Each loop", _loop(node)
        done |= {"Actual Loops", "Actual Rows", "Actual Startup Time", "Actual Total Time"}
    if node.children and node.inclusive_ms is not None and node.executed:
        yield "With all below", f"{ms(node.inclusive_ms)} ms, {plural(node.pages, 'page')}"
    if buffers := _buffers(node):
        yield "Buffers, with all below", buffers
    done |= {key for key in COUNTERS if _plain(raw, key)}
    if outputs := node.texts("Output"):
        more = f" and {len(outputs) - _OUTPUT} more" if len(outputs) > _OUTPUT else ""
        yield "Output", shortened(", ".join(outputs[:_OUTPUT]), SHORT) + more
        done.add("Output")
    yield from pairs(raw, done)


def pairs(raw: Mapping[str, Any], done: set[str]) -> Iterator[tuple[str, str]]:
    """The other keys of a part of the document with their values as text; those of 0 and false are left out."""
    for key, value in raw.items():
        if key in done or not value:
            continue
        if key == "Workers" and isinstance(value, list):
            for at, worker in enumerate(value[:_WORKERS]):
                yield (
                    f"Worker {at}",
                    _flat(
                        {k: v for k, v in worker.items() if k != "Worker Number"}
                        if isinstance(worker, dict)
                        else worker
                    ),
                )
            if len(value) > _WORKERS:
                yield "Workers", f"{len(value) - _WORKERS} more"
        else:
            yield key, _flat(value) + (" ms" if key.endswith(" Time") and _plain(raw, key) else "")


def shortened(text: str, limit: int) -> str:
    """A text on one line, cut where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _memory(node: Node) -> Iterator[str]:
    if method := node.text("Sort Method"):
        space = numbers.size(node.value("Sort Space Used") * 1024)
        yield f"{method}, {space} {'on disk' if node.text('Sort Space Type') == 'Disk' else 'in memory'}"
    batches = node.value("Hash Batches") or node.value("HashAgg Batches")
    if batches > 1:
        yield plural(batches, "batch", "batches")
    for key, words in _KILOBYTES.items():
        if used := node.value(key):
            yield f"{numbers.size(used * 1024)} {words}"


def _cost(node: Node) -> str:
    start, end = (f"{node.value(key):,.10g}" for key in ("Startup Cost", "Total Cost"))
    rows = plural(node.value("Plan Rows"), "row")
    return f"{start} to {end} for {rows} of {plural(node.value('Plan Width'), 'byte')}"


def _loop(node: Node) -> str:
    rows = f"{node.value('Actual Rows'):,.10g} rows"
    if "Actual Total Time" not in node.raw:
        return rows
    start, end = (ms(node.value(key)) for key in ("Actual Startup Time", "Actual Total Time"))
    return f"{rows}, first after {start} ms, last after {end} ms"


def _buffers(node: Node) -> str:
    found: dict[str, list[str]] = {}
    for key in COUNTERS:
        if count := node.value(key):
            kind, what, _ = key.lower().split(" ")
            found.setdefault(kind, []).append(f"{what} {numbers.count(count)}")
    return "; ".join(f"{kind} {', '.join(counts)}" for kind, counts in found.items())


def _plain(raw: Mapping[str, Any], key: str) -> bool:
    """Whether a value is the number that it ought to be, and has been said as one."""
    return isinstance(raw.get(key), int | float) and not isinstance(raw[key], bool)


def _flat(value: Any, depth: int = 3) -> str:
    """Any value of a document on one line, without what is 0 or false in it."""
    if isinstance(value, dict | list) and not depth:
        try:
            text = dumps(value)
        except PlanError:
            text = "(nested too deeply)"
    elif isinstance(value, dict):
        text = ", ".join(f"{key} {_flat(part, depth - 1)}" for key, part in value.items() if part)
    elif isinstance(value, list):
        text = ", ".join(_flat(part, depth - 1) for part in value)
    else:
        return shortened(str(value), _LONG)
    return shortened(text if depth == 3 else f"({text})", _LONG)

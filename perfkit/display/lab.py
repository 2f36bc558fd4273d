"""The index lab as a reader sees it: the sentence, the verdict on each index, its costs, the proof, SQL to copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from perfkit import numbers
from perfkit.analysis.results import Comparison
from perfkit.display import claims as judgements
from perfkit.display.html import Block, code, escape, folded, headed, listed
from perfkit.display.lab_words import doubts, sentence, why
from perfkit.display.table import Cell, Table
from perfkit.display.tables import compared
from perfkit.lab.results import IndexValue, Lab
from perfkit.release.claims import LAB
from perfkit.release.lab_claims import judged
from perfkit.stats import Verdict

_NOTE = (
    "Latencies measured under load: medians of rounds in which all arms took turns, 95 % intervals, the control "
    "arm beside them. Sizes and build times measured once."
)


def answer(lab: Lab) -> Block:
    """The sentence that the lab is for."""
    state = "good" if lab.holds else "unsure"
    run = lab.ablation.run
    rows = max(run.get("database", {}).get("rows", {"": 0}).items(), key=lambda item: item[1], default=("", 0))
    parts = [
        f"profile {run['parameters']['profile']}",
        *([f"scale {run['parameters']['scale']}"] if run["parameters"]["scale"] else []),
        f"{numbers.count(rows[1])} rows in {rows[0]}",
        f"PostgreSQL {run.get('server', {}).get('version', '?')}",
        str(run.get("started", "")).replace("T", " ")[:16] + " UTC",
    ]
    text = sentence(lab)
    html = headed(state, f"{lab.title}: what each index is worth", "", text, meta=" · ".join(parts))
    return Block(html, f"{lab.title}\n{text}\n{' · '.join(parts)}")


def verdicts(lab: Lab) -> Table:
    """One row for each index: keep it or not and why, what it does, what it takes."""
    columns = ("index", "verdict", "alone it makes faster", "slower without it", "size", "inserts")
    rows = tuple(
        (
            Cell(worth.name, _definition(worth)),
            Cell("keep", why(lab, worth), "good") if worth.kept else Cell("remove", why(lab, worth), "unsure"),
            _query_tables(worth.faster),
            _query_tables(worth.missed),
            Cell(numbers.size(worth.bytes), f"{_share(worth)} of {worth.table}"),
            _latency(worth, "insert"),
        )
        for worth in sorted(lab.worths, key=lambda worth: (not worth.kept, -worth.bytes))
    )
    if not lab.queries:
        few = tuple((row[0], *row[4:]) for row in rows)
        return Table("What each index takes", (columns[0], *columns[4:]), few, frozenset(columns[4:]), note=_NOTE)
    if not lab.confirmed:
        rows = tuple((row[0], Cell(numbers.NONE, "not asked", "quiet"), *row[2:]) for row in rows)
    return Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=_NOTE)


def costs(lab: Lab) -> Block:
    """What each index takes where rows change: by time, and by what the server counted."""
    tables = (_latencies(lab), _counted(lab))
    return Block("".join(table.to_html() for table in tables), "\n\n".join(table.to_text() for table in tables))


def _latencies(lab: Lab) -> Table:
    columns = ("index", "insert", "update of its column", "update of another", "delete", "build")
    rows = tuple(
        (
            Cell(worth.name, f"{numbers.size(worth.bytes)} on {worth.table}"),
            _latency(worth, "insert"),
            _latency(worth, "update"),
            _latency(worth, "update", own=False),
            _latency(worth, "delete"),
            Cell(numbers.seconds(worth.seconds), "measured once", "quiet"),
        )
        for worth in lab.worths
    )
    note = "Ratio of medians with the index alone and with none, under load: ×1.05 is 5 % slower."
    return Table("Latency where rows change", columns, rows, frozenset(columns[1:]), note=note)


def _counted(lab: Lab) -> Table:
    columns = ("index", "WAL of its build", "WAL of an insert", "expected", "HOT updates of its column", "after churn")
    rows = tuple(
        (
            Cell(worth.name),
            Cell(numbers.size(worth.wal_bytes)),
            _wal(worth),
            Cell(numbers.NONE if worth.overhead is None else f"+{numbers.percent(worth.overhead)}"),
            _hot(worth),
            _churn(worth),
        )
        for worth in lab.worths
    )
    note = (
        "Counted by the server, once, with the index alone and with none; WAL without page images, which come on top "
        "after a checkpoint. Expected: what pganalyze's formula takes an insert to add to the index, as a share of "
        "what it adds to the table. HOT: updates that no index had to hear of. Churn: 5 % of the rows "
        "changed in the index's column three times, with VACUUM after each."
    )
    return Table("WAL, HOT updates and growth", columns, rows, frozenset(columns[1:]), note=note)


def alone(lab: Lab) -> Table:
    """Every query with each index alone, compared with none."""
    note = "Ratio of medians under load; ×0.10 is a tenth of the time."
    return _matrix(lab, "Each alone, compared with no index", lambda w: w.alone, lab.whole, "all", note)


def without(lab: Lab) -> Table:
    """Every query without each index, compared with all."""
    note = "Ratio of medians under load; ×2.00 is twice the time."
    return _matrix(lab, "All but one, compared with all", lambda w: w.without, (), "", note)


def confirmation(lab: Lab) -> Table:
    """The chosen set by rounds that the search did not see, and what it loses without each of its indexes."""
    needed = {name: own for name, own in lab.needs.items() if own}
    columns = (
        "query",
        "all / none",
        "kept / all",
        *(f"kept without {n} / all" for n in needed),
        *(["advised / all"] if lab.advised else []),
    )
    by = [
        _by_query(found)
        for found in (lab.whole, lab.confirmed, *needed.values(), *([lab.advised] if lab.advised else []))
    ]
    rows = tuple((Cell(c.item), *(compared(found.get(c.item)) for found in by)) for c in lab.confirmed)
    changes = tuple(
        (
            Cell(lab.title_of(c.item)),
            Cell(numbers.NONE, "", "quiet"),
            compared(c),
            *[Cell("", "", "quiet")] * (len(columns) - 3),
        )
        for c in lab.lighter
    )
    blocks = len(lab.last.run["blocks"]) if lab.last else 0
    note = (
        f"{blocks} blocks whose requests the search had not seen. Kept / all is known to hold where its whole interval "
        f"is at most ×{numbers.significant(1 + lab.margin)}."
    )
    if lab.advised:
        size, whole = sum(i["bytes"] for i in lab.advised_indexes), sum(w.bytes for w in lab.worths)
        note += f" The advised indexes take {numbers.size(size)}, {numbers.percent(size / whole)} of all."
    return Table("Confirmed by fresh rounds", columns, (*rows, *changes), frozenset(), note=note)


def scans(lab: Lab) -> Table:
    """How often each index was scanned while all were there, and what the catalogue says of it."""
    remarks: Mapping[str, Sequence[str]] = {}
    for remark in lab.record.get("remarks", ()):
        remarks = {**remarks, remark["index"]: [*remarks.get(remark["index"], ()), remark["text"]]}
    rows = tuple(
        (
            Cell(w.name),
            Cell(numbers.count(lab.scans.get(w.name, 0)), "", "" if lab.scans.get(w.name) else "unsure"),
            Cell("; ".join(remarks.get(w.name, ())) or numbers.NONE),
        )
        for w in lab.worths
    )
    missing = tuple(
        (Cell(r["table"]), Cell(numbers.NONE), Cell(r["text"]))
        for r in lab.record.get("remarks", ())
        if r["kind"] == "missing"
    )
    note = (
        "Counted by the server on the arm that has all of them; an index that is scanned is not yet one that is missed."
    )
    return Table(
        "Used while all are there",
        ("index", "scans", "from the catalogue"),
        (*rows, *missing),
        frozenset({"scans"}),
        note=note,
    )


def statements(lab: Lab) -> Block:
    """The recommended set, its rollback, and what removes the others from a database that has them."""
    if not lab.confirmed:
        return Block("", "")
    parts = {
        "Keep": "\n".join(f"{w.sql};" for w in lab.kept),
        "Rollback of these": "\n".join(f"{w.drop};" for w in reversed(lab.kept)),
        "Remove the others": "\n".join(f"{w.drop};" for w in lab.dropped),
        "The advised set, for comparison": str(lab.record.get("advised", "")).strip(),
    }
    html = "".join(f"<h4>{escape(title)}</h4>{code(sql, name=title)}" for title, sql in parts.items() if sql)
    return Block(html, "\n\n".join(f"-- {title}\n{sql}" for title, sql in parts.items() if sql))


def claims(lab: Lab) -> Table:
    """What was said beforehand beside what was measured."""
    return judgements.table(judged(lab), "What was claimed, and what was measured")


def weak(lab: Lab) -> Block:
    """What weakens the result."""
    lines = list(doubts(lab))
    return Block(listed(lines, "weak"), "\n".join(f"- {line}" for line in lines))


def details(lab: Lab) -> Block:
    """Every index and query, folded."""
    tables = (alone(lab), without(lab))
    html = "".join(folded(table.caption, table.to_html()) for table in tables if table.rows)
    return Block(html, "\n\n".join(table.to_text() for table in tables if table.rows))


def summary(lab: Lab) -> dict[str, Any]:
    """What a report on the change says of its indexes, as JSON values: see `database.index_lab`."""
    table = verdicts(lab)
    rows = [[[cell.text, cell.note, cell.state] for cell in row] for row in table.rows]
    return {
        "sentence": sentence(lab),
        "columns": list(table.columns),
        "rows": rows,
        "claims": [asdict(claim) for claim in judged(lab) if claim.measure == LAB],
        "command": lab.record["command"],
    }


def _matrix(
    lab: Lab,
    caption: str,
    of: Callable[[IndexValue], Sequence[Comparison]],
    last: Sequence[Comparison],
    name: str,
    note: str,
) -> Table:
    rows = [(Cell(w.name), *(compared(_by_query(of(w)).get(q)) for q in lab.queries)) for w in lab.worths if of(w)]
    if last and rows:
        rows.append((Cell(name), *(compared(_by_query(last).get(q)) for q in lab.queries)))
    return Table(caption, ("index", *lab.queries), tuple(rows), frozenset(), note=note)


def _by_query(found: Sequence[Comparison]) -> dict[str, Comparison]:
    return {c.item: c for c in found}


def _definition(worth: IndexValue) -> str:
    return f"{worth.table}: {worth.definition.partition(' USING ')[2]}"


def _share(worth: IndexValue) -> str:
    return numbers.percent(worth.bytes / worth.table_bytes) if worth.table_bytes else numbers.NONE


def _query_tables(found: Sequence[Comparison]) -> Cell:
    told = [f"{c.item} {numbers.significant(max(c.ratio.value, 1 / c.ratio.value))} times" for c in found if c.ratio]
    return Cell("; ".join(told) or numbers.NONE, "", "" if told else "quiet")


def _latency(worth: IndexValue, kind: str, *, own: bool = True) -> Cell:
    found = worth.write(kind, own=own)
    if found is None:
        return Cell(numbers.NONE, "", "quiet")
    cell = compared(found.latency)
    told = f"{cell.note} {found.column}".strip()
    return Cell(cell.text, told, cell.state if found.latency.verdict is not Verdict.INCONCLUSIVE else "quiet")


def _wal(worth: IndexValue) -> Cell:
    found = worth.write("insert")
    if found is None or found.wal is None:
        return Cell(numbers.NONE, "", "quiet")
    none, alone_ = found.wal
    share = f", +{numbers.percent(alone_ / none - 1)}" if none else ""
    return Cell(f"+{numbers.count(alone_ - none)} B", f"of {numbers.count(none)} B{share}")


def _hot(worth: IndexValue) -> Cell:
    found = worth.write("update")
    if found is None or found.hot is None:
        return Cell(numbers.NONE, "", "quiet")
    before, after = (f"{100 * share:.0f} %" for share in found.hot)
    return Cell(f"{before} → {after}", found.column, "bad" if found.hot[1] < found.hot[0] - 0.1 else "")


def _churn(worth: IndexValue) -> Cell:
    if worth.churn is None:
        return Cell(numbers.NONE, "", "quiet")
    before, after = worth.churn
    return Cell(f"×{numbers.significant(after / before)}", f"{numbers.size(before)} → {numbers.size(after)}")

"""Index use and the index lab as they show themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perfkit.analysis.claims import LAB, claims_table
from perfkit.analysis.results import FLOOR_FACTOR, Comparison
from perfkit.analysis.tables import compared
from perfkit.base import units
from perfkit.base.bundle import write_atomically
from perfkit.base.stats import Verdict
from perfkit.base.units import NONE, count, size
from perfkit.indexes.lab_results import IndexValue, Lab, judged, read
from perfkit.indexes.use import CatalogueFacts, IndexUse, Remark, script
from perfkit.show.html import Block, Cell, OpenedPage, Table, code, escape, folded, headed
from perfkit.show.html import listed as html_listed
from perfkit.show.render import LAB as RENDER_LAB
from perfkit.show.render import page_of

_STATES = {"invalid": "bad", "overlapping": "quiet", "missing": "unsure"}


def index_use(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Block:
    """The remarks as a table, and below it their statements to copy."""
    table, sql = remarks_table(facts, remarks), script(remarks)
    if not sql:
        return Block(table.to_html(), table.to_text())
    title = "Statements, each to be weighed (one by one, for CONCURRENTLY runs in no transaction)"
    html = f"{table.to_html()}<h3>{escape(title)}</h3>{code(chr(10).join(sql), name=title)}"
    return Block(html, "\n".join([table.to_text(), "", f"{title}:", *(f"  {line}" for line in sql)]))


def remarks_table(facts: CatalogueFacts, remarks: Sequence[Remark]) -> Table:
    """One row for each remark; the note says how many indexes there are and what is known of their use."""
    rows = tuple(
        (
            Cell(remark.kind, state=_STATES.get(remark.kind, "")),
            Cell(remark.table),
            Cell(remark.text, remark.evidence),
            Cell(size(remark.bytes) if remark.bytes else NONE),
        )
        for remark in remarks
    )
    whole = sum(index.bytes for index in facts.indexes)
    since = facts.counters.since
    counters = f"use is counted since {since}" if since else "since when use is counted is not known"
    counters = counters if facts.counters.counted else "use is not counted here (track_counts is off)"
    note = f"{count(len(facts.indexes))} indexes, {size(whole)}; {counters}."
    note = note if rows else f"nothing to say against {note}"
    return Table("Indexes", ("what", "table", "why", "frees"), rows, frozenset({"frees"}), note=note)


def uses(found: Sequence[IndexUse]) -> Table:
    """How often each index was used under a workload."""
    rows = tuple((Cell(use.index), Cell(use.table), Cell(count(use.scans))) for use in found)
    return Table("Scans under the workload", ("index", "table", "scans"), rows, frozenset({"scans"}))


# What a lab found, in sentences.


def sentence(lab: Lab) -> str:
    """What to keep, what the rest costs, and how sure that is."""
    if not lab.confirmed:
        return "Not measured to the end." if not lab.complete else "What each index costs; which to keep was not asked."
    kept, dropped = lab.kept, lab.dropped
    within = f"by more than {100 * lab.margin:g} %"
    if not dropped:
        return f"Keep all {len(kept)}: without any of them a query becomes slower {within}."
    names = ", ".join(worth.name for worth in kept) or "none"
    keep = f"Keep {len(kept)} of {len(lab.worths)} ({names})" if kept else f"Keep none of {len(lab.worths)}"
    size = units.size(sum(worth.bytes for worth in dropped))
    others = "the other" if kept else "they"
    rest = f"{others} {len(dropped)} add{'s' if len(dropped) == 1 else ''} {size}" if kept else f"they add {size}"
    return f"{keep}: {rest}{_inserts(lab)}{_queries(lab, within)}."


def _inserts(lab: Lab) -> str:
    """What the dropped indexes add to an insert into the table that has most of them."""
    sizes = {t: sum(w.bytes for w in lab.dropped if w.table == t) for t in {w.table for w in lab.dropped}}
    found = [c for c in lab.lighter if lab.is_insert(c) and sizes.get(lab.table_of(c.item))]
    c = max(found, key=lambda c: sizes[lab.table_of(c.item)], default=None)
    if c is None or c.ratio is None or c.verdict is not Verdict.FASTER:
        return ""
    value, low, high = (units.percent(1 / r - 1) for r in (c.ratio.value, c.ratio.hi, c.ratio.lo))
    return f" and {value} ({low} to {high}) to the latency of inserts into {lab.table_of(c.item)}"


def _queries(lab: Lab, within: str) -> str:
    """Whether the kept set is as good as all, as far as fresh rounds tell."""
    if lab.holds:
        faster = [c for c in lab.confirmed if c.verdict is Verdict.FASTER]
        also = f"; without them {listed(faster)} is faster" if faster else ""
        makes = "makes" if len(lab.dropped) == 1 else "make"
        return f" and {makes} no query faster {within}, as fresh rounds confirm{also}"
    if slower := lab.slower:
        return f"; without them {listed(slower)} may be slower {within}"
    return f"; no query was seen to be slower {within} without them, but {_wide(lab)} not every interval excludes it"


def _wide(lab: Lab) -> str:
    open_ = [c for c in lab.confirmed if c.ratio and c.ratio.hi > 1 + lab.margin]
    widest = max((c.ratio.hi for c in open_ if c.ratio), default=1.0)
    return f"(up to {units.percent(widest - 1)} for {listed(open_)})"


def why(lab: Lab, worth: IndexValue) -> str:
    """Why an index is kept or not."""
    if worth.kept:
        own = [c for c in lab.needs.get(worth.name, ()) if c.verdict is Verdict.SLOWER]
        if own:
            return f"without it {_changes(own)}"
        if worth.missed:
            return f"missed where it alone is left out: {_changes(worth.missed)}"
        return f"alone it does most for {listed(worth.faster)}" if worth.faster else "not shown to be spare"
    if not worth.faster:
        return "no query is faster with it alone"
    others = [k.name for k in lab.kept if {c.item for c in k.faster} & {c.item for c in worth.faster}]
    return f"what it does, {', '.join(others)} does as well" if others else "not missed where the others are"


def doubts(lab: Lab) -> Iterator[str]:
    """What a careful reader should hold against the result."""
    if not lab.complete:
        yield f"The lab is {lab.record['status']}: {lab.record.get('message', 'it has not ended')}."
    if lab.tried > 1:
        yield f"Fresh rounds looked at {lab.tried} sets, and the last is shown: every look could find by chance."
    if lab.confirmed and not lab.holds:
        within = f"within {100 * lab.margin:g} % of all indexes"
        yield f"The kept set is not known to be {within} for every query; more blocks (--profile thorough) would tell."
    for c in lab.lighter:
        if c.verdict is Verdict.SLOWER and c.ratio:
            times = f"×{units.significant(c.ratio.value)}"
            yield f"{lab.title_of(c.item)}: {times} with the kept set alone; no query of the workload does that."
    for line in lab.record.get("lacking", ()):
        yield f"Not measured: {line}."
    if near := lab.near_floor:
        yield (
            f"Under {FLOOR_FACTOR:g} times what the client alone takes, so that the indexes' true gain is larger than "
            f"shown: {', '.join(near)}."
        )
    yield from lab.circumstances


def listed(found: list[Comparison]) -> str:
    """The queries of comparisons."""
    return ", ".join(dict.fromkeys(c.item for c in found))


def _changes(found: list[Comparison]) -> str:
    told = [f"{c.item} takes ×{units.significant(c.ratio.value)}" for c in found if c.ratio]
    return ", ".join(told)


# The index lab as a reader sees it: the sentence, the verdict on each index, its costs, the proof, SQL to copy.

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
        f"{units.count(rows[1])} rows in {rows[0]}",
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
            Cell(units.size(worth.bytes), f"{_share(worth)} of {worth.table}"),
            _latency(worth, "insert"),
        )
        for worth in sorted(lab.worths, key=lambda worth: (not worth.kept, -worth.bytes))
    )
    if not lab.queries:
        few = tuple((row[0], *row[4:]) for row in rows)
        return Table("What each index takes", (columns[0], *columns[4:]), few, frozenset(columns[4:]), note=_NOTE)
    if not lab.confirmed:
        rows = tuple((row[0], Cell(units.NONE, "not asked", "quiet"), *row[2:]) for row in rows)
    return Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=_NOTE)


def costs(lab: Lab) -> Block:
    """What each index takes where rows change: by time, and by what the server counted."""
    tables = (_latencies(lab), _counted(lab))
    return Block("".join(table.to_html() for table in tables), "\n\n".join(table.to_text() for table in tables))


def _latencies(lab: Lab) -> Table:
    columns = ("index", "insert", "update of its column", "update of another", "delete", "build")
    rows = tuple(
        (
            Cell(worth.name, f"{units.size(worth.bytes)} on {worth.table}"),
            _latency(worth, "insert"),
            _latency(worth, "update"),
            _latency(worth, "update", own=False),
            _latency(worth, "delete"),
            Cell(units.seconds(worth.seconds), "measured once", "quiet"),
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
            Cell(units.size(worth.wal_bytes)),
            _wal(worth),
            Cell(units.NONE if worth.overhead is None else f"+{units.percent(worth.overhead)}"),
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
            Cell(units.NONE, "", "quiet"),
            compared(c),
            *[Cell("", "", "quiet")] * (len(columns) - 3),
        )
        for c in lab.lighter
    )
    blocks = len(lab.last.run["blocks"]) if lab.last else 0
    note = (
        f"{blocks} blocks whose requests the search had not seen. Kept / all is known to hold where its whole interval "
        f"is at most ×{units.significant(1 + lab.margin)}."
    )
    if lab.advised:
        size, whole = sum(i["bytes"] for i in lab.advised_indexes), sum(w.bytes for w in lab.worths)
        note += f" The advised indexes take {units.size(size)}, {units.percent(size / whole)} of all."
    return Table("Confirmed by fresh rounds", columns, (*rows, *changes), frozenset(), note=note)


def scans(lab: Lab) -> Table:
    """How often each index was scanned while all were there, and what the catalogue says of it."""
    remarks: Mapping[str, Sequence[str]] = {}
    for remark in lab.record.get("remarks", ()):
        remarks = {**remarks, remark["index"]: [*remarks.get(remark["index"], ()), remark["text"]]}
    rows = tuple(
        (
            Cell(w.name),
            Cell(units.count(lab.scans.get(w.name, 0)), "", "" if lab.scans.get(w.name) else "unsure"),
            Cell("; ".join(remarks.get(w.name, ())) or units.NONE),
        )
        for w in lab.worths
    )
    missing = tuple(
        (Cell(r["table"]), Cell(units.NONE), Cell(r["text"]))
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
    return claims_table(judged(lab), "What was claimed, and what was measured")


def weak(lab: Lab) -> Block:
    """What weakens the result."""
    lines = list(doubts(lab))
    return Block(html_listed(lines, "weak"), "\n".join(f"- {line}" for line in lines))


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
    return units.percent(worth.bytes / worth.table_bytes) if worth.table_bytes else units.NONE


def _query_tables(found: Sequence[Comparison]) -> Cell:
    told = [f"{c.item} {units.significant(max(c.ratio.value, 1 / c.ratio.value))} times" for c in found if c.ratio]
    return Cell("; ".join(told) or units.NONE, "", "" if told else "quiet")


def _latency(worth: IndexValue, kind: str, *, own: bool = True) -> Cell:
    found = worth.write(kind, own=own)
    if found is None:
        return Cell(units.NONE, "", "quiet")
    cell = compared(found.latency)
    told = f"{cell.note} {found.column}".strip()
    return Cell(cell.text, told, cell.state if found.latency.verdict is not Verdict.INCONCLUSIVE else "quiet")


def _wal(worth: IndexValue) -> Cell:
    found = worth.write("insert")
    if found is None or found.wal is None:
        return Cell(units.NONE, "", "quiet")
    none, alone_ = found.wal
    share = f", +{units.percent(alone_ / none - 1)}" if none else ""
    return Cell(f"+{units.count(alone_ - none)} B", f"of {units.count(none)} B{share}")


def _hot(worth: IndexValue) -> Cell:
    found = worth.write("update")
    if found is None or found.hot is None:
        return Cell(units.NONE, "", "quiet")
    before, after = (f"{100 * share:.0f} %" for share in found.hot)
    return Cell(f"{before} → {after}", found.column, "bad" if found.hot[1] < found.hot[0] - 0.1 else "")


def _churn(worth: IndexValue) -> Cell:
    if worth.churn is None:
        return Cell(units.NONE, "", "quiet")
    before, after = worth.churn
    return Cell(f"×{units.significant(after / before)}", f"{units.size(before)} → {units.size(after)}")


# An index lab as a notebook shows it: every property is something to look at, in HTML or in text.


class IndexLab(OpenedPage):
    """A lab from its folder; nothing here measures."""

    def __init__(self, folder: Path) -> None:
        """Read a lab's folder. Raises BundleError where a file is damaged or missing."""
        self.lab: Lab = read(folder)

    def render(self) -> Path:
        """Write index_lab.html, keep.sql and remove.sql; returns the page. Raises BundleError."""
        lab = self.lab
        if lab.confirmed:
            write_atomically(lab.folder / "keep.sql", "".join(f"{w.sql};\n" for w in lab.kept))
            write_atomically(lab.folder / "remove.sql", "".join(f"{w.drop};\n" for w in lab.dropped))
        return page_of(
            RENDER_LAB, {"bundle": str(lab.folder.resolve())}, lab.folder / "index_lab.html", f"Index lab: {lab.title}"
        )

    @property
    def answer(self) -> Block:
        """The sentence that the lab is for."""
        return answer(self.lab)

    @property
    def weaknesses(self) -> Block:
        """What weakens it."""
        return weak(self.lab)

    @property
    def verdicts(self) -> Table:
        """The verdict on each index."""
        return verdicts(self.lab)

    @property
    def picture(self) -> Block:
        """Gain against cost."""
        from perfkit.indexes import lab_chart  # matplotlib takes a second to import

        return lab_chart.gain_against_cost(self.lab)

    @property
    def statements(self) -> Block:
        """SQL to copy."""
        return statements(self.lab)

    @property
    def confirmation(self) -> Table:
        """The chosen set by fresh rounds."""
        return confirmation(self.lab)

    @property
    def costs(self) -> Block:
        """What each index costs where rows change."""
        return costs(self.lab)

    @property
    def scans(self) -> Table:
        """How often each was used, and what the catalogue says."""
        return scans(self.lab)

    @property
    def details(self) -> Block:
        """Every index and query."""
        return details(self.lab)

    @property
    def claims(self) -> Table:
        """What was claimed, and what was measured."""
        return claims(self.lab)

    @property
    def reproduce(self) -> Block:
        """The command that measures it again."""
        command = str(self.lab.record["command"]) or "# measured by a call in a notebook or a program"
        beside = "Beside this file: lab.json, and a folder with the bundle of every run."
        return Block(f"{code(command, name='command')}<p>{escape(beside)}</p>", f"{command}\n{beside}")

    def __repr__(self) -> str:
        return f"{self.lab.title}: index lab, {self.lab.record['status']}, in {self.lab.folder}"

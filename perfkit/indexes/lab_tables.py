"""Tables and sentences of an index lab, for its notebook and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from perfkit.analysis.claims import LAB, JudgedClaim, claims_table
from perfkit.analysis.results import Comparison
from perfkit.analysis.tables import compared
from perfkit.base import units
from perfkit.base.bundle import write_atomically
from perfkit.base.judgement import Verdict
from perfkit.indexes.designs import ADVISED
from perfkit.indexes.lab_results import IndexValue, Lab, caveats, judged, read, reason, sentence
from perfkit.runs.records import LabSummary
from perfkit.show import render
from perfkit.show.html import (
    Banner,
    Bullets,
    Cell,
    Code,
    Column,
    Folded,
    Paragraph,
    Section,
    Table,
    note,
    number,
    stacked,
)
from perfkit.show.render import OpenedPage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPTION = (
    "Largest speed-up of any query with only this index (logarithmic), against the index's size. Higher is more "
    "useful, further right is larger. Filled: kept."
)
_NOTE = (
    "Latencies: medians under load from interleaved rounds, with 95 % intervals and a control arm. Sizes and build "
    "times were measured once."
)


@dataclass(frozen=True, slots=True, repr=False)
class LabAnswer(Banner):
    """The result of a lab as one sentence, with what was measured."""

    def text(self) -> str:
        """Return the title, the sentence, and what was measured."""
        return f"{self.title.partition(':')[0]}\n{self.sentence}\n{self.meta}"


@dataclass(frozen=True, slots=True)
class LabPlots:
    """The pictures of a lab, as functions that draw into axes."""

    lab: Lab

    def gain_cost(self, ax: Axes | None = None) -> Axes:
        """Draw a point for each index: its largest speed-up of a query, against its size in MB; return the axes.

        Without `ax`, the picture is drawn into the current axes of pyplot.
        """
        from perfkit.show import charts  # matplotlib takes a second to import

        ax = charts.axes(ax)
        indexes = [index for index in self.lab.index_values if index.alone]
        sizes = {index.name: index.bytes / 1024 / 1024 for index in indexes}
        largest, top = max(sizes.values()), max(2.0, *map(_gain, indexes)) ** 1.25
        ax.set_yscale("log")
        ax.set_ylim(min(0.9, 1 / top**0.06), top)
        ax.set_xlim(-0.03 * largest, 1.5 * largest)
        gains = {index.name: math.log(_gain(index)) for index in indexes}
        heights = charts.spread_labels(gains, 0.1 * math.log(top))
        for index in indexes:
            size, gain, colour = sizes[index.name], _gain(index), charts.GREEN if index.kept else charts.ORANGE
            ax.plot([size], [gain], "o", color=colour, markerfacecolor=colour if index.kept else "none", markersize=7)
            side, shift = ("right", -0.03) if size > 0.6 * largest else ("left", 0.03)
            at = (size + shift * largest, math.exp(heights[index.name]))
            ax.annotate(charts.label(index.name), (size, gain), at, color=colour, ha=side, va="center", fontsize=8)
        charts.logarithmic(ax.yaxis, sign="×")
        ax.set_xlabel("size, MB")
        return ax


class IndexLab(OpenedPage):
    """A finished or stopped lab; every property displays itself in a notebook or as text."""

    def __init__(self, lab: Lab | Path) -> None:
        """Take a lab, or read one from its folder. Raises BundleError if a file is damaged or missing."""
        self.lab = lab if isinstance(lab, Lab) else read(lab)

    def render(self) -> Path:
        """Write index_lab.html, keep.sql and remove.sql; return the path of the page. Raises BundleError."""
        lab = self.lab
        if lab.confirmed:
            write_atomically(lab.folder / "keep.sql", "".join(f"{w.sql};\n" for w in lab.kept))
            write_atomically(lab.folder / "remove.sql", "".join(f"{w.drop};\n" for w in lab.dropped))
        page, title = lab.folder / "index_lab.html", f"Index lab: {lab.record.title}"
        return render.page_of(render.LAB, {"bundle": str(lab.folder.resolve())}, page, title)

    @property
    def answer(self) -> LabAnswer:
        """Return the lab's result as one sentence, with what was measured."""
        lab, run = self.lab, self.lab.ablation.bundle.run
        table, rows = max(run.database.rows.items(), key=lambda item: item[1], default=("", 0))
        parts = [
            f"profile {run.parameters.profile}",
            *([f"scale {run.parameters.scale}"] if run.parameters.scale else []),
            f"{units.count(rows)} rows in {table}",
            f"PostgreSQL {run.server.version}",
            str(run.started).replace("T", " ")[:16] + " UTC",
        ]
        title = f"{lab.record.title}: what each index is worth"
        return LabAnswer("good" if lab.holds else "unsure", title, "", sentence(lab), meta=" · ".join(parts))

    @property
    def weaknesses(self) -> Bullets:
        """Return the caveats as a list."""
        return Bullets(list(caveats(self.lab)), "weak")

    @property
    def verdicts(self) -> Table:
        """Return one row for each index: keep or remove, the reason, its gain and its cost."""
        lab = self.lab
        columns: list[Column[IndexValue]] = [
            Column("index", lambda i: Cell(i.name, f"{i.table}: {i.definition.partition(' USING ')[2]}")),
            Column("verdict", lambda i: _verdict(lab, i)),
            Column("faster with it alone", lambda i: _factors(i.faster)),
            Column("slower without it", lambda i: _factors(i.missed)),
            number("size", _size, key="size_bytes"),
            number("inserts", lambda i: _latency(i, "insert"), key="insert_ratio"),
        ]
        title = "What each index is worth" if lab.queries else "What each index costs"
        columns = columns if lab.queries else [columns[0], *columns[4:]]
        indexes = sorted(lab.index_values, key=lambda index: (not index.kept, -index.bytes))
        return Table.of(title, columns, indexes, note=_NOTE)

    @property
    def indexes(self) -> Table:
        """Return `verdicts`; `lab.indexes.frame` is its data frame."""
        return self.verdicts

    @property
    def plot(self) -> LabPlots:
        """Return the lab's pictures, to draw into axes of your own."""
        return LabPlots(self.lab)

    @property
    def picture(self) -> Section:
        """Return a chart with a point for each index, and the same figures in words."""
        from perfkit.show.charts import Picture  # matplotlib takes a second to import

        indexes = [index for index in self.lab.index_values if index.alone]
        finding = "; ".join(f"{i.name}: ×{units.significant(_gain(i))} for {units.size(i.bytes)}" for i in indexes)
        picture = Picture("gain-against-cost", "Gain against cost", finding, self.plot.gain_cost)
        return stacked(note(CAPTION), Section([picture], kind="gallery")) if indexes else stacked()

    @property
    def statements(self) -> Section:
        """Return the SQL of the recommended set, of its rollback, and of the removal of the other indexes."""
        lab = self.lab
        parts = {
            "Keep": "\n".join(f"{index.sql};" for index in lab.kept),
            "Roll back the kept indexes": "\n".join(f"{index.drop};" for index in reversed(lab.kept)),
            "Remove the others": "\n".join(f"{index.drop};" for index in lab.dropped),
            "The advised set, for comparison": lab.record.advised.strip(),
        }
        shown = parts.items() if lab.confirmed else ()
        return stacked(*(Section([Code(sql, title)], title, 4) for title, sql in shown if sql))

    @property
    def confirmation(self) -> Table:
        """Return the chosen set in rounds that the search did not use, and the set without each of its indexes."""
        lab = self.lab
        advised = lab.confirming(ADVISED)
        compared_sets = {
            "all / none": lab.whole,
            "kept / all": lab.confirmed,
            **{f"kept without {name} / all": reads for name, reads in lab.needs.items() if reads},
            **({"advised / all": advised} if advised else {}),
        }
        by_query = [_by_query(comparisons) for comparisons in compared_sets.values()]
        rows = [(Cell(c.item), *(compared(queries.get(c.item)) for queries in by_query)) for c in lab.confirmed]
        empty = [Cell("", "", "quiet")] * (len(by_query) - 2)
        rows += [(Cell(lab.title_of(c.item)), Cell(units.NONE, "", "quiet"), compared(c), *empty) for c in lab.lighter]
        blocks = lab.last.bundle.run.blocks if lab.last else ()
        note = (
            f"{len(blocks)} blocks that the search did not use. Kept / all is proven if its whole interval is at "
            f"most ×{units.significant(1 + lab.record.margin)}."
        )
        if lab.last and advised:
            built = sum(index.bytes for index in lab.last.built(ADVISED))
            share = units.percent(built / sum(index.bytes for index in lab.index_values))
            note += f" The advised indexes take {units.size(built)}, {share} of all."
        return Table("Confirmation by separate rounds", ("query", *compared_sets), tuple(rows), note=note)

    @property
    def costs(self) -> Section:
        """Return what each index costs writes: in latency, and in WAL and HOT updates as the server counted them."""
        return stacked(
            Table.of("Latency of writes", _LATENCIES, self.lab.index_values, note=_LATENCY_NOTE),
            Table.of("WAL, HOT updates and growth", _COUNTED, self.lab.index_values, note=_COUNTED_NOTE),
        )

    @property
    def scans(self) -> Table:
        """Return how often each index was scanned with all indexes present, and what the catalogue says of it."""
        scans, remarks = self.lab.scans, self.lab.record.remarks
        by_index = {
            index.name: "; ".join(remark.text for remark in remarks if remark.index == index.name)
            for index in self.lab.index_values
        }
        missing = {remark.table: remark.text for remark in remarks if remark.kind == "missing"}
        columns: list[Column[tuple[str, str]]] = [
            Column("index", lambda row: row[0]),
            number("scans", lambda row: _scanned(scans[row[0]]) if row[0] in by_index else None),
            Column("from the catalogue", lambda row: row[1] or None),
        ]
        rows = [*by_index.items(), *missing.items()]
        return Table.of("Scans with all indexes present", columns, rows, note=_SCANS_NOTE)

    @property
    def details(self) -> Section:
        """Return every index and query, folded."""
        lab = self.lab
        tables = (
            _matrix(
                "Each index alone, compared with no index",
                {**{index.name: index.alone for index in lab.index_values}, "all": lab.whole},
                lab.queries,
                "Ratio of medians under load; ×0.10 is a tenth of the time.",
            ),
            _matrix(
                "All indexes but one, compared with all",
                {index.name: index.without for index in lab.index_values},
                lab.queries,
                "Ratio of medians under load; ×2.00 is twice the time.",
            ),
        )
        return stacked(*(Folded(table.caption, [table]) for table in tables if table.rows))

    @property
    def claims(self) -> Table:
        """Return the claims made beforehand beside the measurements."""
        return claims_table(judged(self.lab), "What was claimed, and what was measured")

    @property
    def summary(self) -> LabSummary:
        """Return the lab's part of a report on a change."""
        table, claims = self.verdicts, [claim for claim in judged(self.lab) if claim.measure == LAB]
        return LabSummary(
            sentence=sentence(self.lab),
            columns=list(table.columns),
            rows=[[(cell.text, cell.note, cell.state) for cell in row] for row in table.rows],
            claims=TypeAdapter(list[JudgedClaim]).dump_python(claims, mode="json"),
            command=self.lab.record.command,
        )

    @property
    def reproduce(self) -> Section:
        """Return the command that measures the lab again."""
        command = self.lab.record.command or "# measured from a notebook or a program"
        files = "In the same folder: lab.json, and a folder with the bundle of each run."
        return stacked(Code(command, "command"), Paragraph(files), gap="\n")

    def __repr__(self) -> str:
        return f"{self.lab.record.title}: index lab, {self.lab.record.status}, in {self.lab.folder}"


def _verdict(lab: Lab, index: IndexValue) -> Cell:
    if not lab.confirmed:
        return Cell(units.NONE, "not tested", "quiet")
    return Cell("keep" if index.kept else "remove", reason(lab, index), "good" if index.kept else "unsure")


def _matrix(caption: str, comparisons: Mapping[str, Sequence[Comparison]], queries: Sequence[str], note: str) -> Table:
    """Return a row for each set of indexes that was compared, with a column for each query."""
    by_set = {name: _by_query(compared_queries) for name, compared_queries in comparisons.items() if compared_queries}
    rows = tuple((Cell(name), *(compared(by_query.get(q)) for q in queries)) for name, by_query in by_set.items())
    return Table(caption, ("index", *queries), rows, note=note)


def _by_query(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    return {c.item: c for c in comparisons}


def _size(index: IndexValue) -> Cell:
    share = units.percent(index.bytes / index.table_bytes) if index.table_bytes else units.NONE
    return Cell(units.size(index.bytes), f"{share} of {index.table}", value=index.bytes)


def _factors(comparisons: Sequence[Comparison]) -> Cell:
    """Return by which factor each query is faster or slower."""
    ratios = [(c.item, c.ratio.value) for c in comparisons if c.ratio]
    factors = [f"{item} {units.significant(max(ratio, 1 / ratio))}×" for item, ratio in ratios]
    return Cell("; ".join(factors) or units.NONE, "", "" if factors else "quiet")


def _latency(index: IndexValue, kind: str, *, own: bool = True) -> Cell | None:
    cost = index.write(kind, own=own)
    if cost is None:
        return None
    cell, certain = compared(cost.latency), cost.latency.verdict is not Verdict.INCONCLUSIVE
    words = f"{cell.note} {cost.write.column}".strip()
    return replace(cell, note=words, state=cell.state if certain else "quiet", value=cost.latency.ratio)


def _wal(index: IndexValue) -> Cell | None:
    cost = index.write("insert")
    if cost is None or cost.wal is None:
        return None
    without_index, with_index = cost.wal
    added, words = with_index - without_index, f"of {units.count(without_index)} B"
    words += f", +{units.percent(added / without_index)}" if without_index else ""
    return Cell(f"+{units.count(added)} B", words, value=added)


def _hot(index: IndexValue) -> Cell | None:
    cost = index.write("update")
    if cost is None or cost.hot is None:
        return None
    before, after = cost.hot
    state, shares = "bad" if after < before - 0.1 else "", {"before": before, "after": after}
    return Cell(f"{units.percent(before)} → {units.percent(after)}", cost.write.column, state, value=shares)


def _churn(index: IndexValue) -> Cell | None:
    if index.churn is None:
        return None
    before, after = index.churn.before, index.churn.after
    words = f"{units.size(before)} → {units.size(after)}"
    return Cell(f"×{units.significant(after / before)}", words, value=after / before)


def _scanned(scans: int) -> Cell:
    return Cell(units.count(scans), "", "" if scans else "unsure", value=scans)


def _gain(index: IndexValue) -> float:
    """Return the largest speed-up of any query, at least 1."""
    return max([1.0, *(1 / c.ratio.value for c in index.alone if c.ratio)])


_LATENCIES: list[Column[IndexValue]] = [
    Column("index", lambda i: Cell(i.name, f"{units.size(i.bytes)} on {i.table}")),
    number("insert", lambda i: _latency(i, "insert")),
    number("update of its column", lambda i: _latency(i, "update")),
    number("update of another column", lambda i: _latency(i, "update", own=False)),
    number("delete", lambda i: _latency(i, "delete")),
    number("build", lambda i: Cell(units.seconds(i.seconds), "measured once", "quiet", value=i.seconds), key="build_s"),
]
_LATENCY_NOTE = "Ratio of medians under load, with only this index to no index: ×1.05 is 5 % slower."
_COUNTED: list[Column[IndexValue]] = [
    Column("index", lambda i: i.name),
    number("WAL to build", lambda i: i.wal_bytes, units.size, "wal_to_build_bytes"),
    number("WAL per insert", _wal, key="wal_per_insert_bytes"),
    number("expected", lambda i: i.overhead, lambda share: f"+{units.percent(share)}", "expected_share"),
    number("HOT updates of its column", _hot, key="hot_share"),
    number("after churn", _churn, key="churn_factor"),
]
_COUNTED_NOTE = (
    "Counted once by the server, with only this index and with none. WAL excludes the full-page images that follow a "
    "checkpoint. Expected: bytes that an insert adds to the index, as a share of the bytes it adds to the table "
    "(pganalyze's formula). HOT: updates that change no index. Churn: 5 % of the rows get a new value in the index's "
    "column, three times, each time followed by VACUUM."
)
_SCANS_NOTE = (
    "Counted by the server on the arm with all indexes. An index that is scanned is not necessarily an index that is "
    "needed."
)

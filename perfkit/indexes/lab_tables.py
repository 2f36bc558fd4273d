"""Tables and sentences of an index lab, for its notebook and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.analysis.claims import LAB, claims_table
from perfkit.analysis.results import Comparison
from perfkit.analysis.tables import compared
from perfkit.base import units
from perfkit.base.bundle import write_atomically
from perfkit.base.judgement import Verdict
from perfkit.indexes.designs import ADVISED
from perfkit.indexes.lab_results import IndexValue, Lab, caveats, judged, read, reason, sentence
from perfkit.show import render
from perfkit.show.html import Block, Cell, OpenedPage, Table, code, escape, folded, headed, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT, DROPPED = "#1f9d6b", "#c2571a"
CAPTION = (
    "Largest speed-up of any query with only this index (logarithmic), against the index's size. Higher is more "
    "useful, further right is larger. Filled: kept."
)
_NOTE = (
    "Latencies: medians under load from interleaved rounds, with 95 % intervals and a control arm. Sizes and build "
    "times were measured once."
)


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
    def answer(self) -> Block:
        """Return the lab's result as one sentence, with what was measured."""
        lab, run, title = self.lab, self.lab.ablation.bundle.run, self.lab.record.title
        rows = max(run.database.rows.items(), key=lambda item: item[1], default=("", 0))
        parts = [
            f"profile {run.parameters.profile}",
            *([f"scale {run.parameters.scale}"] if run.parameters.scale else []),
            f"{units.count(rows[1])} rows in {rows[0]}",
            f"PostgreSQL {run.server.version}",
            str(run.started).replace("T", " ")[:16] + " UTC",
        ]
        text = sentence(lab)
        state, meta = "good" if lab.holds else "unsure", " · ".join(parts)
        html = headed(state, f"{title}: what each index is worth", "", text, meta=meta)
        return Block(html, f"{title}\n{text}\n{meta}")

    @property
    def weaknesses(self) -> Block:
        """Return the caveats as a list."""
        lines = list(caveats(self.lab))
        return Block(listed(lines, "weak"), "\n".join(f"- {line}" for line in lines))

    @property
    def verdicts(self) -> Table:
        """Return one row for each index: keep or remove, the reason, its gain and its cost."""
        lab = self.lab
        columns = ("index", "verdict", "faster with it alone", "slower without it", "size", "inserts")
        rows = [
            (
                Cell(index.name, f"{index.table}: {index.definition.partition(' USING ')[2]}"),
                _verdict(lab, index),
                _factors(index.faster),
                _factors(index.missed),
                Cell(units.size(index.bytes), f"{_share(index)} of {index.table}"),
                _latency(index, "insert"),
            )
            for index in sorted(lab.index_values, key=lambda index: (not index.kept, -index.bytes))
        ]
        if lab.queries:
            return Table("What each index is worth", columns, tuple(rows), frozenset(columns[4:]), note=_NOTE)
        costs = tuple((row[0], *row[4:]) for row in rows)
        return Table("What each index costs", (columns[0], *columns[4:]), costs, frozenset(columns[4:]), note=_NOTE)

    @property
    def picture(self) -> Block:
        """Return a chart with a point for each index, and the same figures in words."""
        from perfkit.show.charts import draw_svg  # matplotlib takes a second to import

        index_values = [index for index in self.lab.index_values if index.alone]
        if not index_values:
            return Block("", "")
        finding = "; ".join(f"{w.name}: ×{units.significant(_gain(w))} for {units.size(w.bytes)}" for w in index_values)
        svg = draw_svg("gain-against-cost", "Gain against cost", finding, lambda ax: _draw(ax, index_values))
        html = f'<p class="note">{escape(CAPTION)}</p><div class="gallery"><figure>{svg}</figure></div>'
        return Block(html, f"{CAPTION}\n{finding}")

    @property
    def statements(self) -> Block:
        """Return the SQL of the recommended set, of its rollback, and of the removal of the other indexes."""
        lab = self.lab
        if not lab.confirmed:
            return Block("", "")
        parts = {
            "Keep": "\n".join(f"{w.sql};" for w in lab.kept),
            "Roll back the kept indexes": "\n".join(f"{w.drop};" for w in reversed(lab.kept)),
            "Remove the others": "\n".join(f"{w.drop};" for w in lab.dropped),
            "The advised set, for comparison": lab.record.advised.strip(),
        }
        html = "".join(f"<h4>{escape(title)}</h4>{code(sql, name=title)}" for title, sql in parts.items() if sql)
        return Block(html, "\n\n".join(f"-- {title}\n{sql}" for title, sql in parts.items() if sql))

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
    def costs(self) -> Block:
        """Return what each index costs writes: in latency, and in WAL and HOT updates as the server counted them."""
        tables = (_latencies(self.lab), _counted(self.lab))
        return Block("".join(table.to_html() for table in tables), "\n\n".join(table.to_text() for table in tables))

    @property
    def scans(self) -> Table:
        """Return how often each index was scanned with all indexes present, and what the catalogue says of it."""
        scans, rows = self.lab.scans, []
        for index in self.lab.index_values:
            remarks = "; ".join(r.text for r in self.lab.record.remarks if r.index == index.name)
            counted = Cell(units.count(scans[index.name]), "", "" if scans[index.name] else "unsure")
            rows.append((Cell(index.name), counted, Cell(remarks or units.NONE)))
        missing = (r for r in self.lab.record.remarks if r.kind == "missing")
        rows += [(Cell(r.table), Cell(units.NONE), Cell(r.text)) for r in missing]
        note = (
            "Counted by the server on the arm with all indexes. An index that is scanned is not necessarily an index "
            "that is needed."
        )
        columns = ("index", "scans", "from the catalogue")
        return Table("Scans with all indexes present", columns, tuple(rows), frozenset({"scans"}), note=note)

    @property
    def details(self) -> Block:
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
        html = "".join(folded(table.caption, table.to_html()) for table in tables if table.rows)
        return Block(html, "\n\n".join(table.to_text() for table in tables if table.rows))

    @property
    def claims(self) -> Table:
        """Return the claims made beforehand beside the measurements."""
        return claims_table(judged(self.lab), "What was claimed, and what was measured")

    @property
    def summary(self) -> dict[str, Any]:
        """Return the lab's part of a report on a change, as JSON values."""
        table = self.verdicts
        return {
            "sentence": sentence(self.lab),
            "columns": list(table.columns),
            "rows": [[[cell.text, cell.note, cell.state] for cell in row] for row in table.rows],
            "claims": [asdict(claim) for claim in judged(self.lab) if claim.measure == LAB],
            "command": self.lab.record.command,
        }

    @property
    def reproduce(self) -> Block:
        """Return the command that measures the lab again."""
        command = self.lab.record.command or "# measured from a notebook or a program"
        files = "In the same folder: lab.json, and a folder with the bundle of each run."
        return Block(f"{code(command, name='command')}<p>{escape(files)}</p>", f"{command}\n{files}")

    def __repr__(self) -> str:
        return f"{self.lab.record.title}: index lab, {self.lab.record.status}, in {self.lab.folder}"


def _verdict(lab: Lab, index: IndexValue) -> Cell:
    if not lab.confirmed:
        return Cell(units.NONE, "not tested", "quiet")
    return Cell("keep" if index.kept else "remove", reason(lab, index), "good" if index.kept else "unsure")


def _latencies(lab: Lab) -> Table:
    columns = ("index", "insert", "update of its column", "update of another column", "delete", "build")
    rows = tuple(
        (
            Cell(index.name, f"{units.size(index.bytes)} on {index.table}"),
            _latency(index, "insert"),
            _latency(index, "update"),
            _latency(index, "update", own=False),
            _latency(index, "delete"),
            Cell(units.seconds(index.seconds), "measured once", "quiet"),
        )
        for index in lab.index_values
    )
    note = "Ratio of medians under load, with only this index to no index: ×1.05 is 5 % slower."
    return Table("Latency of writes", columns, rows, frozenset(columns[1:]), note=note)


def _counted(lab: Lab) -> Table:
    columns = ("index", "WAL to build", "WAL per insert", "expected", "HOT updates of its column", "after churn")
    rows = tuple(
        (
            Cell(index.name),
            Cell(units.size(index.wal_bytes)),
            _wal(index),
            Cell(units.NONE if index.overhead is None else f"+{units.percent(index.overhead)}"),
            _hot(index),
            _churn(index),
        )
        for index in lab.index_values
    )
    note = (
        "Counted once by the server, with only this index and with none. WAL excludes the full-page images that follow "
        "a checkpoint. Expected: bytes that an insert adds to the index, as a share of the bytes it adds to the table "
        "(pganalyze's formula). HOT: updates that change no index. Churn: 5 % of the rows get a new value in the "
        "index's column, three times, each time followed by VACUUM."
    )
    return Table("WAL, HOT updates and growth", columns, rows, frozenset(columns[1:]), note=note)


def _matrix(caption: str, comparisons: Mapping[str, Sequence[Comparison]], queries: Sequence[str], note: str) -> Table:
    """Return a row for each set of indexes that was compared, with a column for each query."""
    by_set = {name: _by_query(compared_queries) for name, compared_queries in comparisons.items() if compared_queries}
    rows = tuple((Cell(name), *(compared(by_query.get(q)) for q in queries)) for name, by_query in by_set.items())
    return Table(caption, ("index", *queries), rows, note=note)


def _by_query(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    return {c.item: c for c in comparisons}


def _share(index: IndexValue) -> str:
    return units.percent(index.bytes / index.table_bytes) if index.table_bytes else units.NONE


def _factors(comparisons: Sequence[Comparison]) -> Cell:
    """Return by which factor each query is faster or slower."""
    ratios = [(c.item, c.ratio.value) for c in comparisons if c.ratio]
    factors = [f"{item} {units.significant(max(ratio, 1 / ratio))}×" for item, ratio in ratios]
    return Cell("; ".join(factors) or units.NONE, "", "" if factors else "quiet")


def _latency(index: IndexValue, kind: str, *, own: bool = True) -> Cell:
    cost = index.write(kind, own=own)
    if cost is None:
        return Cell(units.NONE, "", "quiet")
    cell = compared(cost.latency)
    note = f"{cell.note} {cost.write.column}".strip()
    return Cell(cell.text, note, cell.state if cost.latency.verdict is not Verdict.INCONCLUSIVE else "quiet")


def _wal(index: IndexValue) -> Cell:
    cost = index.write("insert")
    if cost is None or cost.wal is None:
        return Cell(units.NONE, "", "quiet")
    without_index, with_index = cost.wal
    share = f", +{units.percent(with_index / without_index - 1)}" if without_index else ""
    return Cell(f"+{units.count(with_index - without_index)} B", f"of {units.count(without_index)} B{share}")


def _hot(index: IndexValue) -> Cell:
    cost = index.write("update")
    if cost is None or cost.hot is None:
        return Cell(units.NONE, "", "quiet")
    before, after = (f"{100 * share:.0f} %" for share in cost.hot)
    return Cell(f"{before} → {after}", cost.write.column, "bad" if cost.hot[1] < cost.hot[0] - 0.1 else "")


def _churn(index: IndexValue) -> Cell:
    if index.churn is None:
        return Cell(units.NONE, "", "quiet")
    before, after = index.churn.before, index.churn.after
    return Cell(f"×{units.significant(after / before)}", f"{units.size(before)} → {units.size(after)}")


def _gain(index: IndexValue) -> float:
    """Return the largest speed-up of any query, at least 1."""
    return max([1.0, *(1 / c.ratio.value for c in index.alone if c.ratio)])


def _draw(ax: Axes, index_values: Sequence[IndexValue]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # as above

    sizes, gains = [w.bytes / 1024 / 1024 for w in index_values], [_gain(w) for w in index_values]
    top = max(*gains, 2.0) ** 1.25
    ax.set_yscale("log")
    ax.set_ylim(min(0.9, 1 / top**0.06), top)
    ax.set_xlim(-0.03 * max(sizes), 1.5 * max(sizes))
    heights = _spread_labels([math.log(g) for g in gains], 0.1 * math.log(top))
    for index, size, gain, height in zip(index_values, sizes, gains, heights, strict=True):
        colour = KEPT if index.kept else DROPPED
        ax.plot([size], [gain], "o", color=colour, markerfacecolor=colour if index.kept else "none", markersize=7)
        name = index.name.replace("$", r"\$")
        side, shift = ("right", -0.03) if size > 0.6 * max(sizes) else ("left", 0.03)
        at = (size + shift * max(sizes), math.exp(height))
        ax.annotate(name, (size, gain), at, color=colour, ha=side, va="center", fontsize=8)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("size, MB")


def _spread_labels(heights: Sequence[float], distance: float) -> list[float]:
    """Return the heights, some of them raised so that all are at least `distance` apart."""
    spread: dict[int, float] = {}
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        spread[index] = max(heights[index], max(spread.values(), default=-math.inf) + distance)
    return [spread[index] for index in range(len(heights))]

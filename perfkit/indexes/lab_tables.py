"""Tables and sentences of an index lab, for its notebook and its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfkit.analysis.claims import LAB, claims_table
from perfkit.analysis.results import Comparison
from perfkit.analysis.tables import compared
from perfkit.base import units
from perfkit.base.bundle import write_atomically
from perfkit.base.judgement import Verdict
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


def answer(lab: Lab) -> Block:
    """Return the lab's result as one sentence, with what was measured."""
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
    """Return one row for each index: keep or remove, the reason, its gain and its cost."""
    columns = ("index", "verdict", "faster with it alone", "slower without it", "size", "inserts")
    rows = tuple(
        (
            Cell(index.name, f"{index.table}: {index.definition.partition(' USING ')[2]}"),
            Cell("keep", reason(lab, index), "good") if index.kept else Cell("remove", reason(lab, index), "unsure"),
            _factors(index.faster),
            _factors(index.missed),
            Cell(units.size(index.bytes), f"{_share(index)} of {index.table}"),
            _latency(index, "insert"),
        )
        for index in sorted(lab.index_values, key=lambda index: (not index.kept, -index.bytes))
    )
    if not lab.queries:
        few = tuple((row[0], *row[4:]) for row in rows)
        return Table("What each index costs", (columns[0], *columns[4:]), few, frozenset(columns[4:]), note=_NOTE)
    if not lab.confirmed:
        rows = tuple((row[0], Cell(units.NONE, "not tested", "quiet"), *row[2:]) for row in rows)
    return Table("What each index is worth", columns, rows, frozenset(columns[4:]), note=_NOTE)


def costs(lab: Lab) -> Block:
    """Return what each index costs writes: in latency, and in WAL and HOT updates as the server counted them."""
    tables = (_latencies(lab), _counted(lab))
    return Block("".join(table.to_html() for table in tables), "\n\n".join(table.to_text() for table in tables))


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


def alone(lab: Lab) -> Table:
    """Return every query with each index alone, compared with no index."""
    note = "Ratio of medians under load; ×0.10 is a tenth of the time."
    return _matrix(lab, "Each index alone, compared with no index", lambda w: w.alone, lab.whole, "all", note)


def without(lab: Lab) -> Table:
    """Return every query without each index, compared with all indexes."""
    note = "Ratio of medians under load; ×2.00 is twice the time."
    return _matrix(lab, "All indexes but one, compared with all", lambda w: w.without, (), "", note)


def confirmation(lab: Lab) -> Table:
    """Return the chosen set in rounds that the search did not use, and the set without each of its indexes."""
    needed = {name: comparisons for name, comparisons in lab.needs.items() if comparisons}
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
        f"{blocks} blocks that the search did not use. Kept / all is proven if its whole interval is at most "
        f"×{units.significant(1 + lab.margin)}."
    )
    if lab.advised:
        size, whole = sum(i["bytes"] for i in lab.advised_indexes), sum(w.bytes for w in lab.index_values)
        note += f" The advised indexes take {units.size(size)}, {units.percent(size / whole)} of all."
    return Table("Confirmation by separate rounds", columns, (*rows, *changes), frozenset(), note=note)


def scans(lab: Lab) -> Table:
    """Return how often each index was scanned with all indexes present, and what the catalogue says of it."""
    remarks: Mapping[str, Sequence[str]] = {}
    for remark in lab.record.get("remarks", ()):
        remarks = {**remarks, remark["index"]: [*remarks.get(remark["index"], ()), remark["text"]]}
    rows = tuple(
        (
            Cell(w.name),
            Cell(units.count(lab.scans.get(w.name, 0)), "", "" if lab.scans.get(w.name) else "unsure"),
            Cell("; ".join(remarks.get(w.name, ())) or units.NONE),
        )
        for w in lab.index_values
    )
    missing = tuple(
        (Cell(r["table"]), Cell(units.NONE), Cell(r["text"]))
        for r in lab.record.get("remarks", ())
        if r["kind"] == "missing"
    )
    note = (
        "Counted by the server on the arm with all indexes. An index that is scanned is not necessarily an index that "
        "is needed."
    )
    return Table(
        "Scans with all indexes present",
        ("index", "scans", "from the catalogue"),
        (*rows, *missing),
        frozenset({"scans"}),
        note=note,
    )


def statements(lab: Lab) -> Block:
    """Return the SQL of the recommended set, of its rollback, and of the removal of the other indexes."""
    if not lab.confirmed:
        return Block("", "")
    parts = {
        "Keep": "\n".join(f"{w.sql};" for w in lab.kept),
        "Roll back the kept indexes": "\n".join(f"{w.drop};" for w in reversed(lab.kept)),
        "Remove the others": "\n".join(f"{w.drop};" for w in lab.dropped),
        "The advised set, for comparison": str(lab.record.get("advised", "")).strip(),
    }
    html = "".join(f"<h4>{escape(title)}</h4>{code(sql, name=title)}" for title, sql in parts.items() if sql)
    return Block(html, "\n\n".join(f"-- {title}\n{sql}" for title, sql in parts.items() if sql))


def claims(lab: Lab) -> Table:
    """Return the claims made beforehand beside the measurements."""
    return claims_table(judged(lab), "What was claimed, and what was measured")


def limitations(lab: Lab) -> Block:
    """Return the caveats as a list."""
    lines = list(caveats(lab))
    return Block(listed(lines, "weak"), "\n".join(f"- {line}" for line in lines))


def details(lab: Lab) -> Block:
    """Return every index and query, folded."""
    tables = (alone(lab), without(lab))
    html = "".join(folded(table.caption, table.to_html()) for table in tables if table.rows)
    return Block(html, "\n\n".join(table.to_text() for table in tables if table.rows))


def summary(lab: Lab) -> dict[str, Any]:
    """Return the lab's part of a report on a change, as JSON values."""
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
    rows = [
        (Cell(w.name), *(compared(_by_query(of(w)).get(q)) for q in lab.queries)) for w in lab.index_values if of(w)
    ]
    if last and rows:
        rows.append((Cell(name), *(compared(_by_query(last).get(q)) for q in lab.queries)))
    return Table(caption, ("index", *lab.queries), tuple(rows), frozenset(), note=note)


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
    note = f"{cell.note} {cost.column}".strip()
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
    return Cell(f"{before} → {after}", cost.column, "bad" if cost.hot[1] < cost.hot[0] - 0.1 else "")


def _churn(index: IndexValue) -> Cell:
    if index.churn is None:
        return Cell(units.NONE, "", "quiet")
    before, after = index.churn
    return Cell(f"×{units.significant(after / before)}", f"{units.size(before)} → {units.size(after)}")


def gain_against_cost(lab: Lab) -> Block:
    """Return a chart with a point for each index, and the same figures in words."""
    from perfkit.show.charts import draw_svg  # matplotlib takes a second to import

    index_values = [index for index in lab.index_values if index.alone]
    if not index_values:
        return Block("", "")
    finding = "; ".join(f"{w.name}: ×{units.significant(_gain(w))} for {units.size(w.bytes)}" for w in index_values)
    svg = draw_svg("gain-against-cost", "Gain against cost", finding, lambda ax: _draw(ax, index_values))
    html = f'<p class="note">{escape(CAPTION)}</p><div class="gallery"><figure>{svg}</figure></div>'
    return Block(html, f"{CAPTION}\n{finding}")


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


class IndexLab(OpenedPage):
    """A finished or stopped lab, read from its folder; every property displays itself in a notebook or as text."""

    def __init__(self, folder: Path) -> None:
        """Read a lab's folder. Raises BundleError where a file is damaged or missing."""
        self.lab: Lab = read(folder)

    def render(self) -> Path:
        """Write index_lab.html, keep.sql and remove.sql; return the path of the page. Raises BundleError."""
        lab = self.lab
        if lab.confirmed:
            write_atomically(lab.folder / "keep.sql", "".join(f"{w.sql};\n" for w in lab.kept))
            write_atomically(lab.folder / "remove.sql", "".join(f"{w.drop};\n" for w in lab.dropped))
        page, title = lab.folder / "index_lab.html", f"Index lab: {lab.title}"
        return render.page_of(render.LAB, {"bundle": str(lab.folder.resolve())}, page, title)

    @property
    def answer(self) -> Block:
        """Return the lab's result as one sentence."""
        return answer(self.lab)

    @property
    def weaknesses(self) -> Block:
        """Return what limits the result."""
        return limitations(self.lab)

    @property
    def verdicts(self) -> Table:
        """Return the verdict on each index."""
        return verdicts(self.lab)

    @property
    def picture(self) -> Block:
        """Return the chart of gain against size."""
        return gain_against_cost(self.lab)

    @property
    def statements(self) -> Block:
        """Return SQL to copy."""
        return statements(self.lab)

    @property
    def confirmation(self) -> Table:
        """Return the chosen set as the separate rounds measured it."""
        return confirmation(self.lab)

    @property
    def costs(self) -> Block:
        """Return what each index costs writes."""
        return costs(self.lab)

    @property
    def scans(self) -> Table:
        """Return how often each index was used, and what the catalogue says of it."""
        return scans(self.lab)

    @property
    def details(self) -> Block:
        """Return every index and query, folded."""
        return details(self.lab)

    @property
    def claims(self) -> Table:
        """Return the claims beside the measurements."""
        return claims(self.lab)

    @property
    def reproduce(self) -> Block:
        """Return the command that measures the lab again."""
        command = str(self.lab.record["command"]) or "# measured from a notebook or a program"
        files = "In the same folder: lab.json, and a folder with the bundle of each run."
        return Block(f"{code(command, name='command')}<p>{escape(files)}</p>", f"{command}\n{files}")

    def __repr__(self) -> str:
        return f"{self.lab.title}: index lab, {self.lab.record['status']}, in {self.lab.folder}"

"""Parts of a page: one description, shown as HTML, as text and as a data frame, and never as markup of others."""

import ast
import re
import subprocess
import sys

import pytest

from perfkit.base import units
from perfkit.base.resources import CHECKOUT
from perfkit.base.stats import Interval
from perfkit.show.charts import Picture
from perfkit.show.html import (
    Banner,
    Bullets,
    Cell,
    Code,
    Column,
    Folded,
    Inline,
    Paragraph,
    Part,
    Section,
    Table,
    Terms,
    marked,
    number,
    page,
    stacked,
)

HOSTILE = "<script>alert(1)</script>\"' onclick=x \x1b[31m\u202e`|*\u200b"

PARTS = {
    "line": Paragraph([HOSTILE, Inline(HOSTILE, "b", "bad"), Inline(HOSTILE, "a")], "note"),
    "code": Code(HOSTILE, HOSTILE),
    "bullets": Bullets([HOSTILE, [Inline(HOSTILE, "em"), HOSTILE]], "weak"),
    "terms": Terms([(HOSTILE, HOSTILE)]),
    "section": Section([Paragraph(HOSTILE)], HOSTILE, kind="columns"),
    "folded": Folded(HOSTILE, [Code(HOSTILE)]),
    "banner": Banner("good", HOSTILE, HOSTILE, HOSTILE, [HOSTILE], HOSTILE, [Paragraph(HOSTILE)], "good"),
    "table": Table(
        HOSTILE,
        (HOSTILE, "b", "c", "d"),
        ((Cell(HOSTILE, HOSTILE), Cell(HOSTILE, code=True), Cell("x", full=HOSTILE, id="i"), Cell("y", share=0.5)),),
        grouped=True,
        note=HOSTILE,
    ),
    "empty table": Table(HOSTILE, (HOSTILE,), (), note=HOSTILE),
    "picture": Picture("x", HOSTILE, HOSTILE, lambda ax: ax.set_title(HOSTILE), HOSTILE, HOSTILE, True),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_text_of_a_part_becomes_markup_or_stays_invisible(part: Part) -> None:
    for html in (part._repr_html_(), page(HOSTILE, part)):
        assert "<script" not in html and "onclick=x \x1b" not in html
        assert not set(html) & set("\x1b\u202e\u200b")
        assert "&lt;script&gt;" in html
    assert not set(repr(part)) & set("\x1b\u202e\u200b")


def test_a_table_is_declared_once_for_html_text_markdown_and_frame() -> None:
    rows = [("a", Interval(1.0, 0.5, 2.0, 9, 3), 2048, True), ("b", None, None, False)]
    table = Table.of(
        "Levels",
        [
            Column("load", lambda row: Cell(f"load {row[0]}", value={"": row[0], "item": "q"}), key="scenario"),
            number("p50, ms", lambda row: row[1]),
            number("size", lambda row: row[2], units.size, key="size_bytes"),
            Column("held", lambda row: marked("good" if row[3] else "bad", "yes" if row[3] else "no")),
        ],
        rows,
        note="n",
    )
    assert table.columns == ("load", "p50, ms", "size", "held") and table.numeric == {"p50, ms", "size"}
    assert '<td class="n">1.00<small>' in table.html()
    assert table.text().splitlines()[4].split() == "load a 1.00 [0.500, 2.00] 2 kB ✓ yes".split()
    assert table.markdown().splitlines()[1] == "| --- | ---: | ---: | --- |"
    frame = table.frame
    assert list(frame) == ["scenario", "scenario_item", "p50_ms", "p50_ms_lo", "p50_ms_hi", "size_bytes", "held"]
    assert frame.dtypes.astype(str)[["p50_ms", "p50_ms_hi", "size_bytes"]].tolist() == ["float64"] * 3
    assert frame.loc[0, "p50_ms_lo"] == 0.5 and frame["size_bytes"].isna().tolist() == [False, True]


def test_an_empty_table_has_the_columns_of_its_frame() -> None:
    assert list(Table.of("t", [number("p50, ms", lambda row: row)], list[float]()).frame) == ["p50_ms"]


def test_text_has_every_part_once_and_folded_ones_open() -> None:
    parts = stacked(
        Section([Code("SELECT 1;")], "The set"),
        Folded("more", [Paragraph("inside")]),
        Folded("left out", [Paragraph("unseen")], in_text=False),
        None,
        Bullets(["one", [Inline("two", "b"), " three"]]),
    )
    assert parts.text() == "The set:\n  SELECT 1;\n\nmore\n\ninside\n\n- one\n- two three"
    assert parts.html().count("<details>") == 2 and "unseen" in parts.html()


@pytest.mark.process
def test_text_and_tables_import_no_template_engine_pandas_or_matplotlib() -> None:
    code = (
        "import sys; from perfkit.show.html import Table, Cell;"
        "print(Table('t', ('a',), ((Cell('1'),),)).text());"
        "print(sorted({'jinja2', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_only_show_writes_html() -> None:
    """Every other room describes its output with parts or with a template."""
    tag = re.compile(
        r"</?(p|div|span|table|tr|td|th|h[1-6]|ul|li|dl|details|summary|strong|small|svg|figure|section)\b[^>]*>"
    )
    written = [
        f"{path}:{node.lineno}"
        for path in (CHECKOUT / "perfkit").rglob("*.py")
        if path.parent.name != "show" and "_data" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and tag.search(node.value)
    ]
    assert written == []

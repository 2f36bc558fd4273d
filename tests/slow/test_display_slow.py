"""Slow statements and what runs now, as a notebook and a terminal show them."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.slow.activity import Activity, Running, tree
from perfkit.slow.statements import Example, SlowQueries, SlowStatement
from perfkit.slow.tables import ActivityView, SlowView, one_line, shares

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOSTILE = "SELECT '</pre></title><script>alert(1)</script>' \x1b[31m \u202e \"' onmouseover=x\x00"


class Tags(HTMLParser):
    """What a browser would make of it: the elements, their attributes, and whether all are closed in order."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def statement(number: int, total_ms: float, *, text: str = "", **known: object) -> SlowStatement:
    return SlowStatement(f"id{number}", text or f"SELECT {number} FROM visits", 100, total_ms, **known)  # type: ignore[arg-type]


def queries(*totals: float, **told: object) -> SlowQueries:
    found = tuple(statement(n, total) for n, total in enumerate(totals, 1))
    return SlowQueries("the log server.json", found, **told)  # type: ignore[arg-type]


def headings(html: str) -> list[str]:
    return re.findall(r'<th scope="col"[^>]*>(.*?)</th>', html)


# slow statements


def test_each_statement_has_its_calls_mean_total_and_share() -> None:
    html = SlowView(queries(7500, 2000, 500)).html()
    assert headings(html) == ["", "statement", "calls", "mean, ms", "total, s", "share"]
    (first,) = re.findall(r"<tr>(<th scope=\"row\">1</th>.*?)</tr>", html)
    assert [">100<" in first, ">75.0<" in first, ">7.50<" in first, ">75 %<" in first] == [True] * 4
    assert '--p:0.75"' in first  # as long as it is large


def test_what_is_known_of_none_has_no_column_and_what_is_known_of_one_has() -> None:
    known = {"p95_ms": 12.5, "rows": 100, "buffers": 900_000, "temp_bytes": 100 * 1024 * 1024, "wal_bytes": 0}
    first = statement(1, 900.0, **known, first=NOON, last=NOON + timedelta(hours=1))
    html = SlowView(SlowQueries("log", (first, statement(2, 100.0)))).html()
    more = ["p95, ms", "total, ms", "share", "rows a call", "pages a call", "temporary a call", "WAL a call"]
    assert headings(html)[4:] == [*more, "first seen", "last seen"]
    rows = re.findall(r"<tr>(.*?)</tr>", html)[1:]
    assert ">9,000<" in rows[0] and ">1 MB<" in rows[0] and ">1.00<" in rows[0] and ">0 B<" in rows[0]
    assert "2026-03-01\N{NO-BREAK SPACE}13:00:00" in rows[0]
    assert rows[1].count(">–<") == 7


def test_a_statement_is_one_line_that_opens_to_all_of_it() -> None:
    text = "SELECT *\n  FROM visits\n WHERE note = 'x'" + " OR note = 'y'" * 20
    html = SlowView(SlowQueries("log", (statement(1, 10.0, text=text),))).html()
    (summary,) = map(unescape, re.findall(r"<summary><code>(.*?)</code></summary>", html))
    assert summary.startswith("SELECT * FROM visits WHERE") and summary.endswith("…") and len(summary) == 80
    assert text in unescape(html) and "id id1" in html


def test_what_is_not_shown_is_counted_with_its_part_of_the_time() -> None:
    view = SlowView(queries(*[100.0] * 8, *[25.0] * 8), limit=8)
    assert "and 8 more, 20 % of the time" in view.html()
    assert "and 8 more, 20 % of the time" in view.text()
    assert "more" not in SlowView(queries(100.0)).text()


def test_source_window_notes_and_what_could_not_be_read_are_said() -> None:
    found = queries(
        2000.0,
        since=NOON,
        until=NOON + timedelta(seconds=90),
        unread={"entries were cut off": 1, "lines were not recognised as log entries": 1200, "texts were lost": 0},
        notes=("only statements of 100 ms and more were logged",),
    )
    for shown in (SlowView(found).html(), SlowView(found).text()):
        shown = shown.replace("\N{NO-BREAK SPACE}", " ")
        assert "the log server.json" in shown
        assert "2026-03-01 12:00:00 UTC to 2026-03-01 12:01:30 UTC (90 s)" in shown
        assert "1 entry was cut off; 1,200 lines were not recognised as log entries." in " ".join(shown.split())
        assert "only statements of 100 ms and more were logged" in shown


def test_nothing_found_says_so_in_words() -> None:
    view = SlowView(SlowQueries("pg_stat_statements of here", ()))
    assert "none" in view.html() and "shares" not in view.html()
    assert repr(view).splitlines()[-1] == "none"


def test_the_picture_divides_the_time_and_says_so_in_words_too() -> None:
    bar = shares(queries(600, 300, *[2.0] * 50))
    assert bar
    html = bar.html()
    widths = [float(width) for width in re.findall(r'<span style="width:([\d.]+)%"', html)]
    assert len(widths) == 9  # eight statements and the others
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    assert sum(widths) == pytest.approx(100, abs=0.1)
    (said,) = re.findall(r'role="img" aria-label="(.*?)"', html)
    assert said == (
        "Share of the total time by statement: 1 60 %, 2 30 %, "
        + "".join(f"{n} 0.2 %, " for n in range(3, 9))
        + "others 8.8 %"
    )
    assert 'title="1: 60 %, SELECT 1 FROM visits"' in html
    assert "</i>1: 60 %</span>" in html and "</i></span>" in html  # a label where there is room for it


def test_statements_that_took_no_time_have_no_picture_and_no_share() -> None:
    view = SlowView(queries(0.0, 0.0))
    assert shares(view.slow) is None and "0 %" in view.text()


def test_hostile_text_stays_text() -> None:
    example = Example(HOSTILE, (HOSTILE,))
    found = SlowQueries(
        HOSTILE, (statement(1, 1.0, text=HOSTILE, example=example),), unread={HOSTILE: 1}, notes=(HOSTILE,)
    )
    view = SlowView(found)
    tags = Tags(view._repr_html_())
    assert "script" not in tags.seen and not [name for name in tags.attributes if name.startswith("on")]
    for shown in (view._repr_html_(), repr(view)):
        assert not set(shown) & set("\x1b\x00\u202e")


def test_a_statement_of_megabytes_is_not_shown_in_full() -> None:
    view = SlowView(SlowQueries("log", (statement(1, 1.0, text="INSERT INTO v VALUES " + "(1)," * 2_000_000),)))
    assert len(view.html()) < 60_000 and "more characters" in view.html()


@given(st.lists(st.tuples(st.text(), st.floats(0, 1e9)), max_size=30), st.integers(1, 20), st.text())
def test_text_fits_a_hundred_columns(told: list[tuple[str, float]], limit: int, said: str) -> None:
    statements = tuple(SlowStatement("1", text, 10**9, ms, ms) for text, ms in sorted(told, key=lambda pair: -pair[1]))
    view = SlowView(SlowQueries(said, statements, NOON, NOON, {said: 3}, (said * 20,)), limit)
    assert max(map(len, repr(view).split("\n"))) <= 100
    Tags(view.html())


@given(st.text(), st.integers(2, 50))
def test_one_line_is_one_line_and_short(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most and not set(line) & set("\n\r\t\x1b\u2028")


# what runs now


def session(key: str, *blockers: str, seconds: float = 1.0, state: str = "active", **known: object) -> Running:
    told = {"user": "app", "database": "clinic", "application": "web", "client": "", "kind": "client backend"}
    told |= {"wait": "Lock: transactionid" if blockers else "", "id": "7", "text": f"UPDATE visits SET n = {key}"}
    return Running(key=key, state=state, seconds=seconds, transaction_s=seconds, blocked_by=blockers, **told | known)  # type: ignore[arg-type]


def activity(*running: Running, **told: object) -> ActivityView:
    return ActivityView(Activity("activity in clinic", NOON, running, tree(running), **told))  # type: ignore[arg-type]


QUEUE = (
    session("11", state="idle in transaction", seconds=75.0),
    session("12", "11", seconds=60.0),
    session("13", "12", seconds=5.0),
)


def test_who_waits_stands_below_the_one_that_it_waits_for() -> None:
    view = activity(*QUEUE, session("20", seconds=0.5))
    lines = view.text().split("\n")
    found = [line.split()[:2] for line in lines if "UPDATE" in line]
    assert found[:3] == [["11", "–"], ["└─", "12"], ["└──", "13"]]
    assert "3 blocked" not in view.text() and "4 active sessions, 2 blocked" in view.text()
    html = view.html()
    assert re.findall(r'<th scope="row">(.*?)</th>', html)[:3] == ["11", "└─ 12", "└── 13"]
    assert html.count("<caption>") == 2


def test_an_open_transaction_that_blocks_is_marked_with_its_last_statement_and_time() -> None:
    html = activity(*QUEUE).html()
    assert '<td class="unsure"><strong>idle in transaction</strong></td>' in html
    assert ">75 s<" in html and "UPDATE visits SET n = 11" in html
    assert '<td class="bad"><strong>Lock: transactionid</strong></td>' in html


def test_where_nobody_waits_there_is_no_tree() -> None:
    view = activity(session("1"))
    assert "1 active session, none blocked" in view.text()
    assert "Blocked sessions" not in view.html() and view.html().count("<caption>") == 1


def test_where_nothing_runs_it_says_so() -> None:
    (said,) = repr(activity()).replace("\N{NO-BREAK SPACE}", " ").split("\n")
    assert said == "activity in clinic, 2026-03-01 12:00:00 UTC: no active sessions"


def test_a_circle_is_called_a_deadlock() -> None:
    view = activity(session("1", "2", seconds=9.0), session("2", "1", seconds=1.0))
    assert "deadlock" in view.html() and "deadlock" in view.text()


def test_a_statement_that_may_not_be_seen_is_said_to_be_hidden() -> None:
    view = activity(session("1", text="", hidden=True, state="active"), hidden=1, notes=("1 statement hidden",))
    assert "hidden from this role" in view.html() and "hidden from this role" in view.text()
    assert "1 statement hidden" in view.html() and "1 statement hidden" in view.text()


def test_a_long_queue_is_cut_and_counted() -> None:
    queue = [session("0"), *(session(str(n), str(n - 1)) for n in range(1, 1000))]
    view = activity(*queue)
    assert "and 950 more blocked sessions" in view.html() and "and 950 more active sessions" in view.text()
    assert max(map(len, repr(view).split("\n"))) <= 100


def test_hostile_names_stay_text() -> None:
    known = dict.fromkeys(("user", "application", "client", "kind", "wait", "text", "id"), HOSTILE)
    view = activity(session(HOSTILE, "2", **known), session("2", HOSTILE, state=HOSTILE))
    tags = Tags(view._repr_html_())
    assert "script" not in tags.seen and not [name for name in tags.attributes if name.startswith("on")]
    for shown in (view._repr_html_(), repr(view)):
        assert not set(shown) & set("\x1b\x00\u202e")
    assert max(map(len, repr(view).split("\n"))) <= 100

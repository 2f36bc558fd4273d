"""The page of a decision in a real browser: it requests nothing, fits screen, phone and paper, and can be signed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import browser, needs_browser
from synthetic import make_run

from perfkit import config
from perfkit.app import api

pytestmark = [pytest.mark.system, needs_browser]

LONG, MANY = "x" * 400, "words that ask " * 10
HOSTILE = "Ready</td><script>alert(1)</script><img src=http://127.0.0.1:9/x>\u202e"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("gate") / "run")
    release = config.load().release.model_dump(mode="json")
    release["question"].append({"name": HOSTILE, "answer": "", "by": HOSTILE, "on": HOSTILE})
    release["sign_off"].append(HOSTILE)
    release["sign_off"].append(MANY)
    release["question"].append({"name": MANY})
    run.run.config.release = config.Release.model_validate(release)
    run.update(title=HOSTILE + LONG)
    return api.decide(run.path).render()


def test_it_requests_nothing_and_complains_about_nothing(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        tab.open(page.as_uri())
        assert tab.requests() == [page.as_uri()]
        assert tab.complaints() == []
        assert tab.evaluate("document.scripts.length + document.images.length") == 0
        assert "⟨202E⟩" in tab.evaluate("document.title")


@pytest.mark.parametrize(
    ("width", "dark", "media"),
    [(1200, False, "screen"), (1200, True, "screen"), (390, False, "screen"), (703, False, "print")],
)
def test_it_fits_its_medium(page: Path, tmp_path: Path, width: int, dark: bool, media: str) -> None:
    with browser(tmp_path) as tab:
        tab.open(page.as_uri(), width=width, dark=dark, media=media)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        red = int(re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red < 64 if dark else red > 240


def test_no_text_runs_into_the_next_cell(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        tab.open(page.as_uri(), width=1200)
        assert not tab.evaluate(
            "[...document.querySelectorAll('th, td')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        )


def test_everybody_who_signs_has_a_line_with_room_on_paper(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        tab.open(page.as_uri(), width=703, media="print")
        lines = "[...document.querySelectorAll('.sign tbody tr')].map(r => r.getBoundingClientRect().height)"
        heights = tab.evaluate(lines)
        assert len(heights) == 6 and min(heights) >= 30
        assert tab.evaluate("getComputedStyle(document.querySelector('.sign')).breakInside") == "avoid"
        assert len(tab.pdf()) > 20_000


def test_every_table_has_a_caption_or_column_heads_and_rows_are_named(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        tab.open(page.as_uri())
        tables = "[...document.querySelectorAll('table')]"
        assert tab.evaluate(f"{tables}.every(t => t.querySelector('thead th[scope=col]'))")
        assert tab.evaluate(f"{tables}.every(t => t.querySelector('tbody th[scope]'))")

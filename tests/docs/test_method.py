"""docs/method.md is what its command writes, and says what the code says."""

import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from scipy import stats as scipy_stats

from benchmarks.method import document, pictures, simulation
from benchmarks.method.simulation import LOCK, Share, closed_model, open_model
from perfkit.app.cli import main
from perfkit.base.errors import UsageError
from perfkit.base.judgement import Verdict
from perfkit.base.resources import CHECKOUT
from perfkit.base.stats import MIN_SAMPLES

DOCS = CHECKOUT / "docs"
PAGE = (DOCS / "method.md").read_text(encoding="utf-8")


def written() -> tuple[int, int]:
    """The repetitions and the seed that the page says it was written with."""
    found = re.search(r"`perfkit method --repetitions (\d+) --seed (\d+)`", PAGE)
    assert found
    return int(found[1]), int(found[2])


def part(name: str) -> str:
    return PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def table(name: str) -> list[list[str]]:
    """The rows of a generated table, without its head."""
    lines = [line for line in part(name).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def copy(tmp_path):
    shutil.copy(DOCS / "method.md", tmp_path)
    return tmp_path


def ran(folder: Path, *options: str) -> dict[str, bytes]:
    done = CliRunner().invoke(main, ["method", "--folder", str(folder), *options])
    assert done.exit_code == 0, done.output
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_page_and_its_pictures_are_what_the_command_writes(copy):
    repetitions, seed = written()
    found = ran(copy, "--repetitions", str(repetitions), "--seed", str(seed))
    assert found == {"method.md": PAGE.encode()} | {p.name: p.read_bytes() for p in (DOCS / "method").iterdir()}


def test_what_needs_no_repetitions_is_what_the_command_writes():
    assert part("lock") == document.lock()
    for name in ("request", "lock", "drift", "verdicts"):
        assert (DOCS / "method" / f"{name}.svg").read_text(encoding="utf-8") == getattr(pictures, name)(), name


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_again_and_leaves_the_words_alone(copy):
    once = ran(copy, "--repetitions", "100", "--seed", "5")
    assert ran(copy, "--repetitions", "100", "--seed", "5") == once
    generated = r"<!-- (\w+) -->.*?<!-- /\1 -->"
    assert re.sub(generated, "", once["method.md"].decode(), flags=re.DOTALL) == re.sub(
        generated, "", PAGE, flags=re.DOTALL
    )
    assert b"--repetitions 100 --seed 5" in once["method.md"]


def test_a_page_without_a_marker_is_an_error_and_stays_as_it_is(tmp_path):
    broken = PAGE.replace("<!-- /coverage -->", "")
    (tmp_path / "method.md").write_text(broken, encoding="utf-8")
    with pytest.raises(UsageError, match=r"method\.md: part coverage; expected <!-- coverage --> once"):
        document.write(tmp_path, 100, 1, print)
    assert (tmp_path / "method.md").read_text(encoding="utf-8") == broken


def test_a_folder_without_the_page_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"method\.md: cannot be read"):
        document.write(tmp_path, 100, 1, print)


def test_every_picture_has_words_for_those_who_cannot_see_it():
    shown = re.findall(r"!\[([^\]]+)\]\(method/([a-z]+\.svg)\)", PAGE)
    assert sorted(name for _, name in shown) == sorted(path.name for path in (DOCS / "method").iterdir())
    for words, name in shown:
        root = ElementTree.parse(DOCS / "method" / name).getroot()
        title, described = (root.find(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc"))
        assert len(words) > 30 and title is not None and described is not None
        assert title.text and described.text and len(described.text) > 60
        assert root.get("role") == "img"


def test_the_verdicts_explained_are_those_that_there_are_in_the_order_they_are_given():
    rows = re.findall(r"^\| (\w+) \|", PAGE.split("## What does each verdict mean?")[1].split("\n## ")[0], re.MULTILINE)
    assert rows == ["verdict", *("invalid", "equivalent", "faster", "slower", "inconclusive")]
    assert set(rows[1:]) == {str(v) for v in Verdict}


def test_the_examples_of_verdicts_are_what_the_statistics_say():
    section = PAGE.split("## What does each verdict mean?")[1]
    for given in pictures.EXAMPLES:
        found, verdict = pictures.example(*given)
        row = next(line for line in section.splitlines() if line.startswith(f"| {verdict} "))
        assert f"{found.value:.2f} ({found.lo:.2f} to {found.hi:.2f})" in row


def test_the_samples_that_a_percentile_needs_are_the_codes_own():
    assert ", ".join(f"{n} for the p{q}" for q, n in MIN_SAMPLES.items()) in PAGE


def test_the_power_table_is_what_theory_says():
    """Noncentral t, within the Monte Carlo error of a figure and its rounding: once in a thousand for one of them."""
    rows = table("power")
    assert len(rows) == len(simulation.CHANGES) * len(simulation.ROUND_SDS)
    for change, spread, *shares in rows:
        sd = float(spread.removesuffix(" %")) / 100 * math.sqrt(2)
        shift = math.log(1 + float(change.removesuffix(" %")) / 100) / sd
        for blocks, share in zip(simulation.BLOCKS, shares, strict=True):
            df = blocks - 1
            theory = scipy_stats.nct.sf(scipy_stats.t.isf(0.025, df), df, shift * math.sqrt(blocks))
            error = 4 * math.sqrt(theory * (1 - theory) / written()[0]) + 0.0051
            assert float(share.removesuffix(" %")) / 100 == pytest.approx(theory, abs=error), (change, spread, blocks)


def test_the_designs_table_shows_that_only_interleaved_rounds_keep_the_promise():
    (_, *sequential), (_, requests, rounds) = table("designs")
    claimed = [float(cell.split(" %")[0]) for cell in (*sequential, requests, rounds)]
    assert min(claimed[:3]) > 10
    assert claimed[3] == pytest.approx(5, abs=400 * math.sqrt(0.05 * 0.95 / written()[0]))


def test_what_the_rules_of_thumb_say_is_in_the_table_of_blocks():
    enough = {(change, spread): (alone, both) for change, spread, alone, both in table("blocks")}
    assert int(enough["+30 %", "10 %"][1]) <= 12
    assert int(enough["+30 %", "20 %"][1]) <= 24


def test_an_open_model_sees_a_lock_that_a_closed_one_does_not():
    closed, opened = closed_model(), open_model()
    assert sum(closed.took > 0.1) == simulation.USERS
    assert sum(opened.took > 0.1) == pytest.approx(0.9 * simulation.RATE, abs=1)
    for model in (closed, opened):
        answered = model.due + model.took
        assert not ((answered > LOCK[0]) & (answered < LOCK[1])).any()


@pytest.mark.parametrize(("hits", "runs"), [(0, 50), (1, 50), (47, 50), (50, 50)])
def test_the_monte_carlo_error_is_the_exact_binomial_interval(hits, runs):
    expected = scipy_stats.binomtest(hits, runs).proportion_ci(0.95)
    assert Share(hits, runs).interval() == pytest.approx((expected.low, expected.high))

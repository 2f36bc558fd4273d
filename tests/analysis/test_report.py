"""The report: one file that asks for nothing and runs nothing, the same bytes every time, for anybody."""

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import papermill
import pytest
from browser import assert_charts_have_words, browser, needs_browser
from synthetic import make_run

from perfkit.analysis.report import render
from perfkit.app import magics
from perfkit.base.errors import BundleError, PerfkitError, UsageError
from perfkit.base.resources import CHECKOUT
from perfkit.show.render import NOTEBOOK, execute

HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)><b onclick='alert(3)'>\x1b[31m\u202etxt]]>{{7*7}}$x$"
)
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, processes: None) -> Path:
    """The report of a healthy run."""
    folder = tmp_path_factory.mktemp("a run with spaces") / "run"
    make_run(folder)
    return render(folder)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, processes: None) -> Path:
    """The report of a run whose names, SQL, checks and errors try to become markup."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    make_run(folder, fail=HOSTILE, name=HOSTILE)
    return render(folder)


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_it_is_small_and_stands_alone(report: Path) -> None:
    text = report.read_text()
    assert len(text.encode()) < 700_000
    tags = _Tags(text).tags
    assert not {tag for tag, _ in tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "img",
        "base",
        "form",
    }
    addresses = [value for _, a in tags for key, value in a.items() if key in ("src", "href", "action") and value]
    assert addresses and not [a for a in addresses if re.match(r"(https?:)?//|javascript:", a)]


def test_the_policy_comes_before_everything_it_governs(report: Path) -> None:
    tags = _Tags(report.read_text()).tags
    names = [tag for tag, _ in tags]
    assert tags[0] == ("html", {"lang": "en"})
    policy = next(i for i, (_, a) in enumerate(tags) if a.get("http-equiv") == "Content-Security-Policy")
    assert tags[policy][1]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy < names.index("title") < names.index("style") < names.index("body")
    assert any(a.get("name") == "viewport" for _, a in tags)


def test_it_answers_in_the_agreed_order(report: Path) -> None:
    text = report.read_text()
    heads = re.findall(r"<h[12][^>]*>(?:<svg.*?</svg>)?(?:<span>)?([^<]*)", text, re.DOTALL)
    assert heads[0] == "GO"
    assert heads[1:] == [
        "Limitations",
        "Before and after, by load level",
        "Expected and measured",
        "Queries",
        "Cost of the indexes",
        "Distribution of response times",
        "Rounds over time",
        "Plans",
        "Errors",
        "Method and environment",
        "Reproduce this run",
    ]
    assert "perfkit report --profile quick --seed 1" in text
    assert "api.run" not in text and "In&nbsp;[" not in text


def test_every_chart_says_what_it_shows(report: Path) -> None:
    text = report.read_text()
    assert_charts_have_words(text, 10)
    assert "#010203" not in text


@pytest.mark.slow
def test_the_same_bundle_gives_the_same_bytes(report: Path, tmp_path: Path) -> None:
    again = render(report.parent, tmp_path / "again")
    for name in ("report.html", "verdict.json", "summary.md", "samples.csv"):
        assert (again.parent / name).read_bytes() == (report.parent / name).read_bytes(), name
    assert not list(report.parent.glob("*.ipynb")) and not list(report.parent.glob(".*"))


@pytest.mark.process
def test_a_cell_writes_the_report_of_its_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run").path
    source = (
        "from pathlib import Path\nfrom perfkit.runs.records import Bundle\nfrom perfkit.analysis.report import Run\n"
        f"Run(Bundle.open(Path({str(folder)!r}))).render()"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, tmp_path / "cell.ipynb")
    execute(tmp_path / "cell.ipynb", {})
    assert "GO" in (folder / "report.html").read_text()


def test_nothing_hostile_becomes_markup(hostile: Path) -> None:
    text = hostile.read_text()
    tags = _Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "img"}
    assert not [key for _, a in tags for key in a if key.startswith("on")]
    assert not set("\x1b\u202e") & set(text)
    assert "{{7*7}}" in text
    assert "\x1b" not in (hostile.parent / "summary.md").read_text()


def test_the_verdict_is_for_machines(report: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((report.parent / "verdict.json").read_text(), parse_constant=refuse)
    assert found["decision"] == "GO" and found["status"] == "complete"
    assert found["arms"] == {"after-index": "GO", "after-full": "GO"}
    burst = next(r for r in found["rules"] if (r["arm"], r["scenario"], r["name"]) == ("before", "burst", "p95"))
    assert burst["outcome"] == "broken" and burst["value"] > burst["limit"] == 500
    ratio = next(c for c in found["comparisons"] if (c["after"], c["scenario"]) == ("after-full", "burst"))["ratio"]
    assert ratio["lo"] < 0.075 < ratio["hi"]


def test_the_summary_can_be_pasted(report: Path) -> None:
    text = (report.parent / "summary.md").read_text()
    assert text.startswith("**GO** · ")
    assert "| 30 at once (burst) |" in text and "Limitations:" in text


def test_the_raw_data_has_a_line_per_request(report: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((report.parent / "samples.csv").read_text())))
    rounds = [json.loads(p.read_text()) for p in (report.parent / "rounds").glob("*.json")]
    assert len(rows) == sum(len(r["columns"]["item"]) for r in rounds)
    assert {row["outcome"] for row in rows} == {"ok"} and float(rows[0]["done_ms"]) > 0


@pytest.mark.process
def test_an_interrupted_run_is_rendered_and_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "run", blocks=2, status="interrupted")
    text = render(tmp_path / "run").read_text()
    assert "<span>UNFINISHED</span>" in text and "was interrupted" in text and ">GO<" not in text
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["decision"] != "GO"


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"run\.json: no such file"):
        render(tmp_path)
    make_run(tmp_path / "run", blocks=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be created"):
        render(tmp_path / "run", tmp_path / "file" / "out")


@pytest.mark.slow
def test_rendering_says_nothing_on_the_terminal(report: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from perfkit.analysis.report import render\n"
        "render(*map(Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(report.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_their_parameters_documented(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert not [c for c in cells if c.get("outputs") or c.get("execution_count")]
    assert len({c["id"] for c in cells}) == len(cells)
    found = papermill.inspect_notebook(str(notebook))
    assert found and all(p["inferred_type_name"] != "None" and p["help"] for p in found.values())


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"typo": 3}, "parameter 'typo' is unknown"),
        ({"seed": "abc"}, "parameter seed = 'abc'; expected int"),
        ({"rtt_ms": True}, "parameter rtt_ms = True; expected float"),
        ({"bundle": "/nowhere"}, "/nowhere/run.json: no such file"),
    ],
)
def test_a_wrong_parameter_stops_the_notebook_with_one_line(tmp_path: Path, given: dict, said: str) -> None:
    kept = tmp_path / "out.ipynb"
    with pytest.raises(PerfkitError, match=re.escape(said)):
        execute(NOTEBOOK, given, kept)
    errors = [
        o for c in json.loads(kept.read_text())["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"
    ]
    assert len(errors) == 1 and len(errors[0]["traceback"]) == 1 and "\n" not in errors[0]["traceback"][0]


@pytest.mark.process
@pytest.mark.parametrize("program", ["raise SystemExit(3)", "/nowhere/python"])
def test_a_kernel_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    argv = [program] if program.startswith("/") else [sys.executable, "-c", program]
    spec = {"argv": argv, "display_name": "dead", "language": "python"}
    monkeypatch.setattr("ipykernel.kernelspec.get_kernel_dict", lambda **_: spec)
    with pytest.raises(PerfkitError, match=r"^the report's notebook did not run: .*; expected ") as caught:
        execute(NOTEBOOK, {})
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_cells_run_again_in_any_session_keep_their_parameters() -> None:
    typed, call = "seed: int = 1  # x\nname: str = 'a'", "run()"
    history = ["", typed, call, "scratch = 5", call]
    assert magics.read({"In": history, "seed": 2, "name": "b", "scratch": 5}) == {"seed": 2, "name": "b"}
    with pytest.raises(UsageError, match="typed parameters"):
        magics.read({"In": ["", call]})


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize("which", ["report", "hostile"])
def test_a_browser_requests_nothing_and_complains_about_nothing(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page: Path = request.getfixturevalue(which)
    with browser(tmp_path) as tab:
        tab.open(page.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tab.evaluate("document.querySelectorAll('td, th, code, b, li').forEach(e => e.click())")
        assert tab.requests() == [page.as_uri()]
        assert tab.complaints() == []
        assert len(tab.pdf()) > 20_000


@needs_browser
@pytest.mark.system
def test_the_policy_stops_what_would_slip_through(report: Path, tmp_path: Path) -> None:
    """The guard behind the guard: even markup that got in could not run or fetch."""
    spoilt = tmp_path / "spoilt.html"
    bad = "<script>document.title='run'</script><img src='http://127.0.0.1:9/x'>"
    spoilt.write_text(report.read_text().replace("</main>", f"{bad}</main>"))
    with browser(tmp_path / "profile") as tab:
        tab.open(spoilt.as_uri())
        assert tab.evaluate("document.title") != "run"
        assert "Content Security Policy" in "".join(tab.complaints())


@needs_browser
@pytest.mark.system
@pytest.mark.parametrize(
    ("width", "dark", "media"),
    [(1200, False, "screen"), (1200, True, "screen"), (390, False, "screen"), (703, False, "print")],
)
def test_it_fits_its_medium(report: Path, tmp_path: Path, width: int, dark: bool, media: str) -> None:
    with browser(tmp_path) as tab:
        tab.open(report.as_uri(), width=width, dark=dark, media=media)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        red = int(re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red < 64 if dark else red > 240
        assert tab.evaluate("document.querySelector('.decision h1').getBoundingClientRect().bottom") < 300
        assert len(tab.screenshot()) > 20_000

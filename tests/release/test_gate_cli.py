"""perfkit gate and perfkit verify: the decision on a run, what it leaves behind, and whether that was touched."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from synthetic import make_run, tuned

from perfkit import config
from perfkit.app import api
from perfkit.app.cli import main
from perfkit.base.errors import PerfkitError, UsageError
from perfkit.release.decision import DecisionRecord, read_answers
from perfkit.runs.records import Bundle
from perfkit.runs.selection import RunSpec, Selection
from perfkit.show.render import GATE, execute

QUESTIONS = ("Team ready for launch", "Rollback plan at hand")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which everything holds, whose release has two questions and a plan, and requires no watch."""
    run = make_run(tmp_path_factory.mktemp("gate") / "run")
    release = config.load().release.model_copy(update={"monitoring": False})
    run.run.config.release = release
    run.update()
    return run.path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def perfkit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def gate(code: int, *args: str | Path) -> str:
    done = perfkit("gate", *args)
    assert (done.exit_code, done.stderr) == (code, ""), (done.exception, done.output)
    return done.stdout


def refusal(code: int, *args: str | Path) -> str:
    """The one line on stderr of a command that ends with this code and says nothing else."""
    done = perfkit(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("perfkit: ").rstrip()


def decided(run: Path, *said: str, by: str = "", arm: str = "") -> DecisionRecord:
    """The same decision without its page, which takes a second or two."""
    return api.decide(run, arm, answers=said, by=by).decided


def answered(*given: str) -> list[str]:
    return [part for question in given for part in ("--answer", f"{question}=yes")]


def page(run: Path) -> str:
    return (run / "decision.html").read_text()


# The decision


@pytest.mark.process
def test_unanswered_it_is_open_and_says_how_to_answer(run: Path) -> None:
    said = gate(100, run)
    assert said.startswith("INCONCLUSIVE: 30 at once: ")
    assert '- Team ready for launch: not answered. Needed: --answer "Team ready for launch=yes"' in said
    assert said.splitlines()[-1] == f"content hash {json.loads((run / 'seal.json').read_text())['content']}"
    assert str(run / "decision.html") in said.splitlines()


@pytest.mark.process
def test_answers_are_kept_and_once_all_are_yes_it_is_a_go(run: Path) -> None:
    assert decided(run, f"{QUESTIONS[0]}=yes", by="Ops Lead").decision == "INCONCLUSIVE"
    said = gate(0, run, *answered(QUESTIONS[1]), "--by", "QA Lead")
    assert said.startswith("GO: ") and "✓ holds" in said
    assert decided(run).decision == "GO"  # they are in the folder
    assert [(own.question, own.answer, own.by) for own in read_answers(run)] == [
        (QUESTIONS[0], "yes", "Ops Lead"),
        (QUESTIONS[1], "yes", "QA Lead"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", own.on) for own in read_answers(run))


@pytest.mark.process
def test_a_later_answer_counts_and_the_earlier_is_kept(run: Path) -> None:
    assert decided(run, *(f"{name}=yes" for name in QUESTIONS), by="Ops Lead").decision == "GO"
    said = gate(99, run, "--answer", f"{QUESTIONS[0]}=No", "--by", "QA Lead")
    assert said.startswith("NO-GO: ") and f"- {QUESTIONS[0]}: no, answered by QA Lead, on " in said
    assert [own.answer for own in read_answers(run)] == ["yes", "yes", "no"]


def test_an_answer_of_the_configuration_counts_until_somebody_says_otherwise(run: Path) -> None:
    bundle = Bundle.open(run)
    answer = {"answer": "yes", "by": "Ops Lead", "on": "2026-01-15"}
    tuned(bundle, "release", question=tuple(q.model_copy(update=answer) for q in bundle.run.config.release.question))
    bundle.update()
    assert decided(run).decision == "GO"
    assert decided(run, f"{QUESTIONS[1]}=no", by="QA Lead").decision == "NO-GO"


@pytest.mark.process
def test_a_failing_check_outranks_what_is_open(run: Path) -> None:
    bundle = Bundle.open(run)
    bundle.run.checks["after-full"][0].passed = False
    bundle.update()
    assert "Failed: Basic insert on after-full." in decided(run).reasons[0]
    gate(100, run, "--arm", "after-index")


def test_a_watch_that_is_required_and_not_named_leaves_it_open(run: Path) -> None:
    bundle = Bundle.open(run)
    tuned(bundle, "release", monitoring=True)
    bundle.update()
    assert decided(run, *(f"{name}=yes" for name in QUESTIONS), by="Ops Lead").reasons == (
        "Monitoring was not checked. Needed: a running watch; pass its folder with --watch FOLDER.",
    )


@pytest.mark.process
def test_an_older_bundle_without_a_release_is_judged_by_its_rules(tmp_path: Path) -> None:
    old = make_run(tmp_path / "run")
    old.run.config.thresholds = config.Thresholds(p95_ms=500, error_rate=0.001)
    old.update()
    assert gate(0, old.path).startswith("GO: ")
    assert "the configuration has no questions" in page(old.path)


def test_a_rehearsed_rollback_is_nothing_to_ship(run: Path) -> None:
    Bundle.open(run).update(rollback={"word": "as before"})
    assert refusal(2, "gate", run).endswith("a rehearsed rollback; expected the run of a change that is to be shipped")


def test_the_release_goes_into_the_bundle_of_a_run() -> None:
    described = Selection(config.load(), RunSpec()).describe().as_json["config"]
    assert [own["name"] for own in described["release"]["question"]] == list(QUESTIONS)
    assert described["thresholds"].keys() >= {"p50_ms", "p95_ms", "p99_ms", "throughput", "error_rate"}


@pytest.mark.slow  # it measures a whole run
def test_a_real_run_can_be_decided_on(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "run"))
    done = perfkit("gate", copy, *answered(*QUESTIONS), "--by", "Ops Lead")
    assert done.exit_code in (98, 99, 100), done.output  # no watch was named
    found = json.loads((copy / "decision.json").read_text())
    items = {item["name"]: item for item in found["items"]}
    assert items["smoke checks"]["value"] == "3 of 3 on each of 2 arms"
    assert items["acceptance checks"]["value"] == "4 of 4 on each of 2 arms"
    assert items["Indexes valid"]["value"] == "7 of 7 on each of 2 arms"
    assert items["Database trouble"]["value"] == "0 server errors, 8 of 8 plans captured"
    assert items["Monitoring"]["outcome"] == "unproven"
    assert perfkit("verify", copy).exit_code == 0


# What it writes


@pytest.mark.process
def test_the_page_holds_matrix_plan_risks_answers_lines_to_sign_and_the_hash(run: Path) -> None:
    gate(0, run, *answered(*QUESTIONS), "--by", "Ops <script>Lead")
    html, content = page(run), json.loads((run / "seal.json").read_text())["content"]
    for text in ("GO if", "NO-GO if", "Create the seven indexes", "Index bloat", "Ops &lt;script&gt;Lead"):
        assert text in html
    assert all(f'<th scope="row">{name}</th><td></td><td></td>' in html for name in config.load().release.sign_off)
    assert content[:12] in html and " ".join(re.findall(".{8}", content)) in html
    assert "<script" not in html and "checksum, not a signature" in html
    assert str(run.parent) not in html  # no path of this machine


@pytest.mark.slow
def test_the_page_shows_the_decision_again_without_deciding(run: Path) -> None:
    gate(0, run, *answered(*QUESTIONS), "--by", "Ops Lead")
    before = page(run)
    again = api.decide(bundle=run)
    assert again.render().read_text() == before
    assert perfkit("verify", run).exit_code == 0
    assert "GO" in repr(again.banner) and "holds" in repr(again.matrix) and "yes" in repr(again.people)
    assert "perfkit rollback" in repr(again.plan) and "Slow index creation" in repr(again.risks)
    assert "QA Lead: ____" in repr(again.sign_off) and "perfkit verify run --hash " in repr(again.checking)


@pytest.mark.slow
def test_the_notebook_decides_as_the_command_does(run: Path) -> None:
    said = ",".join(f"{name}=yes" for name in QUESTIONS)
    executed = execute(GATE, {"run": str(run), "arm": "after-full", "answers": said, "by": "Ops Lead"})
    found = json.loads((run / "decision.json").read_text())
    assert (found["decision"], found["arms"]) == ("GO", ["after-full"])
    shown = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert any("GO if" in output["data"].get("text/html", "") for output in shown)
    with pytest.raises(PerfkitError, match="expected either run, the folder to decide on, or bundle"):
        execute(GATE, {})


@pytest.mark.process
def test_junit_and_json_hold_the_decision(run: Path, tmp_path: Path) -> None:
    gate(100, run, "--junit", tmp_path / "gate.xml", "--json", tmp_path / "gate.json")
    found = json.loads((tmp_path / "gate.json").read_text())
    assert found == json.loads((run / "decision.json").read_text())
    assert (found["decision"], found["arms"]) == ("INCONCLUSIVE", ["after-index", "after-full"])
    top = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (top.get("failures"), top.get("skipped")) == ("0", "2")
    assert top.get("tests") == str(len(found["items"]))


def test_files_written_into_the_runs_own_folder_are_sealed_with_it(run: Path) -> None:
    api.decide(run, junit=run / "gate.xml", json=run / "gate.json")
    assert perfkit("verify", run).exit_code == 0


@pytest.mark.parametrize("name", ["run.json", "answers.json", "rounds/000.burst.before.json", "plans/before/gate.json"])
def test_a_file_of_the_run_is_never_written_over(run: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refusal(2, "gate", run, "--json", run / name)
    assert said == f"{run / name}: in the folder of a run or a watch; expected gate... there, or another folder"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "named twice" in refusal(2, "gate", run, "--json", "gate.out", "--junit", "gate.out")


def test_a_decision_leaves_no_page_of_another(run: Path) -> None:
    decided(run)
    (run / "decision.html").write_text("GO")
    decided(run, f"{QUESTIONS[0]}=no", by="QA Lead")
    assert not (run / "decision.html").exists()


def test_two_who_answer_at_once_are_both_heard(run: Path) -> None:
    def answer(number: int) -> None:
        api.decide(run, answers=[f"{QUESTIONS[number % 2]}=yes"], by=f"person {number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(answer, range(4)))
    assert sorted(own.by for own in read_answers(run)) == [f"person {number}" for number in range(4)]
    assert perfkit("verify", run).exit_code == 0


@pytest.mark.slow
def test_a_report_made_again_after_the_decision_changes_nothing(run: Path) -> None:
    decided(run)
    assert perfkit("report", "--bundle", run).exit_code == 0
    assert perfkit("verify", run).exit_code == 0


# Checking


@pytest.mark.process
def test_verify_says_since_when_nothing_changed_and_compares_the_hash_on_paper(run: Path) -> None:
    gate(100, run)
    content = json.loads((run / "seal.json").read_text())["content"]
    for args in ([run], [run / "decision.html"], [run, "--hash", content[:12]], [run, "--hash", content[:16].upper()]):
        done = perfkit("verify", *args)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.startswith("unchanged since ") and content in done.stdout
    done = perfkit("verify", run, "--hash", "0" * 12)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0] == f"content hash is {content}, which does not begin with 000000000000"


def test_verify_names_what_was_tampered_with(run: Path) -> None:
    decided(run)
    (run / "run.json").write_text((run / "run.json").read_text().replace("seven", "eight"))
    (run / "rounds" / "000.burst.before.json").unlink()
    (run / "rounds" / "more.json").write_text("{}")
    done = perfkit("verify", run)
    assert (done.exit_code, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["differs: run.json", "missing: rounds/000.burst.before.json", "new: rounds/more.json"]
    assert lines[3].startswith("changed since it was sealed at ")


def test_an_answer_given_later_changes_the_hash(run: Path) -> None:
    decided(run)
    paper = json.loads((run / "seal.json").read_text())["content"]
    decided(run, f"{QUESTIONS[0]}=yes", by="Ops Lead")
    assert perfkit("verify", run).exit_code == 0
    assert perfkit("verify", run, "--hash", paper[:12]).exit_code == 1


# Bad input


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--answer", "Ready=yes", "--by", "A"], 2, "question 'Ready' is unknown; expected one of: \"Team ready"),
        (["--answer", "Team ready for launch=perhaps", "--by", "A"], 2, "expected QUESTION=yes or QUESTION=no"),
        (["--answer", "yes", "--by", "A"], 2, "--answer yes; expected QUESTION=yes or QUESTION=no"),
        (["--answer", "Team ready for launch=yes"], 2, "--by is missing; expected the name of the person who answers"),
        (
            ["--answer", "Team ready for launch=yes", "--by", " "],
            2,
            "--by is missing; expected the name of the person who answers",
        ),
        (["--by", "A"], 2, "--by A; expected an --answer with it"),
        ([*answered(QUESTIONS[0]), *answered(QUESTIONS[0]), "--by", "A"], 2, "expected one answer to 'Team ready for"),
        ([*answered(QUESTIONS[0]), "--by", "A\x1b[31m"], 2, "expected a name in one line of at most 100 characters"),
        ([*answered(QUESTIONS[0]), "--by", "A\nB"], 2, "expected a name in one line of at most 100 characters"),
        ([*answered(QUESTIONS[0]), "--by", "A" * 101], 2, "expected a name in one line of at most 100 characters"),
        (["--arm", "before"], 2, "arm 'before' is not to be shipped; expected one of: after-index, after-full"),
        (["--junit", "/proc/gate.xml"], 1, "/proc/gate.xml: cannot be written"),
        (["--json", "gone/gate.json", *answered(QUESTIONS[0]), "--by", "A"], 1, "gone/gate.json: cannot be written"),
        (["--watch", "gone", *answered(QUESTIONS[0]), "--by", "A"], 1, "gone"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_decides_nothing(run: Path, args: list[str], code: int, said: str) -> None:
    assert said in refusal(code, "gate", run, *args)
    assert not (run / "decision.json").exists() and not (run / "answers.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 9}', '{"format": 1, "answers": [{"question": "x"}]}'])
def test_damaged_answers_are_one_line(run: Path, content: str) -> None:
    (run / "answers.json").write_text(content)
    assert f"{run}/answers.json: " in refusal(1, "gate", run)


@pytest.mark.parametrize(
    "release",
    [
        "text",
        {"question": 3},
        {"question": [{"nothing": 1}]},
        {"step": [{}]},
        {"risk": [{"name": "a", "severity": "low", "mitigation": 0}]},
    ],
)
def test_a_release_that_is_damaged_is_one_line_before_anything_is_written(run: Path, release: object) -> None:
    content = json.loads((run / "run.json").read_text())
    content["config"]["release"] = release
    (run / "run.json").write_text(json.dumps(content))
    assert refusal(1, "gate", run).endswith("expected what perfkit wrote")
    assert not (run / "decision.json").exists()


def test_a_run_of_which_nothing_was_asked_says_so(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "run")
    said = refusal(2, "gate", plain.path, "--answer", "Ready=yes", "--by", "A")
    assert said.endswith("expected one of: none: the run's configuration asks no question")


@pytest.mark.parametrize(
    "wrong", [{"decided": 1}, {"arms": [2]}, {"headline": [[]]}, {"decision": "MAYBE"}, {"items": 1}]
)
def test_a_damaged_decision_is_one_line(run: Path, wrong: dict[str, object]) -> None:
    decided(run)
    path = run / "decision.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(PerfkitError, match=r"decision\.json: damaged .*; expected what perfkit wrote$"):
        api.decide(bundle=run)


def test_a_folder_that_was_never_decided_on_cannot_be_verified_or_shown(run: Path) -> None:
    assert refusal(1, "verify", run).endswith("no such file; expected a folder that `perfkit gate` sealed")
    assert "no such file" in refusal(1, "verify", run / "nothing")
    assert refusal(2, "verify", run, "--hash", "xyz").startswith("--hash xyz; expected 8 to 64 digits")
    with pytest.raises(UsageError, match="expected either run, the folder to decide on, or bundle"):
        api.decide()

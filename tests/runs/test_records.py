"""Tests of a run on disk: complete files, in order; damage is one line that names the file."""

import json
import os
from pathlib import Path

import pytest

from perfkit import config
from perfkit.app.starter import write_schemas
from perfkit.base.bundle import write_atomically
from perfkit.base.errors import BundleError, UsageError
from perfkit.explain.capture import Capture
from perfkit.explain.plan import read_plan
from perfkit.load.samples import COLUMNS, Samples
from perfkit.runs import records
from perfkit.runs.records import BlockRecord, Bundle, Round, RunRecord
from perfkit.runs.selection import RunSpec, Selection


def round_(block: int, scenario: str = "burst", arm: str = "before", position: int = 0) -> Round:
    columns = Samples(["book"], [0], [0], [True], [0], [0], [None], [5], ["ok"], [""], [1])
    return Round(block, position, scenario, arm, columns, {"lag_p50_ms": 0.1}, {"q": {"seq:t": 1}})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.create(tmp_path / "deep" / "run", described("Ünïcode"))


def described(title: str) -> RunRecord:
    """The record of a run of the booking system before anything ran."""
    record = Selection(config.load(), RunSpec()).describe()
    record.title = title
    return record


def files(bundle: Bundle) -> set[str]:
    return {str(path.relative_to(bundle.path)) for path in bundle.path.rglob("*") if path.is_file()}


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        list(Bundle.open(path).rounds())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_bundle_is_running_and_readable_at_once(bundle: Bundle) -> None:
    run = Bundle.open(bundle.path).run
    assert (run.format, run.status, run.title) == (2, "running", "Ünïcode")
    assert run.as_json == bundle.run.as_json == json.loads((bundle.path / "run.json").read_text())
    assert list(Bundle.open(bundle.path).rounds()) == []


def test_what_is_added_is_on_disk_at_once(bundle: Bundle) -> None:
    bundle.update(status="complete", blocks=[BlockRecord(block=0)])
    bundle.add_round(round_(0))
    first, last = ({"Plan": {"Node Type": "Result", "Strange Key": kept}} for kept in ("first", "last"))
    bundle.add_plan("before", "q", Capture((read_plan(first), read_plan(last)), ({"name": "visits"},)))
    found = Bundle.open(bundle.path)
    assert (found.run.status, len(found.run.blocks), found.run.title) == ("complete", 1, "Ünïcode")
    assert list(found.rounds()) == [round_(0)]
    records._CAPTURES.clear()
    capture = found.plan("before", "q")
    assert capture and capture.documents == ([first], [last]) and capture.tables == ({"name": "visits"},)
    assert found.plan("after", "q") is None
    assert files(bundle) == {
        "run.json",
        "rounds/000.burst.before.json",
        "plans/before/q.json",
        "plans/before/q.facts.json",
    }


def test_rounds_come_by_block_scenario_and_arm_whatever_their_order_was(bundle: Bundle) -> None:
    order = [(11, "single", "b"), (2, "single", "a"), (2, "burst", "b"), (2, "burst", "a"), (101, "a", "a")]
    for position, (block, scenario, arm) in enumerate(order):
        bundle.add_round(round_(block, scenario, arm, position))
    found = [(r.block, r.scenario, r.arm) for r in bundle.rounds()]
    assert found == sorted(order)
    assert [r.position for r in bundle.rounds()] == [3, 2, 1, 0, 4]


def test_a_file_is_replaced_whole_and_nothing_temporary_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "first")
    reader = path.open()
    write_atomically(path, "second")
    with reader:
        assert reader.read() == "first"
    assert path.read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_write_that_fails_keeps_what_was_there_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "content").write_text("kept")
    with pytest.raises(BundleError, match=f"{tmp_path}/taken: cannot be written .*; nothing was overwritten"):
        write_atomically(tmp_path / "taken", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "content").read_text() == "kept"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match=r"pipe: cannot be written \(not a regular file\); nothing was overwritten"):
        write_atomically(tmp_path / "pipe", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_an_interrupt_while_a_file_is_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file.json", "text")
    assert not list(tmp_path.iterdir())


def test_half_a_character_is_written_as_json_has_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.json", json.dumps("\ud800", ensure_ascii=False))
    assert json.loads((tmp_path / "file.json").read_bytes()) == "\ud800"


def test_a_key_of_another_version_is_ignored_and_a_missing_one_has_its_default(bundle: Bundle) -> None:
    content = json.loads((bundle.path / "run.json").read_text())
    del content["config"]["worth"], content["parameters"]["preset"], content["changes"]
    content["config"]["limits"]["gone"] = content["scenarios"][0]["gone"] = content["gone"] = 1
    (bundle.path / "run.json").write_text(json.dumps(content))
    run = Bundle.open(bundle.path).run
    assert (run.config.worth, run.parameters.preset, run.changes) == (0.1, "", {})


def test_what_was_judged_is_read_as_it_was_written_though_a_configuration_would_be_refused(bundle: Bundle) -> None:
    stored = bundle.run.as_json
    stored["config"]["thresholds"] = {"p95_ms": 500, "p99_ms": 300, "error_rate": 0.001}
    stored["config"]["release"] = {"question": [{"name": "ready", "answer": "yes"}] * 2, "sign_off": [""]}
    write_atomically(bundle.path / "run.json", json.dumps(stored))
    judging = Bundle.open(bundle.path).run.config
    assert (judging.thresholds.p95_ms, judging.thresholds.p99_ms) == (500, 300)
    assert [question.answer for question in judging.release.question] == ["yes", "yes"]
    stored["config"]["release"] = None
    write_atomically(bundle.path / "run.json", json.dumps(stored))
    assert not Bundle.open(bundle.path).run.config.release.question


@pytest.mark.parametrize("facts", ["null", "[]", '{"earlier": [1]}', '{"earlier": 5}', '{"tables": 5}'])
def test_damaged_facts_of_any_shape_are_one_line(bundle: Bundle, facts: str) -> None:
    bundle.add_plan("before", "q", Capture((read_plan({"Plan": {"Node Type": "Result"}}),), ()))
    write_atomically(bundle.path / "plans" / "before" / "q.facts.json", facts)
    with pytest.raises(BundleError, match=r"q\.(facts\.)?json: "):
        Bundle.open(bundle.path).plan("before", "q")


def test_what_is_set_is_checked_as_if_it_were_read(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="status"):
        bundle.update(status="done")


def test_a_hidden_file_is_no_round(bundle: Bundle) -> None:
    bundle.add_round(round_(0))
    (bundle.path / "rounds" / ".001.burst.before.json").write_text("{}")  # no seal covers it
    assert [r.block for r in bundle.rounds()] == [0]


def test_a_temporary_file_of_a_crash_is_no_round(bundle: Bundle) -> None:
    bundle.add_round(round_(0))
    (bundle.path / "rounds" / ".001.burst.before.json.tmp").write_text('{"block": 1, "posi')
    assert [r.block for r in bundle.rounds()] == [0]


def test_a_folder_that_exists_is_not_written_over(bundle: Bundle) -> None:
    bundle.add_round(round_(0))
    with pytest.raises(BundleError, match=r"cannot be created \(File exists\); expected a writable folder"):
        Bundle.create(bundle.path, described("another"))
    assert Bundle.open(bundle.path).run.title == "Ünïcode"


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == (f"{tmp_path}/gone/run.json: no such file; expected a bundle's folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 99}', "format 99; expected a bundle of format 2"),
        ('{"title": "no format"}', "format None; expected a bundle of format 2"),
        ("[1, 2]", "format None; expected a bundle of format 2"),
        ('{"format": 1, "ti', "expected JSON written by perfkit"),
        ("", "expected JSON written by perfkit"),
        ('{"format": 2, "title": 7}', "damaged (title: Input should be a valid string); expected what perfkit wrote"),
        ('{"format": 2, "title": "a"}', "damaged (parameters: Field required); expected what perfkit wrote"),
    ],
)
def test_a_run_of_another_version_or_cut_short_is_one_line(bundle: Bundle, text: str, said: str) -> None:
    (bundle.path / "run.json").write_text(text)
    message = refusal(bundle.path)
    assert message.startswith(f"{bundle.path}/run.json: ")
    assert said in message


def test_a_run_that_is_no_text_is_one_line(bundle: Bundle) -> None:
    (bundle.path / "run.json").write_bytes(b"\xff\xfe\x00")
    assert "run.json: damaged (" in refusal(bundle.path)


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"block": 0, "po', "[]", "7", '{"block": 0}', '{"blokc": 0}'),
        '{"block": 0, "position": 0, "scenario": "burst", "arm": "before", "columns": {}, "health": {}}',
    ],
)
def test_a_damaged_round_is_one_line_with_its_file(bundle: Bundle, text: str) -> None:
    bundle.add_round(round_(0))
    (bundle.path / "rounds" / "001.burst.before.json").write_text(text)
    assert refusal(bundle.path).startswith(f"{bundle.path}/rounds/001.burst.before.json: ")


def test_damaged_facts_of_a_plan_are_one_line_with_their_file(bundle: Bundle) -> None:
    bundle.add_plan("before", "q", Capture((read_plan({"Plan": {"Node Type": "Result"}}),)))
    (bundle.path / "plans" / "before" / "q.facts.json").write_text("[1]")
    with pytest.raises(BundleError, match=r"q.facts.json: not a plan's facts; expected an object"):
        bundle.plan("before", "q")


def test_a_damaged_plan_is_one_line_with_its_file(bundle: Bundle) -> None:
    bundle.add_plan("before", "q", Capture((read_plan({"Plan": {"Node Type": "Result"}}),)))
    (bundle.path / "plans" / "before" / "q.json").write_text("{")
    with pytest.raises(BundleError, match=r"plans/before/q.json: damaged \(.*\); expected JSON"):
        bundle.plan("before", "q")


def test_the_schemas_describe_the_files_that_are_written(bundle: Bundle, tmp_path: Path) -> None:
    bundle.add_round(round_(0))
    assert [path.name for path in write_schemas(tmp_path / "schemas")] == [
        "run.schema.json",
        "round.schema.json",
        "lab.schema.json",
        "watch.schema.json",
        "tick.schema.json",
        "event.schema.json",
        "decision.schema.json",
        "rollback.schema.json",
    ]
    run, recorded = (json.loads((tmp_path / f"schemas/{name}.schema.json").read_text()) for name in ("run", "round"))
    assert json.loads((bundle.path / "run.json").read_text()).keys() <= run["properties"].keys()
    (path,) = (bundle.path / "rounds").iterdir()
    assert json.loads(path.read_text()).keys() == recorded["properties"].keys()
    assert recorded["$defs"]["Samples"]["properties"].keys() == set(COLUMNS)
    with pytest.raises(UsageError, match=r"run.schema.json already exists; expected a folder without it"):
        write_schemas(tmp_path / "schemas")

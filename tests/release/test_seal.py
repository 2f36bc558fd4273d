"""A decision's folder can be checked: what changed, went or came is named, and paper tells what a new seal hides."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.errors import BundleError, UsageError
from perfkit.release import decision

NOW = datetime(2026, 1, 15, 9, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `perfkit gate` leaves it."""
    found = tmp_path / "run"
    (found / "rounds").mkdir(parents=True)
    (found / "plans" / "before").mkdir(parents=True)
    for name in ("run.json", "answers.json", "decision.json", "rounds/000.burst.before.json", "plans/before/q.json"):
        (found / name).write_text(f'{{"name": "{name}"}}\n')
    sealed = decision.seal(found, NOW)
    (found / decision.PAGE).write_text(f"<p>{sealed.content}</p>")
    decision.seal_pages(found)
    return found


def test_a_folder_that_nobody_touched_is_unchanged(folder: Path) -> None:
    found = decision.verify(folder)
    assert found.unchanged and found.seal.on == "2026-01-15T09:00:00Z"
    assert found.content == found.seal.content and found.content in (folder / decision.PAGE).read_text()
    assert decision.verify(folder / decision.PAGE).unchanged


@pytest.mark.parametrize(
    ("name", "evidence"), [("run.json", True), ("rounds/000.burst.before.json", True), (decision.PAGE, False)]
)
def test_one_flipped_bit_is_named(folder: Path, name: str, evidence: bool) -> None:
    content = bytearray((folder / name).read_bytes())
    content[5] ^= 1
    (folder / name).write_bytes(content)
    found = decision.verify(folder)
    assert (found.unchanged, found.differ, found.missing, found.new) == (False, (name,), (), ())
    assert (found.content != found.seal.content) is evidence


def test_a_file_that_went_and_one_that_came_are_named(folder: Path) -> None:
    (folder / "answers.json").unlink()
    (folder / "rounds" / "001.burst.before.json").write_text("{}")
    found = decision.verify(folder)
    assert (found.differ, found.missing, found.new) == ((), ("answers.json",), ("rounds/001.burst.before.json",))


def test_a_file_under_another_name_is_missing_and_new(folder: Path) -> None:
    (folder / "rounds/000.burst.before.json").rename(folder / "rounds/000.burst.after.json")
    found = decision.verify(folder)
    assert (found.missing, found.new) == (("rounds/000.burst.before.json",), ("rounds/000.burst.after.json",))


def test_what_is_made_of_the_evidence_may_come_later_and_what_is_half_written_does_not_count(folder: Path) -> None:
    (folder / "report.html").write_text("made again at will")
    (folder / ".run.json.tmp").write_text("half")
    assert decision.verify(folder).unchanged
    decision.seal_pages(folder)
    (folder / "report.html").write_text("changed after it was sealed")
    assert decision.verify(folder).differ == ("report.html",)


def test_a_folder_that_was_changed_and_sealed_anew_is_told_by_the_hash_on_paper_alone(folder: Path) -> None:
    on_paper = decision.read_seal(folder).content
    (folder / "answers.json").write_text('{"answers": "all yes"}')
    decision.seal(folder, NOW)
    decision.seal_pages(folder)
    found = decision.verify(folder)
    assert found.unchanged
    assert not found.content.startswith(on_paper[: decision.SHORT])


def test_an_edited_list_is_found_by_its_own_hash(folder: Path) -> None:
    (folder / "answers.json").write_text("{}")
    said = json.loads((folder / decision.SEAL_FILE).read_text())
    said["files"]["answers.json"] = hashlib.sha256(b"{}").hexdigest()
    (folder / decision.SEAL_FILE).write_text(json.dumps(said))
    found = decision.verify(folder)
    assert (found.differ, found.missing, found.new) == ((), (), ())
    assert not found.unchanged


@pytest.mark.process
def test_the_content_hash_is_what_sha256sum_gives(folder: Path) -> None:
    names = sorted(decision.read_seal(folder).files)
    listed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    assert hashlib.sha256(listed).hexdigest() == decision.read_seal(folder).content


def test_a_copy_elsewhere_has_the_same_hash(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert decision.verify(copy).content == decision.verify(folder).content


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.binary(), max_size=6),
    st.randoms(),
)
def test_the_hash_is_of_what_there_is_and_not_of_the_order_it_came_in(files: dict[str, bytes], random) -> None:
    hashes = {name: hashlib.sha256(value).hexdigest() for name, value in files.items()}
    shuffled = list(hashes.items())
    random.shuffle(shuffled)
    assert decision.content(dict(shuffled)) == decision.content(hashes)
    assert decision.content({**hashes, "\x00more": "0" * 64}) != decision.content(hashes)


def test_a_name_that_is_no_utf_8_is_sealed_too(folder: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.json")).write_text("{}")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    sealed = decision.seal(folder, NOW)
    decision.seal_pages(folder)
    assert len(sealed.files) == 6 and decision.verify(folder).unchanged


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; expected a folder that `perfkit gate` sealed"),
        ("{", "expected JSON written by perfkit"),
        ('{"format": 7}', "format 7; expected a seal of format 1"),
        ('{"format": 1}', "expected what perfkit wrote"),
        ("[]", "format None; expected a seal of format 1"),
    ],
)
def test_a_seal_that_is_none_is_one_line(folder: Path, content: str | None, said: str) -> None:
    (folder / decision.SEAL_FILE).unlink()
    if content is not None:
        (folder / decision.SEAL_FILE).write_text(content)
    with pytest.raises(BundleError, match=r"seal\.json") as caught:
        decision.verify(folder)
    assert str(caught.value).endswith(said) and "\n" not in str(caught.value)


def test_a_page_that_was_never_sealed_is_one_line(folder: Path) -> None:
    shutil.copy(folder / decision.PAGE, folder / "copy.html")
    with pytest.raises(BundleError, match=r"not a sealed page of its folder; expected decision\.html"):
        decision.verify(folder / "copy.html")


@pytest.mark.parametrize("text", ["abc", "xyz12345", "a" * 65, "1234567"])
def test_digits_that_are_no_hash_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=f"--hash {text}; expected 8 to 64 digits"):
        decision.require_hash(text)


def test_a_hash_may_be_typed_as_the_page_prints_it() -> None:
    assert decision.require_hash("AB24A0CA ea552c94") == "ab24a0caea552c94"

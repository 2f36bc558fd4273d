"""perfkit.toml: one validated model; every mistake at once, one line each."""
# ruff: noqa: E501

from pathlib import Path

import pytest

from perfkit import config
from perfkit.errors import UsageError

MINIMAL = """
title = "A query"
[database]
prepare = ["schema.sql"]
[parameters]
ids = "ids.sql"
[[query]]
name = "by_id"
file = "by_id.sql"
parameters = "ids"
[[scenario]]
name = "alone"
label = "1"
send = ["by_id"]
[[arm]]
name = "before"
role = "before"
"""


@pytest.fixture
def write(tmp_path: Path):
    for name in ("schema.sql", "ids.sql", "by_id.sql"):
        (tmp_path / name).write_text("SELECT 1")

    def write(text: str) -> Path:
        path = tmp_path / "perfkit.toml"
        path.write_text(text)
        return path

    return write


def lines(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        config.load(path)
    return str(caught.value).splitlines()


def test_the_booking_system_is_an_ordinary_configuration():
    booking = config.load()
    assert [arm.name for arm in booking.arm] == ["before", "control", "after-index", "after-full"]
    assert {scenario.name: scenario.users for scenario in booking.scenario} == {
        "single": 1, "ramp-up": 5, "ten": 10, "burst": 30, "sustained": 5, "queries": 1,
    }  # fmt: skip
    assert booking.profiles == {"quick": 6, "standard": 12, "thorough": 24}
    assert (booking.thresholds.p95_ms, booking.thresholds.error_rate, booking.margin) == (500, 0.001, 0.05)
    assert booking.database.scales["standard"]["appointments"] >= 500_000
    assert [check.group for check in booking.check].count("smoke") == 3
    assert [check.group for check in booking.check].count("acceptance") == 4


def test_paths_are_relative_to_the_file(write):
    path = write(MINIMAL)
    assert config.load(path).query[0].file == path.parent / "by_id.sql"


def test_a_file_of_perfkit_itself_is_named_with_its_prefix(write):
    found = config.load(write(MINIMAL.replace('"schema.sql"', '"perfkit:sql/booking/schema.sql"')))
    assert found.database.prepare[0] == config.ROOT / "sql/booking/schema.sql"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"by_id.sql"', '"gone.sql"', "query.0.file = 'gone.sql'; expected: an existing file"),
        ('"by_id.sql"', '"."', "expected: an existing file"),
        ('title = "A query"', 'title = "A query"\ntitel = 1', "titel: unknown key"),
        ('title = "A query"', "", "title: missing; expected a value"),
        ('label = "1"', 'label = "1"\nusers = 0', "scenario.0.users = 0; expected: "),
        ('send = ["by_id"]', 'send = ["by_ids"]', "scenario 'alone': send = 'by_ids'; expected one of: by_id"),
        ('parameters = "ids"', 'parameters = "idz"', "query 'by_id': parameters = 'idz'; expected one of: ids"),
        ('role = "before"', 'role = "after"', "arm: expected exactly one with role = 'before'"),
        ('name = "before"', 'name = "floor"', "arm 'floor' has the name of the target that does nothing"),
        ('role = "before"', 'role = "before"\n[[arm]]\nname = "control"\nrole = "control"\nwarmup = 1', "arm 'control' is a control but differs from 'before'"),
        ('name = "alone"', 'name = "Not A Name!"', "scenario.0.name = 'Not A Name!'; expected: "),
        ('prepare = ["schema.sql"]', 'prepare = ["schema.sql"]\npostgres = 17', "database.postgres = 17; expected: Input should be 16 or 18"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_key_value_and_expectation(write, old, new, expected):
    path = write(MINIMAL.replace(old, new, 1))
    assert len(found := lines(path)) == 1
    assert found[0].startswith(f"{path}: ")
    assert expected in found[0]


def test_all_mistakes_come_at_once(write):
    text = MINIMAL.replace('title = "A query"', "").replace('label = "1"', 'label = "1"\nrequests = -1')
    assert len(lines(write(text))) == 2
    text = MINIMAL.replace('send = ["by_id"]', 'send = ["a", "b"]').replace('"ids"', '"idz"')
    assert len(lines(write(text))) == 3


@pytest.mark.parametrize("text", ["title = ", "[database\n", "\x00", "title = 'é"])
def test_broken_toml_is_one_line(write, text):
    assert len(lines(write(text))) == 1


def test_a_missing_file_is_one_line(tmp_path):
    assert lines(tmp_path / "no.toml") == [f"{tmp_path}/no.toml: no such file; expected a perfkit.toml"]


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "perfkit.toml").write_bytes(b"\xff\xfe\x00")
    assert len(lines(tmp_path / "perfkit.toml")) == 1
    assert len(lines(tmp_path)) == 1

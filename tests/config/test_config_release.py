"""Tests of the release, watch and review tables: each mistake is one line that states the reason."""

from pathlib import Path

import pytest

from perfkit import config
from perfkit.base.errors import UsageError

RULE = '[[watch.rule]]\nname = "own"\nlevel = "P1"\n'
TARGET = '[[review.target]]\nname = "Own"\n'
QUESTION = '[[release.question]]\nname = "Own"\n'


def loaded(tmp_path: Path, more: str) -> config.Config:
    path = tmp_path / "perfkit.toml"
    path.write_text(f"{config.BOOKING.read_text()}\n{more}\n")
    return config.load(path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (f'{RULE}metric = "error_rate"\nabove = 5', "above = 5 as a share, 0 to 1: error_rate of 5 % is 0.05"),
        (f'{RULE}metric = "error_rate"\nabove = 0.05\nclear = 3', "clear = 3 on the good side of above = 0.05"),
        (f'{RULE}metric = "availability"\nbelow = 99', "below = 99 as a share, 0 to 1"),
        (f'{RULE}metric = "p95_ms"\nabove = -1', "above = -1 of at least 0: no p95_ms is below that"),
        (f"{TARGET}metric = 'error_rate'\nat_most = 5", "at_most = 5 as a share, 0 to 1"),
        (f"{TARGET}metric = 'availability'\nat_least = 99.9", "at_least = 99.9 as a share, 0 to 1"),
        (f"{TARGET}metric = 'p95_ms'\nat_most = -5", "at_most = -5 of at least 0"),
        (f"{TARGET}at_most = 5\n{TARGET}at_most = 6", "review: expected targets with different names, not 'Own' twice"),
        ('[[review.target]]\nname = " "\nat_most = 5', "name = ' '; expected: one line of text, not empty"),
        (f"{QUESTION}{QUESTION}", "release: expected questions with different names, not 'Own' twice"),
        (f'{QUESTION}answer = "yes"', "expected by: the name of the person who gave answer = 'yes'"),
        ('[[release.question]]\nname = "two\\nlines"', "expected: one line of text, not empty"),
        ('[[release.step]]\naction = ""', "action = ''; expected: one line of text, not empty"),
        ('[[release.risk]]\nname = ""\nseverity = "low"', "name = ''; expected: one line of text, not empty"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, more)
    assert str(error.value).startswith(f"{tmp_path}/perfkit.toml: ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_people_say_may_be_of_any_size(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"{TARGET}at_least = -3\nat_most = 250\n{QUESTION}answer = 'yes'\nby = 'QA Lead'")
    assert found.review.target[-1].at_least == -3 and found.release.question[-1].by == "QA Lead"

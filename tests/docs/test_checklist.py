"""The checklist's page: every command in it exists with these options, every file is there, no section is missing."""

import re
import shlex

import documents
import pytest

from perfkit import config
from perfkit.base.resources import CHECKOUT
from perfkit.config import model

PAGE = CHECKOUT / "docs" / "checklist.md"
TEXT = documents.text(PAGE)
SECTIONS = (
    "Executive summary",
    "Test results",
    "Phase 1: database optimisation",
    "Phase 2: code optimisation",
    "Phase 3: monitoring",
    "Deployment steps",
    "Performance expectations",
    "Risks",
    "Go or no-go",
    "Metrics to collect",
    "Timeline",
    "Support and escalation",
    "Approval sign-off",
    "Post-deployment review",
)
COMMANDS = sorted(documents.commands(PAGE, "perfkit"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_takes_what_it_is_given(command: str) -> None:
    """Parsed by the command itself, which fails on an unknown option or a value of the wrong kind."""
    documents.parse(command, whole=True)


def test_it_has_the_commands_of_every_stage() -> None:
    stages = {
        "check",
        "report",
        "measure",
        "indexes",
        "explain",
        "rollback",
        "watch",
        "gate",
        "verify",
        "review",
        "slow",
    }
    assert stages <= {command.split()[1] for command in COMMANDS}


def test_every_section_of_the_checklist_has_a_table_of_rows() -> None:
    titles = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert titles == ["From start to end", *SECTIONS]
    for part in TEXT.split("\n## ")[2:]:
        rows = [line for line in part.splitlines() if line.startswith("|")]
        assert rows[0] == "| what it asks | what does it | where the result is |"
        assert len(rows) > 2 and all(row.count(" |") == 3 for row in (rows[0], *rows[2:]))


def test_every_file_that_it_names_is_there() -> None:
    for word in (word for command in COMMANDS for word in shlex.split(command)):
        if word.startswith(("sql/", "docs/", "notebooks/")):
            assert (CHECKOUT / word).is_file(), word


def test_every_table_of_the_configuration_that_it_names_exists_and_is_used_by_the_booking_system() -> None:
    booking = config.load()
    assert set(re.findall(r"\[\[[a-z.]+\]\]", TEXT)) <= set(model.TABLES)
    assert booking.claim and booking.watch.rule and booking.release.step and booking.release.sign_off
    assert "Team ready for launch" in {question.name for question in booking.release.question}
    assert "User rating" in {target.name for target in booking.review.target}


def test_the_round_trip_is_the_one_of_the_preset() -> None:
    preset = config.load().presets["checklist"]
    assert f"and {preset.rtt_ms:g} ms from the service to the database" in TEXT
    assert f"12 × {preset.rtt_ms:g} + 12 = {12 * preset.rtt_ms + 12:g}" in TEXT
    scales = config.load().database
    assert scales and scales.scales[preset.scale]["appointments"] == 15_000


def test_nothing_in_it_is_outside_the_repository() -> None:
    assert "/work" not in TEXT and "http" not in TEXT

"""A decision as JUnit XML: what build servers read, whatever the texts hold."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.judgement import Outcome
from perfkit.release.decision import DecisionRecord, GateItem, junit

# What the schema of Jenkins' plugin, the strictest of the usual readers, knows of each element.
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors", "disabled", "skipped"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time", "assertions", "status"},
    "failure": {"message", "type"},
    "skipped": {"message"},
    "system-out": set(),
}


def made(name: str = "smoke checks", outcome: Outcome = Outcome.HOLDS, group: str = "functional checks") -> GateItem:
    text, needs = "smoke checks: 3 of 3 passed.", "another run." if outcome is Outcome.UNPROVEN else ""
    return GateItem(
        group=group,
        name=name,
        go_if="all 3 pass",
        no_go_if="one fails",
        value="3 of 3",
        limit="3 of 3",
        evidence="measured once",
        outcome=outcome,
        text=text,
        needs=needs,
    )


def decided(*items: GateItem, title: str = "Clinic booking webhook") -> DecisionRecord:
    return DecisionRecord(
        title=title,
        decision="NO-GO",
        invalid=False,
        arms=("after-index",),
        decided="2026-01-15T09:00:00Z",
        headline="A headline.",
        reasons=(),
        items=items,
    )


def read(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.encode())


def test_an_item_is_a_case_broken_is_a_failure_and_unproven_is_skipped_with_what_it_would_take() -> None:
    items = [made(f"{outcome}", outcome) for outcome in Outcome]
    top = read(junit(decided(*items)))
    counts = [top.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert (top.tag, counts) == ("testsuites", ["4", "2", "0", "1"])
    cases = {case.get("name"): case for case in top.iter("testcase")}
    failure, skipped = cases["broken"].find("failure"), cases["unproven"].find("skipped")
    assert failure is not None and failure.get("message") == "smoke checks: 3 of 3 passed."
    assert failure.text == "measured: 3 of 3\nlimit: 3 of 3\nevidence: measured once"
    useless = cases["no benefit"].find("failure")
    assert (failure.get("type"), useless is not None and useless.get("type")) == ("broken", "no benefit")
    assert skipped is not None and str(skipped.get("message")).endswith("Needed: another run.")
    assert [child.tag for child in cases["holds"]] == ["system-out"]


def test_each_group_is_a_suite_with_its_own_counts_and_the_decision() -> None:
    top = read(junit(decided(made(), made(outcome=Outcome.BROKEN), made(group="people"))))
    suites = list(top.iter("testsuite"))
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("functional checks", "2", "1"),
        ("people", "1", "0"),
    ]
    for suite in suites:
        assert suite.get("timestamp") == "2026-01-15T09:00:00"
        said = {own.get("name"): own.get("value") for own in suite.iter("property")}
        assert said == {"decision": "NO-GO", "arms": "after-index", "decided": "2026-01-15T09:00:00Z"}


def test_only_elements_and_attributes_that_readers_know_are_used() -> None:
    top = read(junit(decided(*(made(outcome=outcome) for outcome in Outcome))))
    for element in top.iter():
        assert set(element.keys()) - ATTRIBUTES[element.tag] == set()


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\ufffe", "\ud800", "]]>", "<x>&'\"", "\u202e"])
def test_what_xml_cannot_hold_is_made_visible(text: str) -> None:
    item = made(text, Outcome.BROKEN)
    case = next(read(junit(decided(item, title=text))).iter("testcase"))
    assert case.get("name")


@given(st.text(), st.text(), st.sampled_from(Outcome))
def test_any_text_gives_xml_that_can_be_read(name: str, title: str, outcome: Outcome) -> None:
    top = read(junit(decided(made(name, outcome), title=title)))
    assert len(list(top.iter("testcase"))) == 1

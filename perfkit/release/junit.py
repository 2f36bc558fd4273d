"""A decision as JUnit XML, which every build server shows: one test case an item. Pure.

Broken is a failure, and so is no benefit, of its own type; unproven is skipped with what it would take, because JUnit
has no third word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree

from perfkit.analysis.policy import Outcome
from perfkit.release.decision import Decided
from perfkit.release.items import GateItem
from perfkit.text import visible

_FAILURES = (Outcome.BROKEN, Outcome.ABSENT)
_NOT_XML = re.compile("[\ufffe\uffff]")  # what XML 1.0 excludes and `visible` leaves


def junit(decided: Decided) -> str:
    """The decision as an XML document."""
    items = decided.gate.items
    top = ElementTree.Element("testsuites", _counts(f"perfkit gate: {decided.title}", items))
    for group, own in groupby(items, key=lambda item: item.group):
        cases = list(own)
        suite = ElementTree.SubElement(top, "testsuite", {**_counts(group, cases), "timestamp": decided.on.rstrip("Z")})
        properties = ElementTree.SubElement(suite, "properties")
        said = {"decision": decided.gate.decision, "arms": ", ".join(decided.gate.arms), "decided": decided.on}
        for name, value in said.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
        for item in cases:
            _case(suite, item)
    ElementTree.indent(top, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _case(suite: ElementTree.Element, item: GateItem) -> None:
    named = {"name": _text(item.name), "classname": _text(f"perfkit.gate.{item.group.replace(' ', '_')}"), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", named)
    if item.outcome in _FAILURES:
        said = {"message": _text(item.text), "type": str(item.outcome)}
        body = f"measured: {item.value}\nlimit: {item.limit}\nevidence: {item.evidence}"
        ElementTree.SubElement(case, "failure", said).text = _text(body)
    elif item.outcome is Outcome.UNPROVEN:
        ElementTree.SubElement(case, "skipped", {"message": _text(item.reason)})
    else:
        ElementTree.SubElement(case, "system-out").text = _text(item.text)


def _counts(name: str, items: Sequence[GateItem]) -> dict[str, str]:
    outcomes = [item.outcome for item in items]
    return {
        "name": _text(name),
        "tests": str(len(items)),
        "failures": str(sum(outcome in _FAILURES for outcome in outcomes)),
        "errors": "0",
        "skipped": str(outcomes.count(Outcome.UNPROVEN)),
        "time": "0",
    }


def _text(value: object) -> str:
    return _NOT_XML.sub("\ufffd", visible(value))

"""What a run itself says for and against shipping its arms: the rules in groups, its checks, its database. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from perfkit.analysis.cautions import some
from perfkit.analysis.policy import BENEFIT, Outcome, Rule, number, percent
from perfkit.analysis.results import Analysis
from perfkit.analysis.sentences import complete_blocks
from perfkit.errors import ServerError
from perfkit.release.items import CATALOGUE, LOAD, ONCE, RECORDED, GateItem, worst

SHOWN = 3  # sentences of one item; the report has every rule

# SQLSTATE classes in which the server is in trouble: connections, resources, operator, system, internal.
_TROUBLE = ("08", "53", "57P", "58", "F0", "XX")
_DAMAGE = ("58", "F0", "XX")  # of these, what no accident explains: a disk, a configuration, data
_UNREACHED = ("refused", "reset")


def measured_items(run: Mapping[str, Any], analysis: Analysis, arms: Sequence[str]) -> Iterator[GateItem]:
    """Every item that a run gives, for the arms to be shipped."""
    rules = [rule for rule in analysis.judgement.rules if rule.arm in arms]
    yield _whole(run, arms)
    yield from _checks(run, arms)
    for name, group in _GROUPS.items():
        if own := [rule for rule in rules if rule.name == name]:
            yield group(own, analysis)
    yield _database(run, analysis, arms)


def _whole(run: Mapping[str, Any], arms: Sequence[str]) -> GateItem:
    done, planned = complete_blocks(run), run["parameters"]["blocks"]
    left = run.get("left_out", {}).get("scenarios") or []
    wrong = []
    if run["status"] != "complete":
        wrong.append(f"The run is {run['status']}: {run.get('message') or 'it has not ended'}.")
    if left:
        wrong.append(f"Not every load level was measured: {some(left)} left out.")
    if not arms:
        wrong.append("No arm is to be shipped, so nothing was judged.")
    shipped = f" To be shipped: {', '.join(arms)}." if arms else ""
    text = " ".join(wrong) or f"The run is complete: {done} of {planned} blocks, every load level.{shipped}"
    return GateItem(
        "the run",
        "Run complete",
        "every block and load level was measured",
        "",
        f"{done} of {planned} blocks",
        f"{planned} blocks",
        RECORDED,
        Outcome.UNPROVEN if wrong else Outcome.HOLDS,
        text,
        "a whole run: perfkit report, with nothing left out." if wrong else "",
    )


def _checks(run: Mapping[str, Any], arms: Sequence[str]) -> Iterator[GateItem]:
    """One item for each group of functional checks, whichever arms ran it."""
    results = {arm: own for arm, own in run["checks"].items() if arm in arms}
    groups = dict.fromkeys(check["group"] for own in run["checks"].values() for check in own)
    for group in groups:
        own = {arm: [c for c in results.get(arm, ()) if c["group"] == group] for arm in arms}
        failed = [f"{c['name']} on {arm}" for arm in arms for c in own[arm] if not c["passed"]]
        missing = [arm for arm in arms if not own[arm]]
        passed = {arm: f"{sum(c['passed'] for c in checks)} of {len(checks)}" for arm, checks in own.items()}
        value = _said(passed)
        outcome = Outcome.BROKEN if failed else Outcome.UNPROVEN if missing else Outcome.HOLDS
        text = f"{group} checks: {value} passed."
        text += f" Failed: {some(failed, 5)}." if failed else f" Not run on {', '.join(missing)}." if missing else ""
        most = max((len(checks) for checks in own.values()), default=0)
        words = (f"all {most} pass", "one fails", value, f"{most} of {most}")
        needs = "the checks, run on that arm." if outcome is Outcome.UNPROVEN else ""
        yield GateItem("functional checks", f"{group} checks", *words, ONCE, outcome, text, needs)


def _database(run: Mapping[str, Any], analysis: Analysis, arms: Sequence[str]) -> GateItem:
    """Errors of the server itself, a run that ended by it, plans that could not be captured."""
    queries = set(run["queries"])
    direct = {level.scenario for level in analysis.levels if level.item in queries}
    trouble, damaged = Counter[str](), False
    for error in analysis.errors:
        code = error.outcome.removeprefix("sqlstate_") if error.outcome.startswith("sqlstate_") else ""
        unreached = error.outcome in _UNREACHED and error.scenario in direct
        if error.arm in arms and (code.startswith(_TROUBLE) or unreached):
            trouble[f"{error.outcome}: {error.message}" if error.message else error.outcome] += error.count
            damaged |= code.startswith(_DAMAGE)
    facts = [run.get("arms", {}).get(arm, {}) for arm in arms]
    wanted = {(arm, query) for arm, own in zip(arms, facts, strict=True) for query in own.get("plans", ())}
    taken = {(use.arm, use.query) for use in analysis.plans}
    lacking = sorted(f"{query} on {arm}" for arm, query in wanted - taken)
    said = [f"The server answered {count} times with {what}." for what, count in trouble.most_common(SHOWN)]
    ended = (
        run.get("error") == ServerError.__name__ and run["blocks"]
    )  # before the first block it is a matter of set-up
    said += [f"The run ended by it: {run.get('message')}."] if ended else []
    said += [f"No plan of {some(lacking)} could be captured."] if lacking else []
    grave = damaged or ended or lacking or (trouble and _too_many(analysis, arms))
    outcome = Outcome.BROKEN if grave else Outcome.UNPROVEN if trouble else Outcome.HOLDS
    captured = f"{len(wanted) - len(lacking)} of {len(wanted)} plans captured" if wanted else "no plan to capture"
    errors = trouble.total()
    return GateItem(
        "database",
        "Database trouble",
        "the server reported no trouble of its own",
        "it ended the run, damaged something, or broke the limit of errors",
        f"{errors} server error{'' if errors == 1 else 's'}, {captured}",
        "0",
        LOAD,
        outcome,
        " ".join(said) or f"The server reported no trouble of its own; {captured}.",
        "another run without it, if it was an accident." if outcome is Outcome.UNPROVEN else "",
    )


def _too_many(analysis: Analysis, arms: Sequence[str]) -> bool:
    """Whether errors break their limit, or are significantly more than before."""
    names = ("error rate", "not failing more")
    rules = (rule for rule in analysis.judgement.rules if rule.arm in arms and rule.name in names)
    return any(rule.outcome is Outcome.BROKEN for rule in rules)


def _tail(rules: Sequence[Rule], _: Analysis) -> GateItem:
    """A percentile by the load level that is nearest to its limit, or beyond it."""
    name, limit = rules[0].name, number(rules[0].limit or 0)
    known = [rule for rule in rules if rule.value is not None]
    top = max(known, key=lambda rule: rule.value or 0.0, default=None)
    value = f"{number(top.value)} ms at most" if top and top.value is not None else "too few samples"
    share = {"p50": "half", "p95": "95 of 100", "p99": "99 of 100"}[name]
    go_if = f"{share} answered under {limit} ms at every load level"
    held = f"{name}: all {len(rules)} load levels hold; the slowest: {top.text}" if top else ""
    return _item("performance", f"{name} latency", go_if, "one is not", value, f"{limit} ms", LOAD, rules, held)


def _throughput(rules: Sequence[Rule], _: Analysis) -> GateItem:
    least = number(rules[0].limit or 0)
    value = _said({rule.arm: "not known" if rule.value is None else f"{number(rule.value)}/s" for rule in rules})
    words = (f"{least}/s or more at the best load level", "fewer", value, f"{least}/s")
    return _item("performance", "Throughput", *words, LOAD, rules)


def _benefit(rules: Sequence[Rule], _: Analysis) -> GateItem:
    """Every arm to be shipped must be good for something."""
    have = sum(rule.outcome is Outcome.HOLDS for rule in rules)
    short = [rule for rule in rules if rule.outcome is not Outcome.HOLDS] or rules
    value = f"{have} of {len(rules)} arms" if len(rules) > 1 else "yes" if have else "none proven"
    words = ("a comparison is faster, or a threshold that was broken holds", "", value, "every arm")
    needs = "; ".join(dict.fromkeys(rule.needs.rstrip(".") for rule in short if rule.needs))
    text, outcome = " ".join(rule.text for rule in short[:SHOWN]), worst([rule.outcome for rule in rules])
    return GateItem("performance", "Benefit", *words, LOAD, outcome, text, f"{needs}." if needs else "")


def _errors(rules: Sequence[Rule], _: Analysis) -> GateItem:
    limit = percent(rules[0].limit or 0)
    top = max(rules, key=lambda rule: rule.value or 0.0)
    value = "not known" if top.value is None else percent(top.value)
    return _item(
        "performance", "Error rate", f"under {limit}", f"{limit} or more by its lower bound", value, limit, LOAD, rules
    )


def _capacity(rules: Sequence[Rule], _: Analysis) -> GateItem:
    rounds = int(rules[0].limit or 0)
    value = f"{min(int(rule.value or 0) for rule in rules)} of {rounds} rounds"
    words = ("the rate a search begins with held in every round", "it held in none", value, f"{rounds} rounds")
    return _item("performance", "Capacity", *words, LOAD, rules)


def _slower(rules: Sequence[Rule], analysis: Analysis) -> GateItem:
    arms = {rule.arm for rule in rules}
    verdicts = Counter(str(c.verdict) for c in analysis.comparisons if c.after in arms)
    value = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    held = f"{len(rules)} comparisons with before: {value}; inconclusive ones block nothing."
    words = ("no comparison with before is slower", "one is slower", value, "0 slower")
    return _item("performance", "Not slower than before", *words, LOAD, rules, held)


def _failing(rules: Sequence[Rule], _: Analysis) -> GateItem:
    more = sum(rule.outcome is Outcome.BROKEN for rule in rules)
    held = f"{len(rules)} load levels with failures were compared with before; none fails more often."
    words = ("no load level fails more often than before", "one does", f"{more} of {len(rules)}", "0")
    return _item("performance", "Not failing more", *words, LOAD, rules, held)


def _client(rules: Sequence[Rule], _: Analysis) -> GateItem:
    words = ("the client kept up", "", f"{len(rules)} load levels where it did not", "0")
    return _item("performance", "Client kept up", *words, LOAD, rules)


def _indexes(rules: Sequence[Rule], _: Analysis) -> GateItem:
    value = _said({rule.arm: f"{number(rule.value or 0)} of {number(rule.limit or 0)}" for rule in rules})
    most = number(max(rule.limit or 0 for rule in rules))
    words = (f"all {most} are there and valid", "one is missing or invalid", value, f"{most} of {most}")
    return _item("database", "Indexes valid", *words, CATALOGUE, rules)


def _agreement(rules: Sequence[Rule], _: Analysis) -> GateItem:
    value = f"{number(max(rule.value or 0 for rule in rules))} differences"
    words = ("before at the end agrees with before at the start", "", value, "0")
    return _item("performance", "Befores agree", *words, LOAD, rules)


def _item(
    group: str,
    name: str,
    go_if: str,
    no_go_if: str,
    value: str,
    limit: str,
    evidence: str,
    rules: Sequence[Rule],
    held: str = "",
) -> GateItem:
    """An item of several rules: the worst of them decide, and are what it says."""
    outcome = worst([rule.outcome for rule in rules])
    deciding = [rule for rule in rules if rule.outcome is outcome]
    rest = len(deciding) - SHOWN
    text = " ".join(rule.text for rule in deciding[:SHOWN]) + (f" And {rest} more." if rest > 0 else "")
    needs = "; ".join(dict.fromkeys(rule.needs.rstrip(".") for rule in deciding[:SHOWN] if rule.needs))
    text = held if held and outcome is Outcome.HOLDS and len(rules) > 1 else text
    return GateItem(group, name, go_if, no_go_if, value, limit, evidence, outcome, text, f"{needs}." if needs else "")


def _said(by_arm: Mapping[str, str]) -> str:
    """What holds of every arm once, else by arm."""
    if len(set(by_arm.values())) == 1:
        return next(iter(by_arm.values())) + (f" on each of {len(by_arm)} arms" if len(by_arm) > 1 else "")
    return ", ".join(f"{said} on {arm}" for arm, said in by_arm.items())


_GROUPS: Mapping[str, Callable[[Sequence[Rule], Analysis], GateItem]] = {
    BENEFIT: _benefit,
    "error rate": _errors,
    "p50": _tail,
    "p95": _tail,
    "p99": _tail,
    "throughput": _throughput,
    "capacity": _capacity,
    "not slower": _slower,
    "not failing more": _failing,
    "befores agree": _agreement,
    "client kept up": _client,
    "indexes valid": _indexes,
}

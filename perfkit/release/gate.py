"""Whether to ship: the items of a decision, judged from a run, people's answers and a watch; and the decision made.

NO-GO if an item is broken: a functional check failed, a threshold or a comparison is broken, an index is missing, the
database had trouble, a person said no. Otherwise NO BENEFIT if the change has none, INCONCLUSIVE if an item is unproven
or unanswered, and GO if all hold.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from perfkit.analysis.policy import BENEFIT, Rule
from perfkit.analysis.report import Run, verdict
from perfkit.analysis.results import Analysis
from perfkit.base.bundle import reading, require_spare, write_atomically
from perfkit.base.errors import ServerError, UsageError, visible
from perfkit.base.judgement import Outcome, Verdict, worst
from perfkit.base.units import count, exact, exact_percent, number, percent, some
from perfkit.monitor import store
from perfkit.monitor.model import METRICS, MISSED, Record
from perfkit.release import decision
from perfkit.release.decision import DecisionRecord, GateItem, RecordedAnswer, junit, readable_time, timestamp
from perfkit.runs.records import Bundle, RunRecord

LOAD, ONCE, CATALOGUE = "measured under load", "measured once", "read from the catalogue"
CHECKED_NOW, SAID, RECORDED = "checked at the decision", "said by a person", "recorded by the run"
SHOWN = 3  # sentences per item; the report has all rules

# SQLSTATE classes of server trouble: connections, resources, operator, system, internal.
_TROUBLE = ("08", "53", "57P", "58", "F0", "XX")
_DAMAGE = ("58", "F0", "XX")  # trouble that no accident explains: disk, configuration, data
_UNREACHED = ("refused", "reset")


def decide(
    folder: Path, arm: str = "", watch: str = "", answers: Mapping[str, str] | None = None, by: str = "", **exports: str
) -> None:
    """Decide on a run, write answers.json, verdict.json and decision.json into its folder, and seal the folder.

    `exports` has file names by format, `junit` and `json`. Raises PerfkitError.
    """
    names = {kind: require_spare(Path(name), "gate") for kind, name in exports.items() if name}
    if len(set(names.values())) < len(names):
        raise UsageError(f"{next(iter(names.values()))}: named twice; expected a different file for each format")
    run = Run(Bundle.open(folder))
    if run.bundle.run.alone:
        raise UsageError(f"{folder}: a run of one arm; expected a run that compares before with an arm to be shipped")
    if run.bundle.run.rollback is not None:
        raise UsageError(f"{folder}: a rehearsed rollback; expected the run of a change that is to be shipped")
    questions = run.bundle.run.config.release.question
    with decision.locked(folder):
        with reading(folder):
            every = decision.merged_answers(folder, [question.name for question in questions], answers or {}, by)
            watched = watch_state(Path(watch)) if watch else None
            current = decision.current_answers(questions, every)
            record = judge(run.bundle.run, run.analysis, shipped(run.bundle.run, arm), current, watched)
            measured = verdict(run.subject)
        for kind, text in (("junit", junit), ("json", DecisionRecord.text)):
            if kind in names:
                write_atomically(names[kind], text(record))
        if answers:
            recorded = decision.RecordedAnswers(answers=every).model_dump()
            write_atomically(folder / decision.ANSWERS_FILE, decision.json_text(recorded))
        write_atomically(folder / "verdict.json", measured)
        write_atomically(folder / decision.FILE, record.text())
        (folder / decision.PAGE).unlink(missing_ok=True)  # it shows an earlier decision
        decision.seal(folder)


def shipped(run: RunRecord, arm: str = "") -> list[str]:
    """Return the arms to decide on: the named arm, or all arms after the change. Raises UsageError for other arms."""
    after = run.of_role("after")
    if arm and arm not in after:
        raise UsageError(f"arm '{arm}' is not to be shipped; expected one of: {', '.join(after) or 'none in this run'}")
    return [arm] if arm else after


@dataclass(frozen=True, slots=True)
class WatchState:
    """The state of a watch, by the name of its folder: alive or not, the age of its last interval, and a sentence."""

    name: str
    alive: bool
    age: str
    text: str


def judge(
    run: RunRecord, analysis: Analysis, arms: Sequence[str], answers: Sequence[RecordedAnswer], watch: WatchState | None
) -> DecisionRecord:
    """Judge the arms to be shipped, now, by a run, the answers that count, and a watch."""
    items = (
        *measured_items(run, analysis, arms),
        *_monitoring(run.config.release.monitoring, watch),
        *map(_answered, answers),
    )
    outcome = worst(item.outcome for item in items)
    deciding = tuple(item.reason for item in items if item.outcome is outcome)
    others = set(run.of_role("after")) - set(arms)
    return DecisionRecord.model_validate(
        {
            "title": analysis.title,
            "decision": outcome.decision,
            "invalid": any(c.verdict is Verdict.INVALID for c in analysis.comparisons if c.after not in others),
            "arms": arms,
            "decided": timestamp(datetime.now(UTC)),
            "headline": analysis.headline,
            "reasons": (f"All {len(items)} items hold.",) if outcome is Outcome.HOLDS else deciding,
            "items": items,
            "answers": answers,
            "watch": watch.name if watch else "",
        }
    )


def measured_items(run: RunRecord, analysis: Analysis, arms: Sequence[str]) -> Iterator[GateItem]:
    """Yield the items that a run gives for the arms to be shipped: complete, checks, rules in groups, database."""
    yield _complete(run, arms)
    yield from _checks(run, arms)
    for name, form in _FORMS.items():
        if rules := [rule for rule in analysis.decision.rules if rule.arm in arms and rule.name == name]:
            yield _grouped(form, rules, analysis)
    yield _database(run, analysis, arms)


def _complete(run: RunRecord, arms: Sequence[str]) -> GateItem:
    done, planned = run.complete_blocks, run.parameters.blocks
    left = run.left_out.get("scenarios") or []
    problems = []
    if run.status != "complete":
        problems.append(f"The run is {run.status}: {run.message or 'it has not ended'}.")
    if left:
        problems.append(f"Not every load level was measured: {some(left)} left out.")
    if not arms:
        problems.append("The run has no arm to be shipped, so nothing was judged.")
    shipped = f" To be shipped: {', '.join(arms)}." if arms else ""
    text = " ".join(problems) or f"The run is complete: {done} of {planned} blocks, every load level.{shipped}"
    outcome = Outcome.UNPROVEN if problems else Outcome.HOLDS
    needs = "a complete run: perfkit report, with nothing left out." if problems else ""
    words = ("every block and load level was measured", "", f"{done} of {planned} blocks", f"{planned} blocks")
    return GateItem("the run", *words, RECORDED, name="Run complete", outcome=outcome, text=text, needs=needs)


def _checks(run: RunRecord, arms: Sequence[str]) -> Iterator[GateItem]:
    """Yield one item for each group of functional checks that any arm ran."""
    groups = dict.fromkeys(check.group for checks in run.checks.values() for check in checks)
    for group in groups:
        by_arm = {arm: [c for c in run.checks.get(arm, ()) if c.group == group] for arm in arms}
        failed = [f"{c.name} on {arm}" for arm in arms for c in by_arm[arm] if not c.passed]
        missing = [arm for arm in arms if not by_arm[arm]]
        value = _each_arm({arm: f"{sum(c.passed for c in checks)} of {len(checks)}" for arm, checks in by_arm.items()})
        outcome = Outcome.BROKEN if failed else Outcome.UNPROVEN if missing else Outcome.HOLDS
        text = f"{group} checks: {value} passed."
        text += f" Failed: {some(failed, 5)}." if failed else f" Not run on {', '.join(missing)}." if missing else ""
        most = max((len(checks) for checks in by_arm.values()), default=0)
        needs = "a run of the checks on that arm." if outcome is Outcome.UNPROVEN else ""
        words = ("functional checks", f"all {most} pass", "one fails", value, f"{most} of {most}", ONCE)
        yield GateItem(*words, name=f"{group} checks", outcome=outcome, text=text, needs=needs)


def _database(run: RunRecord, analysis: Analysis, arms: Sequence[str]) -> GateItem:
    """Judge errors of the server itself, a run that they ended, and plans that could not be captured."""
    queries = set(run.queries)
    direct = {level.scenario for level in analysis.levels if level.item in queries}
    trouble, damaged = Counter[str](), False
    for error in analysis.errors:
        code = error.outcome.removeprefix("sqlstate_") if error.outcome.startswith("sqlstate_") else ""
        unreached = error.outcome in _UNREACHED and error.scenario in direct
        if error.arm in arms and (code.startswith(_TROUBLE) or unreached):
            trouble[visible(f"{error.outcome}: {error.message}" if error.message else error.outcome)] += error.count
            damaged |= code.startswith(_DAMAGE)
    expected = {(arm, query) for arm in arms for query in run.arm(arm).plans or ()}
    missing = sorted(f"{query} on {arm}" for arm, query in expected - {(use.arm, use.query) for use in analysis.plans})
    sentences = [f"The server answered {times} times with {what}." for what, times in trouble.most_common(SHOWN)]
    # A server error before the first block is a fault of the set-up, not of the arms.
    ended = run.error == ServerError.__name__ and run.blocks
    sentences += [f"A server error ended the run: {run.message}."] if ended else []
    sentences += [f"No plan of {some(missing)} could be captured."] if missing else []
    on_errors = [r for r in analysis.decision.rules if r.arm in arms and r.name in ("error rate", "not failing more")]
    many = any(rule.outcome is Outcome.BROKEN for rule in on_errors)
    grave = damaged or ended or missing or (trouble and many)
    outcome = Outcome.BROKEN if grave else Outcome.UNPROVEN if trouble else Outcome.HOLDS
    captured = f"{len(expected) - len(missing)} of {len(expected)} plans captured" if expected else "no plan to capture"
    text = " ".join(sentences) or f"The server reported no trouble of its own; {captured}."
    needs = "another run without the error, if it was an accident." if outcome is Outcome.UNPROVEN else ""
    no_go_if = "server errors ended the run, damaged something, or broke the limit of errors"
    value = f"{trouble.total()} server error{'' if trouble.total() == 1 else 's'}, {captured}"
    words = ("database", "the server reported no trouble of its own", no_go_if, value, "0", LOAD)
    return GateItem(*words, name="Database trouble", outcome=outcome, text=text, needs=needs)


# The rules of the arms in groups: every group is one item.

_Values = Callable[[Sequence[Rule], Analysis], str]


def _each_arm(by_arm: Mapping[str, str]) -> str:
    """Return the value once if all arms share it, otherwise each arm's value."""
    if len(set(by_arm.values())) == 1:
        return next(iter(by_arm.values())) + (f" on each of {len(by_arm)} arms" if len(by_arm) > 1 else "")
    return ", ".join(f"{value} on {arm}" for arm, value in by_arm.items())


def _top(rules: Sequence[Rule]) -> Rule | None:
    """Return the rule with the highest value; None if no value is known."""
    return max((rule for rule in rules if rule.value is not None), key=lambda rule: rule.value or 0.0, default=None)


def _slowest(rules: Sequence[Rule], _: Analysis) -> str:
    top = _top(rules)
    return f"{number(top.value)} ms at most" if top and top.value is not None else "too few samples"


def _rates(rules: Sequence[Rule], _: Analysis) -> str:
    return _each_arm({rule.arm: "not known" if rule.value is None else f"{number(rule.value)}/s" for rule in rules})


def _highest_share(rules: Sequence[Rule], _: Analysis) -> str:
    top = _top(rules)
    return percent(top.value) if top and top.value is not None else "not known"


def _benefits(rules: Sequence[Rule], _: Analysis) -> str:
    have = sum(rule.outcome is Outcome.HOLDS for rule in rules)
    return f"{have} of {len(rules)} arms" if len(rules) > 1 else "yes" if have else "none proven"


def _verdicts(rules: Sequence[Rule], analysis: Analysis) -> str:
    arms = {rule.arm for rule in rules}
    verdicts = Counter(str(c.verdict) for c in analysis.comparisons if c.after in arms)
    return ", ".join(f"{times} {verdict}" for verdict, times in verdicts.most_common())


@dataclass(frozen=True, slots=True)
class _Form:
    """How the rules of one name are shown as one item; `{limit}` stands for the rules' highest limit."""

    name: str
    go_if: str
    no_go_if: str
    limit: str
    value: _Values
    group: str = "performance"
    evidence: str = LOAD
    limit_text: Callable[[float], str] = exact
    held: str = ""  # the text if all of several rules hold; by default, the text of the first of them


_EVERY = "{name}: all {rules} load levels hold; the slowest: {slowest}"
_SLOW = ("any load level exceeds the limit", "{limit} ms", _slowest)
_FORMS: Mapping[str, _Form] = {
    BENEFIT: _Form(
        "Benefit", "a comparison is faster, or a threshold that was broken holds", "", "every arm", _benefits
    ),
    "error rate": _Form(
        "Error rate",
        "under {limit}",
        "{limit} or more by its lower bound",
        "{limit}",
        _highest_share,
        limit_text=exact_percent,
    ),
    **{
        f"p{q}": _Form(
            f"p{q} latency", f"{share} requests answered in under {{limit}} ms at every load level", *_SLOW, held=_EVERY
        )
        for q, share in ((50, "half of the"), (95, "95 of 100"), (99, "99 of 100"))
    },
    "throughput": _Form("Throughput", "{limit}/s or more at the best load level", "less", "{limit}/s", _rates),
    "capacity": _Form(
        "Capacity",
        "the rate that a search begins with held in every round",
        "it held in no round",
        "{limit} rounds",
        lambda rules, _: f"{min(int(r.value or 0) for r in rules)} of {count(rules[0].limit or 0)} rounds",
    ),
    "not slower": _Form(
        "Not slower than before",
        "no comparison with before is slower",
        "any comparison is slower",
        "0 slower",
        _verdicts,
        held="{rules} comparisons with before: {value}; inconclusive comparisons do not block a GO.",
    ),
    "not failing more": _Form(
        "Not failing more",
        "no load level fails more often than before",
        "any load level does",
        "0",
        lambda rules, _: f"{sum(rule.outcome is Outcome.BROKEN for rule in rules)} of {len(rules)}",
        held="{rules} load levels with failures were compared with before; no level fails more often.",
    ),
    "befores agree": _Form(
        "Befores agree",
        "before at the end agrees with before at the start",
        "",
        "0",
        lambda rules, _: f"{count(max(rule.value or 0 for rule in rules))} differences",
    ),
    "client kept up": _Form(
        "Client kept up",
        "the client kept up",
        "",
        "0",
        lambda rules, _: f"{len(rules)} load levels where the client did not",
    ),
    "indexes valid": _Form(
        "Indexes valid",
        "all {limit} exist and are valid",
        "any index is missing or invalid",
        "{limit} of {limit}",
        lambda rules, _: _each_arm({r.arm: f"{count(r.value or 0)} of {count(r.limit or 0)}" for r in rules}),
        group="database",
        evidence=CATALOGUE,
    ),
}


def _grouped(form: _Form, rules: Sequence[Rule], analysis: Analysis) -> GateItem:
    """Make one item of several rules; those with the worst outcome decide and give its text."""
    outcome = worst(rule.outcome for rule in rules)
    deciding = [rule for rule in rules if rule.outcome is outcome]
    if outcome is Outcome.ABSENT and len(deciding) < len(rules):  # decide on the arms that have a benefit alone
        outcome, deciding = Outcome.UNPROVEN, [rule for rule in rules if rule.outcome is not Outcome.HOLDS]
    limit, value = form.limit_text(max(rule.limit or 0 for rule in rules)), form.value(rules, analysis)
    text, rest = " ".join(rule.text for rule in deciding[:SHOWN]), len(deciding) - SHOWN
    text += f" And {rest} more." if rest > 0 else ""
    if form.held and outcome is Outcome.HOLDS and len(rules) > 1:
        slowest = top.text if (top := _top(rules)) else ""
        text = form.held.format(name=rules[0].name, rules=len(rules), value=value, slowest=slowest)
    needs = "; ".join(dict.fromkeys(rule.needs.rstrip(".") for rule in deciding[:SHOWN] if rule.needs))
    go_if, no_go_if, limits = (words.format(limit=limit) for words in (form.go_if, form.no_go_if, form.limit))
    words = (form.group, go_if, no_go_if, value, limits, form.evidence)
    return GateItem(*words, name=form.name, outcome=outcome, text=text, needs=f"{needs}." if needs else "")


# Items from people and from a watch.


def _monitoring(required: bool, watch: WatchState | None) -> Iterator[GateItem]:
    """Judge monitoring: a GO needs it, but its lack forbids nothing and leaves the decision open."""
    if watch or required:
        alive = watch is not None and watch.alive
        outcome = Outcome.HOLDS if alive else Outcome.UNPROVEN
        value, text = (watch.age, watch.text) if watch else ("not named", "Monitoring was not checked.")
        needs = "" if alive else "a running watch; pass its folder with --watch FOLDER."
        words = ("monitoring", "a watch is running and answers", "", value, f"{MISSED} intervals", CHECKED_NOW)
        yield GateItem(*words, name="Monitoring", outcome=outcome, text=text, needs=needs)


def _answered(answer: RecordedAnswer) -> GateItem:
    outcome = {"yes": Outcome.HOLDS, "no": Outcome.BROKEN}.get(answer.answer, Outcome.UNPROVEN)
    source = f", answered by {answer.by}" if answer.by else ""
    source += f", on {readable_time(answer.on)}" if answer.on else ""
    value = answer.answer or "not answered"
    needs = f'--answer "{answer.question}=yes" (or no) --by NAME.' if outcome is Outcome.UNPROVEN else ""
    text, name = f"{answer.question}: {value}{source}.", visible(answer.question)
    return GateItem("people", "yes", "no", value, "yes", SAID, name=name, outcome=outcome, text=text, needs=needs)


# Whether a watch is alive: its last interval is recent, and its metrics endpoint answers if there is one.

_ENDPOINT = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):\d{1,5}/metrics")  # only this machine
_TIMEOUT_S = 5.0


def watch_state(folder: Path, now: Callable[[], float] = time.time) -> WatchState:
    """Return the state of the watch that records into a folder. Raises PerfkitError if the folder is no watch's."""
    record, state = store.read(folder), partial(WatchState, folder.resolve().name)
    title, every = record.about.title, record.about.every_s
    if not record.ticks:
        return state(False, "no interval yet", f"The watch of {title} has not recorded an interval yet.")
    age = now() - record.ticks[-1].at
    if age <= -MISSED * every:
        text = f"The last interval of the watch of {title} ends {-age:.0f} s from now: one of the clocks is wrong."
        return state(False, "in the future", text)
    sentence = f"The last interval of the watch of {title} ended {age:.0f} s ago; its intervals are {every:g} s long"
    if age >= MISSED * every:
        return state(False, f"{age:.0f} s old", f"{sentence}, so the watch is not running.")
    endpoint = _endpoint(record)
    if endpoint and (trouble := _unanswered(endpoint)):
        return state(False, f"{age:.0f} s old", f"{sentence}, but its metrics at {endpoint} do not answer: {trouble}.")
    metrics = ", and its metrics answer" if endpoint else ""
    return state(True, f"{age:.0f} s old", f"{sentence}{metrics}. {_alerts(record)}")


def _alerts(record: Record) -> str:
    """List the active alerts; they forbid nothing, because the watch may observe the version to be replaced."""
    names = some(f"{event.level} {event.rule}" for event in record.active)
    return f"Active alerts: {names}." if names else "No alert is active."


def _endpoint(record: Record) -> str:
    """Return the metrics endpoint that the watch noted when it last started; empty if there is none."""
    for event in reversed(record.events):
        if event.what == "note" and event.id.startswith(f"note-{METRICS}-"):
            return match[0] if (match := _ENDPOINT.search(event.text)) else ""
    return ""


def _unanswered(endpoint: str) -> str:
    """Return why an endpoint did not answer; empty if it did."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint, timeout=_TIMEOUT_S) as response:
            return "" if response.status == 200 else f"HTTP {response.status}"
    except (OSError, ValueError, urllib.error.HTTPError) as error:
        return str(getattr(error, "reason", None) or error)

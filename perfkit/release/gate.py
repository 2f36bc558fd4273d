"""Whether to ship: items of a decision from run, people and watch, and what they lead to.

NO-GO where an item is broken: a check failed, a threshold or a comparison is broken, an index is missing, the
database had trouble, a person said no. NO BENEFIT where none is, and the change has no benefit. INCONCLUSIVE where
one is unproven or unanswered. GO otherwise.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfkit.analysis.policy import BENEFIT, Decision, Outcome, Rule, percent, some
from perfkit.analysis.policy import number as policy_number
from perfkit.analysis.results import Analysis, complete_blocks
from perfkit.base.bundle import Bundle, read_object, reading, write_atomically
from perfkit.base.errors import BundleError, PerfkitError, PlanError, ServerError, UsageError, name_of, visible
from perfkit.explain.capture import Capture, ExplainSpec, Parameters, capture, effects, named, require_harmless, single
from perfkit.explain.comparison import typical_parameters
from perfkit.explain.facts import NO_FACTS, PlanFacts, read_facts
from perfkit.explain.plan import Plan, read_plan
from perfkit.monitor import store
from perfkit.monitor.alerts import MISSED
from perfkit.monitor.model import METRICS, Record
from perfkit.postgres.databases import Database
from perfkit.runs.targets import Text, is_file, sql_of

LOAD, ONCE, CATALOGUE = "measured under load", "measured once", "read from the catalogue"
CHECKED_NOW, SAID, RECORDED = "checked at the decision", "said by a person", "recorded by the run"


@dataclass(frozen=True, slots=True)
class GateItem:
    """One item; `go_if` and `no_go_if` say when it lets through and when it forbids (empty: it never does)."""

    group: str
    name: str
    go_if: str
    no_go_if: str
    value: str
    limit: str
    evidence: str
    outcome: Outcome
    text: str  # one plain sentence or two, with their numbers
    needs: str = ""  # where it is unproven, what it would take

    @property
    def reason(self) -> str:
        """The sentence, and where it is unproven what it would take."""
        return f"{self.text} It would take {self.needs}" if self.needs else self.text


def written(now: datetime) -> str:
    """A time as perfkit writes it down, UTC."""
    return f"{now:%Y-%m-%dT%H:%M:%SZ}"


def spoken(on: str) -> str:
    """A time that perfkit wrote down as people read it; one that a person wrote stays as it is.

    >>> spoken("2026-01-15T09:00:00Z"), spoken("Week 1")
    ('2026-01-15 09:00:00 UTC', 'Week 1')
    """
    return f"{on[:10]} {on[11:19]} UTC" if on.endswith("Z") else on


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Broken before unproven before holds; no benefit where none has one, unproven where some have."""
    if Outcome.ABSENT in outcomes and Outcome.BROKEN not in outcomes:
        return Outcome.ABSENT if set(outcomes) == {Outcome.ABSENT} else Outcome.UNPROVEN
    return next((own for own in (Outcome.BROKEN, Outcome.UNPROVEN) if own in outcomes), Outcome.HOLDS)


# What people said of one run: `answers.json` in its folder, every answer that was ever given, the latest counts.

FILE = "answers.json"
FORMAT = 1
WORDS = ("yes", "no")


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer to one question; `answer` is empty where nobody has said anything yet."""

    question: str
    answer: str
    by: str
    on: str  # UTC where perfkit wrote it down, else as the configuration says


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Question and answer of each `QUESTION=yes`. Raises UsageError."""
    said: dict[str, str] = {}
    for text in texts:
        question, equals, answer = (part.strip() for part in text.rpartition("="))
        if not equals or answer.lower() not in WORDS:
            raise UsageError(f"--answer {text}; expected QUESTION=yes or QUESTION=no")
        if question in said:
            raise UsageError(f"--answer {text}; expected one answer to '{question}', not two")
        said[question] = answer.lower()
    return said


def added(folder: Path, asked: Sequence[str], said: Mapping[str, str], by: str) -> list[RecordedAnswer]:
    """Every answer of a run's folder and those given now. Raises UsageError for a question not asked, or nobody."""
    for question in said:
        if question not in asked:
            known = ", ".join(f'"{name}"' for name in asked) or "none: the run's configuration asks no question"
            raise UsageError(f"question '{question}' is unknown; expected one of: {known}")
    who = name_of(by)
    if said and not who:
        raise UsageError("--by is missing; expected who says it")
    if by and not said:
        raise UsageError(f"--by {by}; expected an --answer with it")
    on = written(datetime.now(UTC))
    return [*read(folder), *(RecordedAnswer(question, answer, who, on) for question, answer in said.items())]


def write(folder: Path, every: Sequence[RecordedAnswer]) -> None:
    """Keep all answers in a run's folder. Raises BundleError."""
    content = {"format": FORMAT, "answers": [asdict(own) for own in every]}
    write_atomically(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> list[RecordedAnswer]:
    """Every answer in the order in which they were given. Raises BundleError for a file that is damaged."""
    path = folder / FILE
    if not path.exists():
        return []
    with reading(path):
        found = [RecordedAnswer(**own) for own in read_object(path, "answers", "answers", FORMAT)["answers"]]
    if any(own.answer not in WORDS or not isinstance(own.question, str) for own in found):
        raise BundleError(f"{path}: an answer that is neither yes nor no; expected what perfkit wrote")
    return found


def standing(questions: Sequence[Mapping[str, Any]], given: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    """The answer to each question of a configuration that counts: the latest, else the configuration's own."""
    latest = {own.question: own for own in given}
    return [
        latest.get(own["name"], RecordedAnswer(own["name"], own["answer"], own["by"], own["on"])) for own in questions
    ]


# The queries that a rollback looks at: their text, their values, and whether they may be sent.


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query that is looked at; `known` is its name in the run from before the release."""

    name: str
    sql: str
    parameters: Parameters
    known: str = ""
    plan: Plan | None = None  # while the indexes are there
    unsent: str = ""  # why it is not sent, only planned

    @property
    def generic(self) -> bool:
        """Whether it is planned for any values, as there are none."""
        return self.parameters is None and bool(named(self.sql))


def captured(place: Database, query: JudgedQuery) -> Capture:
    """A query's plan, which executes nothing. Raises PlanError."""
    try:
        return capture(place.session, query.sql, query.parameters, ExplainSpec(analyze=False, generic=query.generic))
    except PlanError as error:
        raise PlanError(f"{query.name}: {error}") from None


def planned_in(run: Bundle, arm: str, query: str) -> tuple[Plan, PlanFacts]:
    """A query's plan in an arm of a run, and what the catalogue said of its tables. Raises PlanError, BundleError."""
    tables = run.beside_plan(arm, query).get("tables")
    return read_plan(run.plan(arm, query)), read_facts(tables) if tables else NO_FACTS


def asked_for(given: Sequence[Text], against: Bundle | None) -> Iterator[tuple[str, str, str]]:
    """Name and text of each query, and its name in the run; without any, the run's own."""
    known: Mapping[str, Any] = against.run["queries"] if against else {}
    texts = {_plain(own["sql"]): name for name, own in known.items()}
    for number, own in enumerate(given, 1):
        sql = sql_of(own)
        name = texts.get(_plain(sql), "")
        yield name or f"query {number}{f' ({Path(own).stem})' if is_file(own) else ''}", sql, name
    if not given:
        yield from ((name, run["sql"], name) for name, run in known.items())


def looked_at(place: Database, name: str, sql: str, known: str, rows: Sequence[Mapping[str, Any]]) -> JudgedQuery:
    """With values that give most rows their plan, and why it is not sent, where that is so. Raises PlanError."""
    try:
        text, wants = single(sql), set(named(sql))
        fits = bool(rows) and wants <= rows[0].keys()
        query = JudgedQuery(name, sql, typical_parameters(place.session, text, rows) if fits and wants else None, known)
        query = replace(query, plan=captured(place, query).plan)
        if query.generic:
            return replace(query, unsent="it needs values: --parameters")
        found = effects(place.session, sql, query.parameters)
    except PlanError as error:
        raise PlanError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    try:
        require_harmless(found, writes_allowed=False, volatile_allowed=(), where=name)
    except PerfkitError:
        return replace(query, unsent="it writes, locks rows or calls a volatile function")
    return query


def _plain(sql: str) -> str:
    return " ".join(sql.split()).rstrip("; ")


# What a run itself says for and against shipping its arms: the rules in groups, its checks, its database. Pure.

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
    name, limit = rules[0].name, policy_number(rules[0].limit or 0)
    known = [rule for rule in rules if rule.value is not None]
    top = max(known, key=lambda rule: rule.value or 0.0, default=None)
    value = f"{policy_number(top.value)} ms at most" if top and top.value is not None else "too few samples"
    share = {"p50": "half", "p95": "95 of 100", "p99": "99 of 100"}[name]
    go_if = f"{share} answered under {limit} ms at every load level"
    held = f"{name}: all {len(rules)} load levels hold; the slowest: {top.text}" if top else ""
    return _item("performance", f"{name} latency", go_if, "one is not", value, f"{limit} ms", LOAD, rules, held)


def _throughput(rules: Sequence[Rule], _: Analysis) -> GateItem:
    least = policy_number(rules[0].limit or 0)
    value = _said({rule.arm: "not known" if rule.value is None else f"{policy_number(rule.value)}/s" for rule in rules})
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
    value = _said({rule.arm: f"{policy_number(rule.value or 0)} of {policy_number(rule.limit or 0)}" for rule in rules})
    most = policy_number(max(rule.limit or 0 for rule in rules))
    words = (f"all {most} are there and valid", "one is missing or invalid", value, f"{most} of {most}")
    return _item("database", "Indexes valid", *words, CATALOGUE, rules)


def _agreement(rules: Sequence[Rule], _: Analysis) -> GateItem:
    value = f"{policy_number(max(rule.value or 0 for rule in rules))} differences"
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


# Whether to ship: everything that a decision needs, as one list of items, and the decision they lead to. Pure.

_LED_BY = {Decision.NO_GO: Outcome.BROKEN, Decision.NO_BENEFIT: Outcome.ABSENT, Decision.INCONCLUSIVE: Outcome.UNPROVEN}


@dataclass(frozen=True, slots=True)
class WatchState:
    """What was found of a watch: whether it is alive, in one sentence, and its last interval's age in words."""

    alive: bool
    age: str
    text: str


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision on the arms to be shipped, its items in the order of the page, and what led to it."""

    decision: Decision
    arms: tuple[str, ...]
    items: tuple[GateItem, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """In words, the items that led to it; of a GO, how many hold."""
        wanted = _LED_BY.get(self.decision)
        if wanted is None:
            return (f"All {len(self.items)} items hold.",)
        return tuple(item.reason for item in self.items if item.outcome is wanted)


def judge(
    run: Mapping[str, Any],
    analysis: Analysis,
    arms: Sequence[str],
    given: Sequence[RecordedAnswer],
    watched: WatchState | None,
) -> Gate:
    """Judge the arms to be shipped by everything a run, its people (`given`: standing answers) and a watch say."""
    release = run["config"].get("release") or {}
    items = [
        *measured_items(run, analysis, arms),
        *_monitoring(bool(release.get("monitoring")), watched),
        *map(_answered, given),
    ]
    return Gate(decide(items), tuple(arms), tuple(items))


def decide(items: Iterable[GateItem]) -> Decision:
    """One broken item is a NO-GO, no benefit is none whatever is open, one unproven leaves it open.

    Nothing judged is never a GO.
    """
    outcomes = {item.outcome for item in items}
    for decision in (Decision.NO_GO, Decision.NO_BENEFIT):
        if _LED_BY[decision] in outcomes:
            return decision
    return Decision.GO if outcomes == {Outcome.HOLDS} else Decision.INCONCLUSIVE


def _monitoring(required: bool, watched: WatchState | None) -> list[GateItem]:
    """Monitoring that is not ready leaves the decision open: it is among what a GO needs, and forbids nothing."""
    if watched is None and not required:
        return []
    outcome = Outcome.HOLDS if watched and watched.alive else Outcome.UNPROVEN
    value, text = (watched.age, watched.text) if watched else ("not named", "No watch was named, so none was reached.")
    needs = "" if outcome is Outcome.HOLDS else "a watch that runs, named by --watch FOLDER."
    words = ("a watch is running and reached", "", value, f"{MISSED} intervals")
    return [GateItem("monitoring", "Monitoring", *words, CHECKED_NOW, outcome, text, needs)]


def _answered(given: RecordedAnswer) -> GateItem:
    outcome = {"yes": Outcome.HOLDS, "no": Outcome.BROKEN}.get(given.answer, Outcome.UNPROVEN)
    said = "".join(f", {word} {what}" for word, what in (("said by", given.by), ("on", spoken(given.on))) if what)
    text = f"{given.question}: {given.answer or 'not answered'}{said}."
    needs = f'--answer "{given.question}=yes" (or no) --by NAME.' if outcome is Outcome.UNPROVEN else ""
    words = ("yes", "no", given.answer or "not answered", "yes")
    return GateItem("people", visible(given.question), *words, SAID, outcome, text, needs)


# Whether a watch is alive: its last interval is recent, and its metrics answer where it offers any.

_ENDPOINT = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):\d{1,5}/metrics")  # this machine alone is asked
_TIMEOUT_S = 5.0


def look(folder: Path, now: Callable[[], float] = time.time) -> WatchState:
    """What a watch's folder says at this moment. Raises PerfkitError for a folder that is no watch's."""
    record = store.read(folder)
    title, every = record.about.title, record.about.every_s
    if not record.ticks:
        return WatchState(False, "no interval yet", f"The watch of {title} has not recorded an interval yet.")
    age = now() - record.ticks[-1].at
    if age <= -MISSED * every:
        text = f"The last interval of the watch of {title} ends {-age:.0f} s from now: a clock is wrong."
        return WatchState(False, "in the future", text)
    said = f"The last interval of the watch of {title} ended {age:.0f} s ago; its intervals are {every:g} s long"
    if age >= MISSED * every:
        return WatchState(False, f"{age:.0f} s old", f"{said}, so it does not run.")
    endpoint = _endpoint(record)
    if endpoint and (trouble := _unanswered(endpoint)):
        return WatchState(False, f"{age:.0f} s old", f"{said}, but its metrics at {endpoint} do not answer: {trouble}.")
    metrics = ", and its metrics answer" if endpoint else ""
    return WatchState(True, f"{age:.0f} s old", f"{said}{metrics}. {_alerts(record)}")


def _alerts(record: Record) -> str:
    """The alerts that stand: they forbid nothing, for the watch may be of what is to be replaced."""
    names = some(f"{event.level} {event.rule}" for event in record.active)
    return f"Alerts that stand: {names}." if names else "No alert stands."


def _endpoint(record: Record) -> str:
    """Where the watch said, the last time that it began, that its metrics are."""
    for event in reversed(record.events):
        if event.what == "note" and event.id.startswith(f"note-{METRICS}-"):
            return found[0] if (found := _ENDPOINT.search(event.text)) else ""
    return ""


def _unanswered(endpoint: str) -> str:
    """Why an endpoint did not answer; empty where it did."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint, timeout=_TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"HTTP {answer.status}"
    except (OSError, ValueError, urllib.error.HTTPError) as error:
        return str(getattr(error, "reason", None) or error)
